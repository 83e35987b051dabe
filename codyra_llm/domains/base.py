"""What a run asks of a domain: text that a causal model writes, or images that CLIP tells classes of.

A run asks once which domain it is (`domains.find`), when it is planned. All that differs between domains is
behind this interface; everything else (branches, methods, ZeRO, ledger, checkpoints, matrix) does not know of it.
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
    """The rows of a stream's tasks as examples, by split and task.

    Attributes:
        templates: the chat template of each task; None where prompts are used as they are.
        notes: what whoever runs it should know, a line each.
    """

    train: list[Sequence[Example]] = field(default_factory=list)
    test: list[Sequence[Example]] = field(default_factory=list)
    validation: list[Sequence[Example]] = field(default_factory=list)
    templates: list[ChatTemplate | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Answer(Protocol):
    """`generation.generate.answer_questions`, whose arguments say what each is."""

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
        """Answers questions, in their order, the same on every rank."""


class Suite(Protocol):
    """What a model's general ability is measured on, beside the tasks that it learns."""

    @property
    def name(self) -> str:
        """As the configuration names it."""

    @property
    def label(self) -> str:
        """The name as part of a file's."""

    @property
    def items(self) -> dict[str, list[int]]:
        """The numbers of the items that are asked, by the task that they are of."""

    @property
    def digest(self) -> str:
        """Changes with what is asked, and how."""


class Domain(Protocol):
    """A kind of data, the models that learn it, and how they are trained and scored on it.

    Attributes:
        facts: what reports say of it. learning: what an engine wraps and what a step is. answer: how a model answers.
    """

    facts: Facts
    learning: Learning
    answer: Answer

    def settled(self, config: RunConfig) -> RunConfig:
        """The configuration as it applies here.

        Raises:
            UserError: a setting, or the method, has no meaning here.
        """

    def open(self, config: RunConfig) -> Source:
        """The model of a configuration.

        Raises:
            UserError: it is none that this domain can teach, or lacks what goes with it.
        """

    def stream(self, config: RunConfig, stream: TaskStream | None, to_train: bool) -> TaskStream:
        """The tasks with their rows, by default those that the configuration names.

        Raises:
            UserError: they cannot be read, learned or scored.
        """

    def check_method(self, config: RunConfig, source: Source, method: Method) -> None:
        """Raises UserError where the method, or what is learned beside it, does not fit the model."""

    def rows(self, config: RunConfig, source: Source, stream: TaskStream) -> Rows:
        """The rows as examples.

        Raises:
            UserError: the model cannot read one.
        """

    def hashes(self, task: Task) -> dict[str, str]:
        """SHA-256 of what a task's data are, by name of a file or a part."""

    def suites(self, config: RunConfig, source: Source, learned: Sequence[str]) -> Sequence[Suite]:
        """The suites that a configuration names, their data read.

        Args:
            learned: names of the tasks that are.

        Raises:
            UserError: one is unknown, named twice or cannot be read.
        """

    def score_suites(
        self, suites: Sequence[Any], source: Source, template: ChatTemplate | None, ask: Ask
    ) -> tuple[dict[str, SuiteScore | SuiteFailure], dict[str, list[dict[str, Any]]]]:
        """Scores a model on suites: (score by the suite's name, every answer by its label)."""

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Raises UserError where a loaded model cannot be run as it is run here."""

    def scored(
        self, tasks: Sequence[Task], examples: Sequence[Sequence[Example]], config: EvaluateConfig, ask: Ask
    ) -> list[TaskScores]:
        """Scores tasks; `examples` are their test rows."""

    def remarks(self, tasks: Sequence[Task], scored: Sequence[TaskScores], variant: str) -> tuple[list[str], list[str]]:
        """(what is said, what is warned of) about the scores of the model that nothing was taught yet, a line each."""

    def table(self, config: RunConfig, stream: TaskStream, batches: Sequence[GlobalBatches]) -> list[list[str]] | None:
        """The tasks as they are shown before a run, heads first; None: with what there is to say of tokens."""

    def described(self, source: Source, example: Any) -> str | None:
        """A training row as the model reads it, for a dry run; None: its tokens are shown."""
