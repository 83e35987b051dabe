# make quickstart   a real 135M LLaMA learns eight small tasks, in minutes, on two CPU cores
# make quickstart-clip  a small CLIP learns ten generated picture domains, in minutes
# make test         the tests that need neither minutes nor the 135M model
# make test-all     all tests
# make check        ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# two processes, a file of tests in one of them, as its tests share fixtures; in the order of the folders, since the long
# files would be last in the order of their numbers of tests, one process idle
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
test test-all: export OMP_NUM_THREADS := 1

.PHONY: quickstart quickstart-clip test test-all check install clean

quickstart: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed scripts/train_trace.py --config configs/quickstart.yaml

quickstart-clip: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed scripts/train_trace.py --config configs/quickstart_clip.yaml

test: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: install
	$(BIN)/python -m pytest $(PARALLEL)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e .[dev]
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
