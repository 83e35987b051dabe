"""The contents of a run folder: the list that is used for clearing it and for README's table."""

from dataclasses import dataclass

from codyra_llm.report.pictures import PICTURES


@dataclass(frozen=True)
class Artifact:
    """A file or folder of the run folder.

    Attributes:
        name: in the run folder; with a slash at the end for a folder.
        what: description of its contents; empty if another artifact's description covers it.
    """

    name: str
    what: str


CONFIG = Artifact("config.yaml", "the configuration, ready to run again")
ARTIFACTS = (
    Artifact("model/", "the finished model: transformers loads it, nothing of ours is needed"),
    Artifact(
        "results.json",
        "everything: versions, configuration, data hashes, scores, losses, ranks, norms, seconds, tokens "
        "([schema](codyra_llm/results/results.schema.json))",
    ),
    Artifact("report.html", "what the run did, as a page to look at: one file, without any other"),
    Artifact("matrix.csv", "score of each task after each task; the first row is the base model"),
    Artifact("ranks.csv", "surviving rank, update norm and drift of each module and task"),
    *(Artifact(f"{picture.name}.png", f"{picture.what}; `{picture.name}.svg`: for papers") for picture in PICTURES),
    *(Artifact(f"{picture.name}.svg", "") for picture in PICTURES),
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


def contents_table() -> str:
    """Returns the contents of a run folder as a Markdown table."""
    rows = [f"| `{artifact.name}` | {artifact.what} |" for artifact in (*ARTIFACTS, CONFIG) if artifact.what]
    return "\n".join(["| in the run folder | |", "|---|---|", *rows])
