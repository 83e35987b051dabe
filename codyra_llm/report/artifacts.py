"""What a run folder holds: the one list from which it is cleared, its plots are made and README's table is written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codyra_llm.report.plots import plot_general, plot_matrix, plot_ranks
from codyra_llm.results.schema import RunResults


@dataclass(frozen=True)
class Artifact:
    """A file or folder of the run folder.

    Attributes:
        name: in the run folder; a folder's ends with a slash.
        what: it holds.
        made: for what is made from the results alone: writes it to a path.
        needs: whether the results hold what it is made from.
    """

    name: str
    what: str
    made: Callable[[RunResults, Path], None] | None = None
    needs: Callable[[RunResults], bool] = lambda results: True


CONFIG = Artifact("config.yaml", "the configuration, ready to run again")
ARTIFACTS = (
    Artifact("model/", "the finished model: transformers loads it, nothing of ours is needed"),
    Artifact(
        "results.json",
        "everything: versions, configuration, data hashes, scores, losses, ranks, norms, seconds, tokens "
        "([schema](codyra_llm/results/results.schema.json))",
    ),
    Artifact("matrix.csv", "score of each task after each task; the first row is the base model"),
    Artifact("matrix.png", "the same as a plot", plot_matrix),
    Artifact("ranks.csv", "surviving rank, update norm and drift of each module and task"),
    Artifact("ranks.png", "mean surviving rank of each kind of projection and task", plot_ranks),
    Artifact(
        "general.png",
        "each suite of general ability after each task, where suites are configured",
        plot_general,
        needs=lambda results: bool(results.general.scores),
    ),
    Artifact("predictions/", "every answer that was scored, with every score, those of general ability as well"),
    Artifact("ledger/", "each task's update, as a LoRA adapter in PEFT's format, and what they belong to"),
    Artifact("kept/", "what a method keeps of finished tasks, where it does"),
    Artifact("checkpoints/", "where an interrupted run resumes"),
    Artifact("tensorboard/", "curves"),
    Artifact("tracking.json", "the ids of the run at Weights & Biases and MLflow, where it is tracked there"),
    Artifact("wandb/", "what Weights & Biases keeps here"),
    Artifact("mlflow.db", "what MLflow keeps, unless MLFLOW_TRACKING_URI names another place"),
    Artifact("train.log", "the log of a run"),
    Artifact("scores.log", "the log of scoring a model that was not trained"),
)


def write_plots(results: RunResults, folder: Path) -> None:
    """Makes every artifact that is made from results, as far as these hold what it needs."""
    for artifact in ARTIFACTS:
        if artifact.made and artifact.needs(results):
            artifact.made(results, folder / artifact.name)


def contents_table() -> str:
    """The run folder's contents as a Markdown table."""
    rows = [f"| `{artifact.name}` | {artifact.what} |" for artifact in (*ARTIFACTS, CONFIG)]
    return "\n".join(["| in the run folder | |", "|---|---|", *rows])
