"""results.json as types: reading and writing, older and damaged files, and the stored schema."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.report.artifacts import ARTIFACTS
from codyra_llm.report.page.run import write_report
from codyra_llm.report.tables import general_table, matrix_table
from codyra_llm.results.schema import (
    DESCRIPTION,
    Data,
    General,
    ModelFacts,
    ModelProvenance,
    Phase,
    RunResults,
    TaskData,
    TaskRanks,
    json_schema,
    new_results,
    parse_results,
    read_results,
    to_text,
)

SOURCE: dict[str, Any] = {
    "schema_version": 1,
    "command": ["train_trace.py"],
    "versions": {"torch": "2"},
    "config": {"evaluate": {"scorer_variant": "lenient"}},
    "seed": 1,
    "world_size": 2,
    "zero_stage": 3,
    "model": ModelFacts("llama", "LlamaForCausalLM", 7),
}
PERCENT = SuiteScore(60.0, 1.5, "percent", True, "acc", 4)


def results() -> RunResults:
    data = Data("trace", "1", [TaskData(task, 9, 0, 5, 3, {"train": "0" * 64}) for task in ("FOMC", "Py150")])
    found = new_results(dict(SOURCE), data, General(items={"mmlu": {"mmlu_law": [1, 4]}}))
    found.matrix[1][0] = 50.0
    found.phases.append(Phase("FOMC", "train", 2.5, 100))
    found.ranks.append(TaskRanks("FOMC", 3.5, 4, {"q_proj": 3.5}, 0.1, 0.1))
    found.metrics = {"lenient": {"OP": None, "OP_per_step": [50.0, None]}}
    return found


def test_a_file_holds_all_that_was_written(tmp_path: Path) -> None:
    found = results()
    found.general.add(found.stages, found.stages[1], {"mmlu": PERCENT, "bbh": SuiteFailure("no room")})
    (tmp_path / "results.json").write_text(to_text(found))
    assert read_results(tmp_path) == found
    assert not found.finished


def test_a_file_from_before_a_field_was_there_is_read() -> None:
    content = json.loads(to_text(results()))
    for late in ("sessions", "checkpoint_seconds", "general", "metrics"):
        del content[late]
    del content["data"]["tasks"][0]["replayed_rows"]
    del content["phases"][0]["resident_bytes"]
    found = parse_results(content, "results.json")
    assert (found.general, found.sessions, found.checkpoint_seconds) == (General(), [], 0.0)
    assert found.data.tasks[0].replayed_rows == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2; this version of codyra_llm reads 1 to 1"),
        ({"schema_version": None}, "schema_version is None"),
        ({"seed": "many"}, "seed: .*integer"),
        ({"matrix": [["a"]]}, r"matrix\.0\.0"),
        ({"matrix": [[1.0, 2.0]]}, "have not one row more than there are tasks"),
        ({"phases": [{"task": "FOMC"}]}, r"phases\.0\.phase: "),
        ({"general": {"scores": {"0-base": {"mmlu": {"score": 1}}}}}, r"general\.scores\.0-base\.mmlu"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_results(json.loads(to_text(results())) | change, "results.json")


def test_what_is_not_finite_is_never_written() -> None:
    found = results()
    found.matrix[0][0] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_text(found)


def test_the_schema_file_describes_the_types() -> None:
    assert json.loads(DESCRIPTION.read_text()) == json_schema(), "write it again: json.dumps(json_schema(), indent=1)"


def test_a_session_adds_itself_and_its_own_hardware() -> None:
    found = results()
    session = ModelProvenance(**{**SOURCE, "world_size": 1, "zero_stage": 0})
    resumed = found.resumed(session, 1, "train", 4)
    assert (resumed.world_size, resumed.zero_stage) == (1, 0)
    assert dataclasses.asdict(resumed.sessions[0]) | {"command": []} == {
        "task": 1,
        "phase": "train",
        "step": 4,
        "command": [],
        "world_size": 1,
        "zero_stage": 0,
    }
    assert resumed.matrix == found.matrix and found.sessions == []


def test_general_ability_stands_in_the_order_of_stages_with_its_change() -> None:
    found = results()
    base, first, second = found.stages
    lower = dataclasses.replace(PERCENT, score=57.0)
    assert found.general.add(found.stages, second, {"mmlu": lower}) is None
    assert found.general.add(found.stages, base, {"mmlu": PERCENT}) == 0
    assert found.general.add(found.stages, first, {"mmlu": SuiteFailure("why")}) is None
    assert found.general.delta == {"0-base": 0, "1-FOMC": None, "2-Py150": -3}
    lines = general_table(found.general).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0-base", "1-FOMC", "2-Py150"]
    assert "failed" in lines[2] and "57.0 +-1.5" in lines[3] and "-3.00" in lines[3]


def test_tables_and_plots_are_made_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(to_text(results()))
    found = read_results(tmp_path)
    table = matrix_table(found)
    assert [line.split("  ")[0] for line in table.splitlines()[1:]] == ["base model", "after FOMC", "after Py150"]
    assert "[50.0]" in table
    write_report(found, tmp_path)
    made = {path.name for path in tmp_path.iterdir()} - {"results.json"}
    pictures = {f"{name}.{ending}" for name in ("summary", "matrix", "ranks") for ending in ("png", "svg")}
    assert made == {"report.html"} | pictures and made < {artifact.name for artifact in ARTIFACTS}
