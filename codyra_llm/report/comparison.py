"""A comparison as a table (Markdown, CSV, JSON, LaTeX) and as a plot of forgetting against learning."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codyra_llm.config.grid import Grid, GridRun, grid_runs
from codyra_llm.errors import UserError
from codyra_llm.files import read_json, validated, write_text
from codyra_llm.report import plots
from codyra_llm.results.comparison import OF_ROWS, Contestant, Estimate
from codyra_llm.results.measures import MEASURES
from codyra_llm.results.schema import check_version
from codyra_llm.text import align

IN_LEGEND = 20  # variants
SHOWN = (
    "OP",
    "BWT",
    "general",
    "nll_learned",
    "nll_forgotten",
    "nll_final",
    "text_bits",
    "rank",
    "bytes_kept",
    "seconds",
)


@dataclass
class Comparison:
    """The content of comparison.json.

    Attributes:
        schema_version: version of the format.
        grid: the grid of runs.
        contestants: the compared methods and settings, with their measures.
        tuned: values chosen by a sweep.
        predictors: measure -> its correlation with forgetting.
    """

    schema_version: int
    grid: Grid
    contestants: list[Contestant]
    tuned: dict[str, Any] = field(default_factory=dict)
    predictors: dict[str, Estimate] = field(default_factory=dict)


def read_comparison(folder: Path) -> Comparison:
    """Reads the comparison in a folder.

    Raises:
        UserError: there is none, or it is damaged or of a later version.
    """
    path = folder / "comparison.json"
    content = read_json(path, "name the folder of a comparison that has ended")
    check_version(content, str(path))
    return validated(Comparison, content, str(path), "it is no comparison")


def finished_runs(folders: Sequence[Path]) -> list[tuple[GridRun, Path]]:
    """Returns the runs of comparisons that have results in their folders, in order, each with its own folder.

    Raises:
        UserError: a folder is no comparison, or contains none of its runs.
    """
    runs = [(each, folder / each.folder) for folder in folders for each in grid_runs(read_comparison(folder).grid)]
    found = [(each, run) for each, run in runs if (run / "results.json").is_file()]
    if not found:
        raise UserError(f"{folders[0]}: none of the comparison's runs is here; give the folder that it was run in")
    return found


def write_comparison(found: Comparison, folder: Path) -> None:
    """Writes comparison.{json,csv,md,tex} into a comparison's folder, and prints the table."""
    contestants = found.contestants
    content = json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False)
    write_text(folder / "comparison.json", content + "\n")
    write_text(folder / "comparison.csv", as_csv(contestants))
    write_text(folder / "comparison.md", markdown(contestants, found.grid, found.predictors))
    write_text(folder / "comparison.tex", latex(contestants))
    print(f"\n{console(contestants, found.grid)}\n\nthe comparison is in {folder}")


def console(contestants: Sequence[Contestant], grid: Grid) -> str:
    """Returns the table of `SHOWN` for a terminal."""
    heads = ["", "runs", *(MEASURES[name] for name in SHOWN), f"above the line of {grid.line}"]
    rows = [
        [each.name, str(each.runs), *(shown_cell(each, name) for name in SHOWN), shown_estimate(each.excess)]
        for each in contestants
    ]
    return align([heads, *rows])


def markdown(contestants: Sequence[Contestant], grid: Grid, predicts: Mapping[str, Estimate]) -> str:
    """Returns Markdown with every measure, the paired differences, predictors of forgetting, and failed runs."""
    seeds, orders = (", ".join(map(str, values)) for values in (grid.seeds, grid.orders))
    names = [name for name in MEASURES if any(each.mean[name] is not None for each in contestants)]
    lines = [
        f"Mean +- standard deviation over runs (seeds {seeds}; orders {orders}).",
        "",
        *_table(["", "runs", *(MEASURES[name] for name in names)],
                [[each.name, str(each.runs), *(shown_cell(each, name) for name in names)] for each in contestants]),
        "",
        f"Difference from {grid.line}, paired by run and by row, with 95 % intervals (bootstrap over runs and rows). "
        f"Last column: forgetting above the line of {grid.line} at the same learning; below zero is better than that "
        "line; empty where the line does not reach.",
        "",
        *_table(["", "NLL learned", "NLL forgotten", "NLL at the end", "above the line"],
                [[each.name, *map(shown_estimate, (*map(each.difference.get, OF_ROWS), each.excess))]
                 for each in contestants]),
        *_predictors(predicts),
        *[f"\nFailed: {problem}" for each in contestants for problem in each.failed],
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _predictors(predicts: Mapping[str, Estimate]) -> list[str]:
    if not predicts:
        return []
    rows = [[MEASURES[name], shown_estimate(found)] for name, found in predicts.items()]
    said = "Rank correlation of a run's measures with its NLL forgotten, over all runs (Spearman, bootstrap over runs)."
    return ["", said, "", *_table(["", "correlation"], rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def as_csv(contestants: Sequence[Contestant]) -> str:
    """Returns CSV with a row for each contestant and measure, including differences with their intervals."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["contestant", "variant", "strength", "measure", "runs", "mean", "deviation", "low", "high"])
    for each in contestants:
        start = [each.name, each.variant, "" if each.strength is None else each.strength]
        for name in MEASURES:
            mean, deviation = each.mean[name], each.deviation[name]
            if mean is not None:
                writer.writerow([*start, name, each.runs, mean, "" if deviation is None else deviation, "", ""])
        found = {f"{name}_difference": estimate for name, estimate in each.difference.items()}
        for name, estimate in {**found, "above_the_line": each.excess}.items():
            if estimate:
                writer.writerow([*start, name, each.runs, estimate.value, "", estimate.low, estimate.high])
    return text.getvalue()


def latex(contestants: Sequence[Contestant]) -> str:
    """Returns the table of `SHOWN` in LaTeX, with booktabs."""
    heads = [r"\%".join(MEASURES[name].split("%")) for name in SHOWN]
    rows = [
        " & ".join([_escaped(each.name), *(shown_cell(each, name).replace("+-", r"$\pm$") for name in SHOWN)])
        for each in contestants
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * len(SHOWN)}}}",
            r"\toprule",
            " & ".join(["", *heads]) + r" \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escaped(name: str) -> str:
    return name.replace("_", r"\_")


def shown_cell(each: Contestant, name: str) -> str:
    """Returns the mean of a measure +- its standard deviation; empty if no run has the measure."""
    mean, deviation = each.mean[name], each.deviation[name]
    if mean is None:
        return ""
    is_large = abs(mean) >= 1e5
    form = "{:.2e}" if is_large else f"{{:.{_decimals(name)}f}}"
    is_shown = deviation and (deviation >= abs(mean) / 200 if is_large else float(form.format(deviation)))
    return form.format(mean) + (f" +- {form.format(deviation)}" if is_shown else "")


def _decimals(name: str) -> int:
    return (
        3 if name.startswith(("nll", "text")) else 0 if name in ("bytes_kept", "trainable", "tokens", "seconds") else 2
    )


def shown_estimate(found: Estimate | None) -> str:
    """Returns a difference with its interval as text; empty for None."""
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else ""


def forgetting_figure(contestants: Sequence[Contestant], line: str) -> Any:
    """Plots forgetting (up) against learning (right): one curve for each variant, over its strengths.

    Learning is the NLL right after each task, on an inverted axis, so that more learning is to the right. The variant
    `line` (plain LoRA) is shaded by a standard deviation over runs; a variant below it forgets less than a LoRA that is
    shrunk to the same learning. If there are more variants than a legend can list, only their points are named.
    """
    variants = list(dict.fromkeys(each.variant for each in contestants))
    has_legend = len(variants) <= IN_LEGEND
    figure, axes = plots.make_figure((9, 5.5) if has_legend else (11, 8))
    for number, variant in enumerate(variants):
        found = [
            (each.mean["nll_learned"], each.mean["nll_forgotten"], each.deviation["nll_forgotten"])
            for each in contestants
            if each.variant == variant and each.mean["nll_forgotten"] is not None
        ]
        if not found:
            continue
        xs, ys, errors = zip(*sorted(found, key=lambda each: each[0] or 0), strict=True)
        is_line = variant == line
        axes.errorbar(
            xs,
            ys,
            yerr=[error or 0 for error in errors],
            marker=plots.MARKERS[number % len(plots.MARKERS)],  # colors repeat after eight
            capsize=2,
            linewidth=2.5 if is_line else 1,
            color=plots.INK if is_line else None,
            label=f"{plots.short(variant)} (the line to beat)" if is_line else plots.short(variant),
        )
        if is_line:
            low, high = ([y + sign * (error or 0) for y, error in zip(ys, errors, strict=True)] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=plots.COLORS[7], alpha=0.25, linewidth=0)
        axes.annotate(variant, (xs[0], ys[0]), textcoords="offset points", xytext=(5, 4), fontsize=7,
                      color=plots.INK)  # fmt: skip
    axes.invert_xaxis()
    axes.set_xlabel("NLL of the true answers right after learning (nats a token): further right, more learned")
    axes.set_ylabel("rise of that NLL until the end: forgotten")
    if has_legend and axes.has_data():  # there is none if no run has finished, or if there is only one task
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Forgetting against learning")
    return figure
