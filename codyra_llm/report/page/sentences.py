"""The results of a run in words: a sentence for each task, and some for the whole run."""

from collections.abc import Sequence
from dataclasses import dataclass

from codyra_llm.report.page.render import interval, number, value
from codyra_llm.results import intervals
from codyra_llm.results.comparison import Estimate
from codyra_llm.results.schema import RunResults
from codyra_llm.results.summary import Summary, TaskSummary, general_change

MOST_NAMES = 6


@dataclass(frozen=True)
class Sentence:
    """A sentence about a task or measure; `kind` is worse, better, unclear, or open if nothing is known yet."""

    about: str
    text: str
    kind: str


def of_task(task: TaskSummary, is_last: bool) -> Sentence:
    """Returns a sentence on how well a task was learned and how much was lost, with the number of rows."""
    rows = f"{task.rows} row{'s' * (task.rows != 1)}"
    if not task.is_learned:
        known = f"the model scores {value(task.now)} ({rows})" if task.now else "not measured"
        return Sentence(task.task, f"not learned yet; {known}.", "open")
    if not task.learned:
        text = f"{value(task.base)} before, {value(task.now)} now ({rows}); not measured when it was just learned."
        return Sentence(task.task, text, "open")
    learned = f"learned {value(task.base)} → {value(task.learned)}" if task.base else f"learned: {value(task.learned)}"
    if is_last:
        gained = f" (gained {interval(task.gained)}, {rows})" if task.gained else f" ({rows})"
        return Sentence(task.task, f"{learned}{gained}; nothing was learned after it.", _kind(task.gained))
    if not task.lost:
        return Sentence(task.task, f"{learned}; what is left of it was not measured.", "open")
    change = intervals.negative(task.lost)
    verdict = {
        "worse": "forgotten, by more than chance",
        "better": "better than when it was learned, by more than chance",
        "unclear": f"no change that {rows} can tell from chance",
    }[_kind(change)]
    return Sentence(
        task.task, f"{learned}, now {value(task.now)} ({interval(change, True)}, {rows}): {verdict}.", _kind(change)
    )


def of_run(results: RunResults, summary: Summary) -> list[Sentence]:
    """Returns sentences on the whole run: tasks, general ability, rank."""
    found = []
    count, total = summary.now.number, len(results.tasks)
    if not results.finished:
        found.append(Sentence("Not finished", f"{count} of {total} tasks are learned and measured.", "open"))
    if count and summary.end:
        tasks = "One task" if count == 1 else f"{count} tasks"
        means = {"before": summary.base, "just learned": summary.learned, "now": summary.end}
        text = "mean score " + ", ".join(f"{value(mean)} {when}" for when, mean in means.items() if mean)
        found.append(Sentence(tasks, f"{text}.{_losses(summary)}", _kind(intervals.negative(summary.lost))))
    suites, change = general_change(results.general)
    if change:
        moved = ", ".join(f"{each.suite} {number(each.base)} → {number(each.now)}" for each in suites)
        verdict = {"worse": "lower", "better": "higher", "unclear": "no change that its items can tell from chance"}
        text = f"{interval(change, True)} points against the base model ({moved}): {verdict[_kind(change)]}."
        found.append(Sentence("General ability", text, _kind(change)))
    if results.ranks:
        kept = f"{number(results.mean_rank)} of {results.ranks[0].initial}"
        text = f"a task kept {kept} components of a projection, on the mean."
        found.append(Sentence("Rank", text, "open"))
    return found


def _losses(summary: Summary) -> str:
    if not summary.lost:
        return ""
    names = [each.task for each in summary.tasks if each.lost and each.lost.low > 0]
    beyond = f" More than chance: {_listed(names)}." if names else " On no single task is it more than chance."
    followed = summary.now.number - 1
    of = "the task" if followed == 1 else f"the {followed} tasks"
    return f" Of {of} that others followed, the mean loss is {interval(summary.lost)}.{beyond}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _kind(change: Estimate | None) -> str:
    if change is None:
        return "open"
    return ("better" if change.value > 0 else "worse") if change.is_decided else "unclear"
