"""The interface of a domain: text, which a causal model generates, or images, which CLIP classifies.

The domain of a run is found once (`domains.find`), when the run is planned. All that differs between domains is
behind this interface; everything else (branches, methods, ZeRO, ledger, checkpoints, matrix) is independent of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig, RunConfig
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.chat import ChatTemplate
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.distributed.ranks import Ranks
from codyra_llm.domains.facts import Facts
from codyra_llm.engine.learning import Learning
from codyra_llm.evaluation.evaluate import TaskScores
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.example import Example
from codyra_llm.generation.generate import Answered, Ask, Question
from codyra_llm.methods.base import Method
from codyra_llm.models.source import Source


@dataclass(frozen=True)
class Rows:
    """The rows of a stream's tasks as examples: in each split, one sequence of examples for each task.

    Attributes:
        templates: the chat template of each task; None where prompts are used as they are.
        notes: remarks for the user, one line each.
    """

    train: list[Sequence[Example]] = field(default_factory=list)
    test: list[Sequence[Example]] = field(default_factory=list)
    validation: list[Sequence[Example]] = field(default_factory=list)
    templates: list[ChatTemplate | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Answer(Protocol):
    """The signature of `generation.generate.answer_questions`, where the arguments are described."""

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        batch_size: int = 16,
        ranks: Ranks | None = None,
        answered: dict[int, Answered] | None = None,
        on_round: Callable[[dict[int, Answered]], None] = lambda fresh: None,
        synced: bool = False,
    ) -> list[Answered]:
        """Answers the questions; returns the answers in the order of the questions, the same on every rank."""


class Suite(Protocol):
    """Data that a model's general ability is measured on, in addition to the tasks that it learns."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""

    @property
    def label(self) -> str:
        """The name in the form used in file names."""

    @property
    def items(self) -> dict[str, list[int]]:
        """The numbers of the items that are asked, by the name of their task."""

    @property
    def digest(self) -> str:
        """A hash that changes when the questions, or the way they are asked, change."""


class Domain(Protocol):
    """A kind of data, the models that learn it, and how they are trained and scored on it.

    Attributes:
        facts: how reports describe the domain.
        learning: the module that an engine wraps, and the objective of a step.
        answer: how a model answers questions.
    """

    facts: Facts
    learning: Learning
    answer: Answer

    def settled(self, config: RunConfig) -> RunConfig:
        """Returns the configuration with the domain's own defaults filled in.

        Raises:
            UserError: a setting, or the method, has no meaning in this domain.
        """

    def open(self, config: RunConfig) -> Source:
        """Opens the model that the configuration names.

        Raises:
            UserError: this domain cannot train the model, or a file that belongs to the model is missing.
        """

    def stream(self, config: RunConfig, stream: TaskStream | None, to_train: bool) -> TaskStream:
        """Returns the tasks with their rows: those of `stream` if given, else those that the configuration names.

        Raises:
            UserError: they cannot be read, learned or scored.
        """

    def check_method(self, config: RunConfig, source: Source, method: Method) -> None:
        """Raises UserError if the method, or another training setting, is incompatible with the model."""

    def rows(self, config: RunConfig, source: Source, stream: TaskStream) -> Rows:
        """Converts the rows of all tasks to examples.

        Raises:
            UserError: the model cannot read one of the rows.
        """

    def hashes(self, task: Task) -> dict[str, str]:
        """Returns the SHA-256 hashes of a task's data, by the name of a file or a part."""

    def suites(self, config: RunConfig, source: Source, learned: Sequence[str]) -> Sequence[Suite]:
        """Loads the suites that the configuration names, with their data.

        Args:
            learned: names of the tasks that the run learns.

        Raises:
            UserError: one is unknown, named twice or cannot be read.
        """

    def score_suites(
        self, suites: Sequence[Any], source: Source, template: ChatTemplate | None, ask: Ask
    ) -> tuple[dict[str, SuiteScore | SuiteFailure], dict[str, list[dict[str, Any]]]]:
        """Scores a model on suites; returns (scores by suite name, all answers by suite label)."""

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Raises UserError if a loaded model cannot run the way this domain runs it."""

    def scored(
        self, tasks: Sequence[Task], examples: Sequence[Sequence[Example]], config: EvaluateConfig, ask: Ask
    ) -> list[TaskScores]:
        """Scores the model on tasks; `examples` are their test rows."""

    def remarks(self, tasks: Sequence[Task], scored: Sequence[TaskScores], variant: str) -> tuple[list[str], list[str]]:
        """Returns (remarks, warnings) about the scores of the model before its first task, one line each."""

    def table(self, config: RunConfig, stream: TaskStream, batches: Sequence[GlobalBatches]) -> list[list[str]] | None:
        """Returns a table of the tasks for display before a run, header row first; None for the table of tokens."""

    def described(self, source: Source, example: Any) -> str | None:
        """Returns a training row as the model reads it, for a dry run; None if its tokens are to be shown."""
