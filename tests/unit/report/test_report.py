"""Tables made of results, and the run folder: what is written, deleted and refused."""

import dataclasses
from pathlib import Path

import pytest

from codyra_llm.adapter.merging import ModuleRank
from codyra_llm.config import RunConfig, load_config
from codyra_llm.errors import UserError
from codyra_llm.generation.generate import Answered
from codyra_llm.report.folder import RunFolder, scores_folder, start_log
from codyra_llm.report.tables import markdown, matrix_table, metrics_table, nll_table, rank_table
from codyra_llm.results.schema import TaskRanks
from tests.unit.test_results import results


def config_of(folder: Path, **overrides: object) -> RunConfig:
    return load_config(None, {"output_dir": str(folder), **overrides})


def test_the_matrix_marks_what_was_just_learned_and_leaves_blanks() -> None:
    found = results()
    found.matrix = [[10.0, 20.0], [50.0, None], [40.0, 60.04]]
    assert [line.split() for line in matrix_table(found).splitlines()] == [
        ["FOMC", "Py150", "mean"],
        ["base", "model", "10.0", "20.0", "15.0"],
        ["after", "FOMC", "[50.0]"],
        ["after", "Py150", "40.0", "[60.0]", "50.0"],
    ]
    found.answer_nll = [[1.0, 2.0], [0.5, None], [0.25, 1.0]]
    assert nll_table(found).splitlines()[2].split() == ["after", "FOMC", "0.500"]


def test_numbers_of_each_variant_and_ranks_of_each_kind() -> None:
    found = results()
    found.metrics = {"lenient": {"OP": 50.0, "BWT": None}, "moram": {"OP": 1.005, "BWT": -3.0}}
    lines = metrics_table(found).splitlines()
    assert lines[0].split() == ["lenient", "moram"]
    assert lines[1].split()[-2:] == ["50.00", "1.00"] and lines[2].split()[-1] == "-3.00"
    found.ranks = [TaskRanks("FOMC", 3.5, 4, {"q_proj": 3.0, "v_proj": 4.0}, 0.5, 0.75)]
    assert rank_table(found).splitlines()[1].split() == ["FOMC", "3.0", "4.0", "3.5", "0.500", "0.750"]
    assert markdown("a").splitlines() == ["```", "a", "```"]


def test_a_new_folder_is_made_and_an_earlier_start_is_cleared(tmp_path: Path) -> None:
    folder = RunFolder(config_of(tmp_path / "run"))
    folder.open()
    (folder.path / "matrix.csv").write_text("old")
    (folder.path / "notes.txt").write_text("the user's own")
    folder.open(resumed=True)
    assert (folder.path / "matrix.csv").exists()
    folder.open()
    assert not (folder.path / "matrix.csv").exists() and (folder.path / "notes.txt").exists()
    assert load_config(folder.path / "config.yaml") == folder.config
    folder.unlock()


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path.write_text(""), "is a file; name a folder"),
        (lambda path: (path.mkdir(), (path / "thesis.tex").write_text("")), "holds files that are not a run"),
        (lambda path: (path.mkdir(), (path / "config.yaml").write_text("seed: 5\n")), "another configuration"),
        (lambda path: (path.mkdir(), (path / "config.yaml").write_text("seed: [")), "another configuration"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_the_runs_own(prepare: object, problem: str, tmp_path: Path) -> None:
    assert callable(prepare)
    prepare(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=problem):
        RunFolder(config_of(tmp_path / "run"))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_results_do_not_depend_on_may_differ(tmp_path: Path) -> None:
    first = RunFolder(config_of(tmp_path / "run"))
    first.open()
    first.unlock()
    RunFolder(config_of(tmp_path / "run", **{"evaluate.batch_size": 3})).unlock()
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds a training run"):
        scores_folder(config_of(tmp_path / "run"))


def test_answers_are_kept_until_they_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(config_of(tmp_path / "run"))
    folder.open()
    given = {"key": Answered("text", 3, 1.5, True), "other": Answered("", 0, 0.0, False)}
    folder.append_answers("1-FOMC", {"key": given["key"]})
    folder.append_answers("1-FOMC", {"other": given["other"]})
    assert folder.read_answers("1-FOMC") == given and folder.read_answers("2-Py150") == {}
    folder.drop_answers()
    assert folder.read_answers("1-FOMC") == {}
    folder.unlock()


def test_ranks_of_a_task_that_is_learned_again_are_replaced(tmp_path: Path) -> None:
    folder = RunFolder(config_of(tmp_path / "run"))
    folder.open()
    module = ModuleRank("m", 2, 4, 0.5, 1.0)
    folder.append_ranks("a", [module], {"m": 0.5})
    folder.append_ranks("b", [module], {"m": 0.75})
    folder.append_ranks("b", [dataclasses.replace(module, rank=3)], {})
    lines = (folder.path / "ranks.csv").read_text().splitlines()
    assert lines[1:] == ["a,m,2,4,0.5,1,0.5", "b,m,3,4,0.5,1,0"]
    folder.unlock()


def test_the_log_is_silent_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = start_log(tmp_path / "run.log")
    log.info("said")
    start_log(None).info("not said")
    assert capsys.readouterr().err == "said\n"
    assert (tmp_path / "run.log").read_text().endswith(" said\n")
