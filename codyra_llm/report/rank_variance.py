"""The variance of kept ranks: a table of the explained shares, and a plot over tasks, projections and layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codyra_llm.adapter.injection import kind_of, number_of_layer
from codyra_llm.report import plots
from codyra_llm.results.rank_variance import KeptRanks, Shares
from codyra_llm.text import align

SAID = {"task": "task", "projection": "projection", "both": "task x projection", "noise": "noise (between seeds)"}


def shares_table(shares: Shares) -> str:
    """Returns a table of the shares in percent."""
    rows = [[said, f"{100 * getattr(shares, part):.0f} %"] for part, said in SAID.items()]
    return align([["explained by", "variance of kept rank"], *rows])


def plot_kept_ranks(kept: KeptRanks, shares: Shares, path: Path) -> Path:
    """Plots the mean kept rank of each task (rows) by kind of projection and by layer (columns); returns the path."""
    groups = [*_members([kind_of(name) for name in kept.projections]).items()]
    groups += _members([f"layer {number_of_layer(name)}" for name in kept.projections]).items()
    means = np.stack([kept.ranks[:, :, members].mean(axis=(0, 2)) for _, members in groups], axis=1)
    names = [name for name, _ in groups]

    def of() -> Any:
        figure, axes = plots.heatmap(
            means, kept.tasks, names, vmin=0, vmax=float(means.max()), label="rank", form="{:.1f}"
        )
        axes.set_title(
            f"Kept rank, mean over {len(kept.ranks)} seeds; {100 * shares.explained:.0f} % of its variance explained"
        )
        return figure

    plots.save_figure(plots.draw(of), path)
    return path


def _members(names: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name, []).append(number)
    return found
