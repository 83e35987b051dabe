"""`codyra selfcheck` on the CPU: all of its parts run, and the correctness checks pass."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from codyra_llm.selfcheck.parts import PARTS
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of all parts."""
    folder = tmp_path_factory.mktemp("selfcheck")
    command = [sys.executable, "-m", "benchmarks.gpu", "--cpu", "--minutes", "20", "--output_dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return folder


def test_all_parts_run_and_pass(checked: Path) -> None:
    content = json.loads((checked / "selfcheck.json").read_text())
    assert [part["part"] for part in content["parts"]] == [part.name for part in PARTS]
    needed = {"bases in 4 and 8 bits": "bitsandbytes", "kernels": "triton", "fused layer": "triton"}
    for part in content["parts"]:
        package = needed.get(part["part"], "torch")
        if find_spec(package) and part["kind"] == "correctness":
            assert part["status"] == "passed", part
        assert part["status"] != "failed" or part["kind"] == "memory", part
        assert part["rows"], part


def test_the_tables_show_what_the_file_holds(checked: Path) -> None:
    page = (checked / "selfcheck.md").read_text()
    for part in PARTS:
        assert f"**{part.name}**" in page
    assert "nan" not in page


def test_a_step_waits_for_the_device_as_often_however_many_branches_there_are(checked: Path) -> None:
    parts = json.loads((checked / "selfcheck.json").read_text())["parts"]
    (rows,) = (part["rows"] for part in parts if part["part"] == "synchronisations")
    times = {row["where"]: row["times"] for row in rows}
    assert not [place for place in times if place.startswith("codyra_llm/adapter/")], times
    assert times["all of a step"] <= 6, times  # two micro batches of the 28 branches of the nano model
