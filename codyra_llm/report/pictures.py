"""The pictures of a run: their names, contents and requirements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from codyra_llm.adapter.injection import kind_of, number_of_layer
from codyra_llm.ranks import read_kept_ranks
from codyra_llm.report import plots
from codyra_llm.results.rows import RowScores
from codyra_llm.results.schema import RunResults
from codyra_llm.results.summary import Scores, Summary, general_change, summarize

Depth = dict[str, dict[str, list[tuple[int, float]]]]  # kind of projection -> task -> (layer, rank)


class Run:
    """A run's results and folder, with data that is read from them once for all pictures and parts of a page."""

    def __init__(self, results: RunResults, folder: Path) -> None:
        self.results, self.folder = results, folder
        self.scores = Scores(results, RowScores(folder))

    @cached_property
    def summary(self) -> Summary:
        """The scores and losses of each task."""
        return summarize(self.scores)

    @cached_property
    def depth(self) -> Depth:
        """Kept ranks of the projections that belong to a layer; empty if the folder has no ranks.csv."""
        found: Depth = {}
        kept = read_kept_ranks(self.folder) if (self.folder / "ranks.csv").exists() else {}
        for task, of_task in kept.items():
            for name, rank in of_task.items():
                layer = number_of_layer(name)
                if layer is not None:
                    found.setdefault(kind_of(name), {}).setdefault(task, []).append((layer, rank))
        return found


@dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        name: of its files.
        what: description of what it shows.
        draws: returns a matplotlib figure for a run.
        needs: returns whether a run has the data for it.
    """

    name: str
    what: str
    draws: Callable[[Run], Any]
    needs: Callable[[Run], bool] = lambda run: True


PICTURES = (
    Picture(
        "summary",
        "each task before learning, just learned and now, with intervals",
        lambda run: plots.summary_figure(run.summary, general_change(run.results.general)[0]),
    ),
    Picture("matrix", "the scores as a plot", lambda run: plots.matrix_figure(run.results)),
    Picture(
        "curves",
        "loss, learning rate, threshold and live rank over all steps",
        lambda run: plots.curves_figure(run.results),
        lambda run: any(task.loss for task in run.results.losses),
    ),
    Picture(
        "likelihood",
        "how likely the true answers of each task are after each task",
        lambda run: plots.likelihood_figure(run.results),
        lambda run: any(nll is not None for row in run.results.answer_nll for nll in row),
    ),
    Picture(
        "ranks",
        "mean surviving rank of each kind of projection and task",
        lambda run: plots.ranks_figure(run.results),
        lambda run: bool(run.results.ranks),
    ),
    Picture(
        "depth",
        "surviving rank of each projection and layer in each task",
        lambda run: plots.depth_figure(run.depth, run.results.ranks[0].initial),
        lambda run: bool(run.results.ranks and run.depth),
    ),
    Picture(
        "general",
        "each suite of general ability after each task, where suites are configured",
        lambda run: plots.general_figure(run.results),
        lambda run: bool(run.results.general.scores),
    ),
)


def write_pictures(run: Run, pictures: Sequence[Picture] = PICTURES) -> dict[str, str]:
    """Writes those pictures that a run has data for as PNG and SVG; returns their SVG for a page, by name.

    Raises:
        OSError: the folder cannot be written.
    """
    inline = {}
    for picture in pictures:
        if picture.needs(run):
            figure = plots.draw(partial(picture.draws, run))
            inline[picture.name] = plots.write_picture(figure, run.folder, picture.name, picture.what)
    return inline
