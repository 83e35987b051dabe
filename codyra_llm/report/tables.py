"""Tables for the console and the model card, from the data of results.json."""

from collections.abc import Mapping

from codyra_llm.data import raw_text
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.evaluation.matrix import DEFINITIONS
from codyra_llm.results.comparison import Estimate
from codyra_llm.results.schema import General, PromptFileResults, RunResults
from codyra_llm.results.summary import Summary, general_change
from codyra_llm.text import align

SHOWN_METRICS = (
    ("OP", "OP, mean of the last row"),
    ("BWT", "BWT, mean of last minus just learned (GEM, TRACE)"),
    ("forgetting_clipped_over_T", "forgetting, clipped, over T (TreeLoRA)"),
    ("forgetting_chaudhry_max_from_own_task", "forgetting, best minus last (Chaudhry)"),
    ("FWT", "FWT, before learning minus base (GEM)"),
    ("transfer", "Transfer (MTIL)"),
    ("average", "Average (MTIL)"),
)
LAST = ("last", "Last (MTIL)")  # OP under the name of MTIL, shown if the domain's benchmarks use it


def matrix_table(results: RunResults) -> str:
    """Returns the scores of every task after every task; [..] marks the task just learned."""
    tasks = results.tasks
    rows = [["", *tasks, "mean"]]
    for stage, scores in zip(results.stages, results.matrix, strict=True):
        own = stage.number - 1
        cells = ["" if s is None else f"[{s:.1f}]" if i == own else f"{s:.1f} " for i, s in enumerate(scores)]
        known = [s for s in scores if s is not None]
        rows.append([stage.title, *cells, f"{sum(known) / len(known):.1f}" if len(known) == len(tasks) else ""])
    return align(rows)


def nll_table(results: RunResults) -> str:
    """Returns the NLL of the reference answers, nats per token or image: lower is better."""
    tasks = results.tasks
    rows = [["", *tasks]]
    for stage, losses in zip(results.stages, results.answer_nll, strict=True):
        rows.append([stage.title, *("" if nll is None else f"{nll:.3f}" for nll in losses)])
    return align(rows)


def text_table(results: RunResults) -> str:
    """Returns the bits per byte of raw-text tasks, from their scores: lower is better; empty if there are none."""
    numbers = [number for number, task in enumerate(results.data.tasks) if task.scorer == raw_text.SCORER]
    if not numbers:
        return ""
    rows = [["", *(results.tasks[number] for number in numbers)]]
    for stage, scores in zip(results.stages, results.matrix, strict=True):
        found = [scores[number] for number in numbers]
        rows.append([stage.title, *("" if score is None else f"{raw_text.as_bits(score):.3f}" for score in found)])
    return align(rows)


def further_table(results: RunResults) -> str:
    """Returns the scores by the further scorers (not the first) of tasks that have several; empty if there are none."""
    columns = [(task, name, scores) for task, found in results.further.items() for name, scores in found.items()]
    if not columns:
        return ""
    rows = [["", *(f"{task} {name}" for task, name, _ in columns)]]
    for stage in results.stages:
        found = [scores[stage.number] for _, _, scores in columns]
        rows.append([stage.title, *("" if score is None else f"{score:.1f}" for score in found)])
    return align(rows)


def metrics_table(results: RunResults) -> str:
    """Returns the main metrics of the matrix in every scoring variant."""
    variants = list(results.metrics)
    rows = [["", *variants]]
    for key, label in _shown_metrics(results):
        values = [results.metrics[variant].get(key) for variant in variants]
        rows.append([label, *("" if value is None else f"{value:.2f}" for value in values)])
    return align(rows)


def _shown_metrics(results: RunResults) -> list[tuple[str, str]]:
    """Returns (name, label) of the shown metrics, first those that the domain's benchmarks report."""
    leading = results.data.facts.leading
    labels = dict([*SHOWN_METRICS, *([LAST] if leading else [])])
    return [(name, labels[name]) for name in dict.fromkeys([*leading, *labels])]


def leading_rows(results: RunResults) -> list[list[str]]:
    """Returns headings, and each variant's metrics that the domain's benchmarks report; empty if there are none."""
    leading, labels = results.data.facts.leading, dict([*SHOWN_METRICS, LAST])
    if not leading or not results.metrics:
        return []
    rows = [["", *(labels[name] for name in leading)]]
    for variant, found in results.metrics.items():
        values = [found.get(name) for name in leading]
        rows.append([variant, *(_number(None if isinstance(value, list) else value) for value in values)])
    return rows


def all_metrics_table(results: RunResults) -> str:
    """Returns every metric of the matrix in every scoring variant, whether higher is better, and its definition."""
    rows = [["", *results.metrics, "better"]]
    lists = []
    for name, definition in DEFINITIONS.items():
        values = [found.get(name) for found in results.metrics.values()]
        cells = ["" if isinstance(value, list) else _number(value) for value in values]
        if any(cells):
            rows.append([name, *cells, "higher" if definition.higher_is_better else "lower"])
        lists += [
            f"{name}, {variant}: {' '.join(_number(each) or '-' for each in value)}"
            for variant, value in zip(results.metrics, values, strict=True)
            if isinstance(value, list)
        ]
    said = [f"{name}: {definition.formula}" for name, definition in DEFINITIONS.items()]
    frame = "R[t,i]: score of task i after task t, R[0,i] that of the base model; T: the number of tasks"
    return "\n".join([align(rows), "", *lists, "", frame, *said])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def end_table(summary: Summary) -> str:
    """Returns each task's score before, just learned and now, and the loss since, with its 95 % interval."""
    rows = [["task", "base", "learned", "now", "lost since", "rows"]]
    for each in summary.tasks:
        points = [_value(found) for found in (each.base, each.learned, each.now)]
        rows.append([each.task, *points, with_interval(each.lost), str(each.rows)])
    if summary.now.number > 1:
        means = [_value(found) for found in (summary.base, summary.learned, summary.end)]
        rows.append([f"mean of {summary.now.number} learned", *means, with_interval(summary.lost), ""])
    return align(rows)


def general_line(general: General) -> str:
    """Returns the change of general ability in one line, with its 95 % interval; empty if it was not measured twice."""
    suites, change = general_change(general)
    parts = ", ".join(f"{each.suite} {each.base:.1f} to {each.now:.1f}" for each in suites if each.unit == "percent")
    if not change:  # a suite of one item has no standard error
        return f"general ability: {parts} (of too few items for an interval)" if parts else ""
    return f"general ability: {with_interval(change, signed=True)} ({parts})"


def rank_line(results: RunResults) -> str:
    """Returns the rank that tasks kept, in one line; empty before the first task has finished."""
    if results.mean_rank is None:
        return ""
    means = [each.mean for each in results.ranks]
    spread = f" ({min(means):.1f} to {max(means):.1f} by task)" if len(means) > 1 else ""
    return f"kept rank: {results.mean_rank:.1f} of {results.ranks[0].initial}{spread}"


def with_interval(found: Estimate | None, signed: bool = False) -> str:
    """Returns a value with its interval, as "3.0 [-2.1, 8.1]"; empty for None."""
    form = "{:+.1f}" if signed else "{:.1f}"
    if found is None:
        return ""
    value, low, high = (form.format(round(each, 1) + 0.0) for each in (found.value, found.low, found.high))  # no -0.0
    return f"{value} [{low}, {high}]"


def _value(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.1f}"


def rank_table(results: RunResults) -> str:
    """Returns the mean surviving rank of each kind of projection, by task, and the norms of the updates."""
    kinds = list(results.ranks[0].by_projection)
    rows = [["", *kinds, "mean", "update norm", "drift"]]
    for of_task in results.ranks:
        by_kind = [f"{of_task.by_projection[kind]:.1f}" for kind in kinds]
        numbers = [f"{of_task.mean:.1f}", f"{of_task.update_norm:.3f}", f"{of_task.cumulative_norm:.3f}"]
        rows.append([of_task.task, *by_kind, *numbers])
    return align(rows)


def general_table(general: General) -> str:
    """Returns the general ability: the score of each suite +- its standard error, a row for each measurement.

    The last column is the change from the base model, if it is known.
    """
    found = general.scores
    suites = list(dict.fromkeys(suite for of_stage in found.values() for suite in of_stage))
    scores = [(suite, score) for of_stage in found.values() for suite, score in of_stage.items()]
    units = {suite: score.unit for suite, score in scores if isinstance(score, SuiteScore)}
    heads = [suite if units.get(suite, "percent") == "percent" else f"{suite} ({units[suite]})" for suite in suites]
    rows = [["", *heads, *(["change"] if general.delta else [])]]
    for name, of_stage in found.items():
        delta = general.delta.get(name)
        change = ["" if delta is None else f"{delta:+.2f}"] if general.delta else []
        rows.append([name, *(_general_cell(of_stage.get(suite)) for suite in suites), *change])
    return align(rows)


def _general_cell(found: SuiteScore | SuiteFailure | None) -> str:
    if found is None:
        return ""
    if isinstance(found, SuiteFailure):
        return "failed"
    decimals = 1 if found.unit == "percent" else 3
    error = "" if found.stderr is None else f" +-{found.stderr:.{decimals}f}"
    return f"{found.score:.{decimals}f}{error}"


def judged_table(files: Mapping[str, PromptFileResults]) -> str:
    """Returns wins, ties, losses and net by prompt file, in percent of the judged pairs, with 95 % intervals."""
    rows = [["", "criterion", "pairs", "identical", "unjudged", "win %", "tie %", "lose %", "net", "order decides %"]]
    for name, of_file in files.items():
        found = of_file.judged
        if not found:
            continue
        judged = of_file.prompts - found.unjudged
        counts = [str(number) for number in (of_file.prompts, found.identical, found.unjudged)]
        shares = [""] * 5
        if judged:
            win = _with_interval(found.win_percent, found.win_interval)
            lose = _with_interval(found.lose_percent, found.lose_interval)
            error = "" if found.net_stderr is None else f" +-{found.net_stderr:.1f}"
            bias = "" if found.order_decides_percent is None else f"{found.order_decides_percent:.1f}"
            shares = [win, f"{100 * found.tie / judged:.1f}", lose, f"{found.net:+.1f}{error}", bias]
        rows.append([name, of_file.criterion, *counts, *shares])
    return align(rows)


def _with_interval(percent: float | None, interval: tuple[float, float] | None) -> str:
    return "" if percent is None or interval is None else f"{percent:.1f} ({interval[0]:.1f} to {interval[1]:.1f})"


def proxies_table(files: Mapping[str, PromptFileResults]) -> str:
    """Returns the proxies that need no judge, for each prompt file and model."""
    rows = [["", "refusals %", "words", "tokens", "checks", "passed %", "prompts passed %"]]
    for name, of_file in files.items():
        for side, found in of_file.proxies.items():
            checks = found.checks
            of_checks = ["" if each is None else f"{each:.1f}" for each in (checks.passed, checks.prompts_passed)]
            numbers = [f"{each:.1f}" for each in (found.refusal_rate, found.mean_words, found.mean_tokens)]
            rows.append([f"{name}, {side}", *numbers, str(checks.count), *of_checks])
    return align(rows)


def markdown(table: str) -> str:
    """Returns a table as a preformatted block."""
    return f"```\n{table}\n```"
