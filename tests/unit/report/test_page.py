"""The page of a run: its content, and that no name, answer, missing value or size breaks it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from codyra_llm.evaluation.general.scores import SuiteScore
from codyra_llm.report.page.run import report, run_page
from codyra_llm.report.pictures import PICTURES, Run
from codyra_llm.results.schema import (
    Data,
    General,
    ModelFacts,
    Phase,
    TaskData,
    TaskLosses,
    TaskRanks,
    new_results,
    read_results,
    to_text,
)

HOSTILE = "<script>document.title = 'mine'</script><img src=x onerror=\"document.title='mine'\">"
VOID = {"meta", "input", "br", "img", "link", "hr"}


def made(folder: Path, tasks: list[str], rows: int = 4, answer: str = "dovish", finished: bool = True) -> Run:
    """Returns a run with all files of a page; its tasks go from 0 to 75 and then lose the score of one row."""
    data = Data("trace", "1", [TaskData(task, 9, 0, rows, 3, {"test": "0" * 64}) for task in tasks])
    source: dict[str, Any] = {
        "schema_version": 1,
        "command": ["codyra", "train"],
        "versions": {"torch": "2"},
        "config": {"evaluate": {"scorer_variant": "lenient"}, "method": "codyra"},
        "seed": 1,
        "world_size": 1,
        "zero_stage": 2,
        "model": ModelFacts("llama", "LlamaForCausalLM", 7),
    }
    results = new_results(source, data, General())
    (folder / "predictions").mkdir(parents=True)
    for stage in results.stages:
        for number, task in enumerate(tasks, 1):
            right = 0 if stage.number < number else rows - 1 - (stage.number > number)
            score = 100 * right / rows
            for matrix in (results.matrix, *results.matrices.values()):
                matrix[stage.number][number - 1] = score
            results.answer_nll[stage.number][number - 1] = 2 - score / 100
            lines = [
                {"prompt": f"{row}?", "prediction": answer, "reference": "hawkish", "nll": 2 - score / 100,
                 "scores": dict.fromkeys(results.matrices, 100.0 * (row < right))}
                for row in range(rows)
            ]  # fmt: skip
            path = folder / "predictions" / f"{stage.name}.{task}.jsonl"
            path.write_text("\n".join(map(json.dumps, lines)))
    for task in tasks:
        results.losses.append(TaskLosses(task, [2.0, 1.0, 0.5], live_rank=[4.0, 4.0, 3.0]))
        results.ranks.append(TaskRanks(task, 3.5, 4, {"q_proj": 3.0, "v_proj": 4.0}, 0.5, 0.75))
        results.phases.append(Phase(task, "train", 2.5, 100, 10**9))
    modules = [f"model.layers.{layer}.{kind}" for layer in range(2) for kind in ("q_proj", "v_proj")]
    kept = [f'"{task}",{module},3' for task in tasks for module in modules]
    (folder / "ranks.csv").write_text("\n".join(["task,module,rank", *kept]))
    if finished:
        results.phases.append(Phase(tasks[-1], "save"))
    (folder / "results.json").write_text(to_text(results))
    return Run(results, folder)


class Checked(HTMLParser):
    """A parser that fails if an element is not closed in order or an id occurs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") for name, _ in attributes)
        self.scripts += tag == "script"
        if name := dict(attributes).get("id"):
            assert name not in self.ids, name
            self.ids.add(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()


def check(page: str) -> Checked:
    """Asserts that a page is well-formed, loads nothing from the network and has no script but ours."""
    found = Checked()
    found.feed(page)
    found.close()
    assert not found.open
    assert found.scripts == 1
    assert not re.search(r'(?:src|href)="(?!#|data:image/png;base64,)', page.replace("xlink:", ""))
    return found


def test_a_run_in_words(tmp_path: Path) -> None:
    made(tmp_path / "run", ["FOMC", "Py150"], rows=100)
    page = report(tmp_path / "run").read_text()
    check(page)
    assert "learned 0 → 99, now 98 (−1.0 [" in page and "no change that 100 rows can tell from chance" in page
    assert "Of the task that others followed, the mean loss is 1.0 [" in page
    assert "nothing was learned after it" in page and '<meta http-equiv="refresh"' not in page
    names = {path.name for path in (tmp_path / "run").iterdir()}
    pictures = [picture.name for picture in PICTURES if picture.name != "general"]
    assert names >= {f"{name}.{ending}" for name in pictures for ending in ("png", "svg")}
    assert "<text" in (tmp_path / "run" / "summary.svg").read_text(), "text stays text"


def test_hostile_names_and_answers_are_text(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["<b>x$y$&'\"", "二つ目 العربية"], answer=HOSTILE)
    page = report(run.folder).read_text()
    check(page)
    assert HOSTILE not in page and "&lt;script&gt;document.title" in page
    assert "&lt;b&gt;x$y$&amp;" in page and "二つ目 العربية" in page
    assert 'class="text" dir="auto"' in page


@pytest.mark.parametrize("tasks", [1, 40])
def test_one_task_and_forty(tasks: int, tmp_path: Path) -> None:
    made(tmp_path / "run", [f"task {number}" for number in range(tasks)], answer="<&>" * 300)
    path = report(tmp_path / "run")
    check(path.read_text())
    assert path.stat().st_size < 3e6


def test_what_is_missing_is_a_dash(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["FOMC", "Py150"], finished=False)
    results = run.results
    results.matrix[2], results.answer_nll[2] = [None, None], [None, None]
    results.matrix[0][1] = results.matrix[1][1] = results.answer_nll[1][0] = None
    results.general.add(results.stages, results.stages[0], {"mmlu": SuiteScore(40.0, None, "percent", True, "acc", 4)})
    (run.folder / "ranks.csv").unlink()
    (run.folder / "results.json").write_text(to_text(results))
    page = report(run.folder, refresh=True).read_text()
    check(page)
    assert "1 of 2 tasks are learned" in page and "Py150</b>: not learned yet; not measured" in page
    assert '<meta http-equiv="refresh"' in page and ">–</td>" in page


def test_results_alone_and_of_an_earlier_format(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["FOMC", "Py150"])
    content = json.loads(to_text(run.results))
    for late in ("general", "metrics", "sessions", "divergence", "routing", "further", "losses", "ranks"):
        del content[late]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(content))
    page = report(tmp_path / "old").read_text()
    check(page)
    assert "learned 0 → 75, now 50" in page and "keeps no answers" in page


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["FOMC"])
    path = run.folder / "predictions" / "1-FOMC.FOMC.jsonl"
    path.write_text('{"prompt": 3}\n')
    with pytest.raises(Exception, match=r"1-FOMC\.FOMC\.jsonl line 1: .*restore"):
        report(run.folder)


def test_a_likelihood_that_is_not_finite(tmp_path: Path) -> None:
    run = made(tmp_path / "run", ["FOMC", "Py150"])
    path = run.folder / "predictions" / "2-Py150.FOMC.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["nll"] = None
    path.write_text("\n".join(map(json.dumps, rows)))
    run.results.answer_nll[2][0] = None
    assert math.isfinite(len(run_page(run, {}))) and read_results(run.folder)
