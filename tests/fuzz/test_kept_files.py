"""Changed files of a run folder are read correctly, or refused with one line; nothing is written outside of it."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given

from codyra_llm import locks, run
from codyra_llm.config import RunConfig
from codyra_llm.errors import UserError
from codyra_llm.files import sha256
from codyra_llm.ledger.describe import compare, describe
from codyra_llm.ledger.ledger import copy_entries, parse_ledger, read_ledger
from codyra_llm.ledger.materialize import check_fit, materialize
from codyra_llm.ledger.peft_io import export_sum
from tests.e2e.test_run import tiny_config
from tests.fuzz.outcome import few, outcome, thorough, tree
from tests.fuzz.strategies import damaged, files_like

TASKS = ["FOMC", "NumGLUE-cm"]


def config_of(model: Path, output: Path) -> RunConfig:
    short = {"train.num_train_epochs": 1, "data.max_train_examples": 16, "data.max_test_examples": 1}
    return tiny_config(
        model, output, **{"order": TASKS, "evaluate.max_new_tokens": 1, "evaluate.tasks": "last", **short}
    )


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run."""
    output = tmp_path_factory.mktemp("kept") / "run"
    run(config_of(tiny_folder, output))
    return output


def in_a_copy(finished: Path, act: Callable[[Path], None]) -> None:
    """Calls `act` with a copy of a run folder; asserts that files outside of its parent folder do not change."""
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "outside").mkdir()
        (root / "outside" / "file").write_text("not ours")
        shutil.copytree(finished, root / "inside" / "run")
        act(root / "inside" / "run")
        assert tree(root / "outside") == {"file": b"not ours"}
        assert {path.name for path in root.iterdir()} == {"inside", "outside"}


def use_all(ledger_folder: Path) -> None:
    """Uses a ledger in every way that the package offers."""
    held = read_ledger(ledger_folder)
    describe(held)
    beside = ledger_folder.parent
    shares = {entry.name: 1.0 for entry in held.entries}
    for act in (
        lambda: check_fit(ledger_folder, held, None),
        lambda: compare(ledger_folder, held, ledger_folder, held),
        lambda: export_sum(ledger_folder, held, shares, beside / "adapter", None),
        lambda: materialize(ledger_folder, held, shares, beside / "made", None, None),
        lambda: copy_entries(held, ledger_folder, beside / "copied"),
    ):
        outcome(act)


def test_a_ledger_that_is_sealed_again(finished: Path) -> None:
    document = json.loads((finished / "ledger" / "ledger.json").read_text())

    @thorough
    @given(content=damaged(document))
    def check(content: dict[str, Any]) -> None:
        def act(folder: Path) -> None:
            with contextlib.suppress(UserError, TypeError):
                content["state"] = parse_ledger(content, "").state
            (folder / "ledger" / "ledger.json").write_text(json.dumps(content))
            outcome(lambda: use_all(folder / "ledger"))

        in_a_copy(finished, act)

    check()


def test_a_ledger_of_any_bytes(finished: Path) -> None:
    document = json.loads((finished / "ledger" / "ledger.json").read_text())

    @thorough
    @given(content=files_like(document))
    def check(content: bytes) -> None:
        def act(folder: Path) -> None:
            (folder / "ledger" / "ledger.json").write_bytes(content)
            outcome(lambda: use_all(folder / "ledger"))

        in_a_copy(finished, act)

    check()


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_entry_that_is_sealed_again(file: str, finished: Path) -> None:
    content = (finished / "ledger" / f"01-{TASKS[0]}" / file).read_bytes()
    sealed = content if file.endswith("json") else content[8 : 8 + int.from_bytes(content[:8], "little")]

    @thorough
    @given(changed=files_like(json.loads(sealed)))
    def check(changed: bytes) -> None:
        def act(folder: Path) -> None:
            ledger = folder / "ledger"
            path = ledger / f"01-{TASKS[0]}" / file
            data = changed if file.endswith("json") else len(changed).to_bytes(8, "little") + changed
            path.write_bytes(data if file.endswith("json") else data + content[8 + len(sealed) :])
            written = json.loads((ledger / "ledger.json").read_text())
            written["entries"][0]["sha256"][file] = sha256(path)
            written["state"] = parse_ledger(written, "").state
            (ledger / "ledger.json").write_text(json.dumps(written))
            outcome(lambda: use_all(ledger))

        in_a_copy(finished, act)

    check()


@pytest.mark.parametrize("file", ["results.json", "progress.json", "checksums.json", "config.yaml", "ledger.json"])
def test_a_run_folder(file: str, finished: Path, tiny_folder: Path) -> None:
    (path,) = sorted(finished.rglob(file))[-1:]
    text = path.read_text()
    document = {"seed": 1234} if file == "config.yaml" else json.loads(text)

    @few
    @given(content=files_like(document))
    def check(content: bytes) -> None:
        def act(folder: Path) -> None:
            (folder / path.relative_to(finished)).write_bytes(content)
            outcome(lambda: run(config_of(tiny_folder, folder)))
            locks.release_all()

        in_a_copy(finished, act)

    check()
