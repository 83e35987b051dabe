"""The share of the variance of kept ranks that tasks and projections explain, compared with noise between seeds."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codyra_llm.config import RunConfig, differences, load_config
from codyra_llm.errors import UserError
from codyra_llm.files import check_once
from codyra_llm.ranks import read_kept_ranks
from codyra_llm.results.schema import read_results

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KeptRanks:
    """The kept ranks [runs, tasks, projections] of runs of one method that differ only in their seeds."""

    tasks: list[str]
    projections: list[str]
    ranks: Array


@dataclass(frozen=True)
class Shares:
    """Shares of the variance of kept ranks; they sum to one, or are all zero if there is no variance.

    Attributes:
        task: share of the task means.
        projection: share of the projection means.
        both: share of the interaction of task and projection.
        noise: share of the variance between runs that differ only in the seed.
    """

    task: float
    projection: float
    both: float
    noise: float

    @property
    def explained(self) -> float:
        """The sum of all shares except noise."""
        return self.task + self.projection + self.both


def read_ranks(runs: Sequence[Path]) -> KeptRanks:
    """Reads the kept ranks of finished runs of one configuration with several seeds.

    Raises:
        UserError: there are fewer than two runs, they differ in more than the seed, or two have the same seed.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run: what a seed changes is seen in two at least; give their folders")
    check_once(runs)
    found: list[Array] = []
    tasks: list[str] = []
    names: list[str] = []
    first: RunConfig | None = None
    of_seeds: dict[int, Path] = {}
    for run in runs:
        read_results(run)  # raises a clear error if the folder contains no run
        of_run = read_kept_ranks(run)
        saved = load_config(run / "config.yaml")
        config = dataclasses.replace(saved, seed=0)
        if others := differences(first or config, config):
            raise UserError(
                f"{run}: differs from {runs[0]} in more than its seed: {others[0]}; give runs of one setting"
            )
        first = config
        if saved.seed in of_seeds:
            raise UserError(
                f"{run}: has the seed {saved.seed}, as {of_seeds[saved.seed]} has; give runs that differ in it"
            )
        of_seeds[saved.seed] = run
        own_tasks, own_names = list(of_run), list(next(iter(of_run.values()), {}))
        tasks, names = tasks or own_tasks, names or own_names
        if own_tasks != tasks or any(list(of_task) != names for of_task in of_run.values()):
            raise UserError(
                f"{run}: its tasks or projections are others than those of {runs[0]}; give runs of one order"
            )
        found.append(np.array([list(of_task.values()) for of_task in of_run.values()]))
    return KeptRanks(tasks, names, np.stack(found))


def variance_shares(ranks: Array) -> Shares:
    """Returns the variance components of [runs, tasks, projections] in a two-way analysis with random effects.

    Each component is estimated from mean squares, so that the noise that remains in the mean of few runs does not count
    as explained; estimates below zero are set to zero.
    """
    runs, tasks, projections = ranks.shape
    cells = ranks.mean(axis=0)
    of_tasks, of_projections, mean = cells.mean(axis=1), cells.mean(axis=0), cells.mean()
    noise = ((ranks - cells) ** 2).sum() / (tasks * projections * (runs - 1))
    beside = cells - of_tasks[:, None] - of_projections + mean
    both = runs * (beside**2).sum() / max(1, (tasks - 1) * (projections - 1))
    by_task = runs * projections * ((of_tasks - mean) ** 2).sum() / max(1, tasks - 1)
    by_projection = runs * tasks * ((of_projections - mean) ** 2).sum() / max(1, projections - 1)
    components = np.array(
        [
            (by_task - both) / (runs * projections),
            (by_projection - both) / (runs * tasks),
            (both - noise) / runs,
            noise,
        ]
    ).clip(min=0)
    total = components.sum()
    return Shares(*(float(part / total) if total else 0.0 for part in components))
