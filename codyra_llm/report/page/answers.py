"""Answers that changed, for better or worse, and the most frequent wrong answers of a model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

from codyra_llm.evaluation.matrix import Stage
from codyra_llm.report.page.render import clip
from codyra_llm.report.pictures import Run
from codyra_llm.results.rows import Row, read_rows

BUDGET = 1_000_000  # bytes of answers in a page
MOST_OF_TASK = 30
CHANGED = 1.0  # points; smaller differences of scores do not count as a change


@dataclass(frozen=True)
class Changed:
    """An answer that changed.

    Attributes:
        task: name of the task.
        number: of the test row, from 1.
        kind: "lost" or "regained" since the task was learned, "learned" or "worsened" by learning it.
        prompt: the beginning and end of the prompt.
        reference: the reference answer.
        answers: (name of the stage, the model's answer, its score), from the base model on.
    """

    task: str
    number: int
    kind: str
    prompt: str
    reference: str
    answers: list[tuple[str, str, float | None]]

    @property
    def size(self) -> int:
        """Approximate number of bytes in a page."""
        texts = [self.prompt, self.reference, *(answer for _, answer, _ in self.answers)]
        return 700 + sum(len(escape(text).encode()) for text in texts)


@dataclass(frozen=True)
class WrongForms:
    """Counts of the answers of a task that score 0 at the last stage.

    Attributes:
        task: name of the task.
        rows: number of test rows.
        wrong: number of answers that score 0.
        empty: number of empty ones.
        foreign: number of those that are a reference answer of another task and not of this one.
        frequent: the most frequent non-empty ones, with their number.
    """

    task: str
    rows: int
    wrong: int
    empty: int
    foreign: int
    frequent: list[tuple[str, int]]


class Answers:
    """The answers of a run at the compared stages: base model, just learned, and now."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.variant = run.results.config["evaluate"]["scorer_variant"]
        self.last = {task: self._rows(run.summary.now, task) for task in run.results.tasks}

    def _rows(self, stage: Stage, task: str) -> list[Row]:
        rows = read_rows(self.run.folder, stage, task) or []
        return rows if all(self.variant in row.scores for row in rows) else []  # raw text has no answers

    def changed(self) -> list[Changed]:
        """Returns the answers of each task that changed most, up to the size limits of a page."""
        of_tasks = [list(self._of_task(number)) for number in range(len(self.run.results.tasks))]
        found: list[Changed] = []
        size = 0
        for of_rank in zip_longest(*(each[:MOST_OF_TASK] for each in of_tasks)):
            for each in filter(None, of_rank):
                size += each.size
                if size > BUDGET:
                    return _by_task(found, self.run.results.tasks)
                found.append(each)
        return _by_task(found, self.run.results.tasks)

    def _of_task(self, number: int) -> Iterator[Changed]:
        results, now = self.run.results, self.run.summary.now
        task, own = results.tasks[number], results.stages[number + 1]
        stages = [("base model", results.stages[0])]
        stages += [("just learned", own)] if own.number <= now.number else []
        stages += [("now", now)] if own != now else []
        by_stage = [(said, self.last[task] if stage == now else self._rows(stage, task)) for said, stage in stages]
        if len(by_stage) < 2 or len({len(rows) for _, rows in by_stage}) > 1:
            return
        found = []
        for place, of_row in enumerate(zip(*(rows for _, rows in by_stage), strict=True)):
            scores = [row.scores[self.variant] for row in of_row]
            kind, weight = _kind(scores, own.number <= now.number)
            if kind:
                answers = [
                    (said, clip(row.prediction.strip()), row.scores[self.variant])
                    for (said, _), row in zip(by_stage, of_row, strict=True)
                ]
                last = of_row[-1]
                entry = Changed(task, place + 1, kind, clip(last.prompt, 500), clip(last.reference), answers)
                found.append((weight, -place, entry))
        yield from (entry for _, _, entry in sorted(found, key=lambda each: each[:2], reverse=True))

    def wrong_forms(self) -> list[WrongForms]:
        """Returns the wrong answers of each task at the last stage, without tasks that have no stored answers."""
        references = {task: {row.reference.strip() for row in rows} for task, rows in self.last.items()}
        found = []
        for task, rows in self.last.items():
            wrong = [row.prediction.strip() for row in rows if row.scores[self.variant] == 0]
            others = set().union(*(known for name, known in references.items() if name != task)) - references[task]
            given = Counter(clip(text, 80) for text in wrong if text)
            frequent = [(text, count) for text, count in given.most_common(3) if count > 1]
            empty, foreign = wrong.count(""), sum(text in others for text in wrong if text)
            if rows:
                found.append(WrongForms(task, len(rows), len(wrong), empty, foreign, frequent))
        return found


def _kind(scores: Sequence[float], is_learned: bool) -> tuple[str, float]:
    """Returns (kind of change, weight) of an answer; changes since the task was learned weigh more than those by it."""
    since = scores[-1] - scores[1] if is_learned and len(scores) > 2 else 0.0
    if abs(since) >= CHANGED:
        return ("regained" if since > 0 else "lost"), 200 + abs(since)
    by = scores[1] - scores[0]
    if abs(by) >= CHANGED and is_learned:
        return ("learned" if by > 0 else "worsened"), abs(by)
    return "", 0.0


def _by_task(found: Sequence[Changed], tasks: Sequence[str]) -> list[Changed]:
    return sorted(found, key=lambda each: tasks.index(each.task))
