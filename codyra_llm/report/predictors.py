"""Predictors of forgetting: the table of rank correlations, and a plot of forgetting over each measure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codyra_llm.files import check_once
from codyra_llm.report import plots
from codyra_llm.report.comparison import finished_runs, shown_estimate
from codyra_llm.results.comparison import Estimate
from codyra_llm.results.measures import MEASURES, measures
from codyra_llm.results.schema import read_results
from codyra_llm.text import align

Numbers = Mapping[str, float | None]


def read_runs(folders: Sequence[Path]) -> Sequence[Numbers]:
    """Returns the measures of every finished run of some comparisons.

    Raises:
        UserError: a folder is no comparison or is given twice, or none of the runs has finished in its folder.
    """
    check_once(folders)
    return [measures(read_results(run), run) for _, run in finished_runs(folders)]


def predictors_table(found: Mapping[str, Estimate], count: int) -> str:
    """Returns a table of the correlations, the strongest first; `count`: number of runs."""
    ordered = sorted(found.items(), key=lambda item: -abs(item[1].value))
    rows = [[MEASURES[name], shown_estimate(estimate)] for name, estimate in ordered]
    return align([[f"over {count} runs", "rank correlation with NLL forgotten"], *rows])


def plot_predictors(runs: Sequence[Numbers], found: Mapping[str, Estimate], path: Path) -> Path:
    """Plots the forgetting of each run (nats per token) over each measure, a panel each; returns the path."""

    def of() -> Any:
        columns = min(3, len(found))
        lines = -(-len(found) // columns)
        figure, panels = plots.make_panels(lines, columns, (2.9 * columns, 2.4 * lines), sharey=True)
        for axes, (name, estimate) in zip(panels, found.items(), strict=False):
            pairs = [(run[name], run["nll_forgotten"]) for run in runs]
            known = [pair for pair in pairs if None not in pair]
            axes.scatter(*zip(*known, strict=True), s=10)
            axes.set_xlabel(MEASURES[name])
            axes.set_title(f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]")
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        for axes in panels[::columns]:
            axes.set_ylabel("NLL forgotten")
        return figure

    plots.save_figure(plots.draw(of), path)
    return path
