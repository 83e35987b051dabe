"""The types of results.json, and its version.

`results.schema.json`, in the same folder, is the JSON schema of `RunResults` for readers in other languages; its
descriptions are the docstrings of the classes below.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from codyra_llm.data.chat import ChatFacts
from codyra_llm.domains.facts import FACTS, Facts
from codyra_llm.errors import UserError
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore, general_delta
from codyra_llm.evaluation.judge.proxies import Proxies
from codyra_llm.evaluation.judge.verdict import Tally
from codyra_llm.evaluation.matrix import Metric, Stage, stages_of
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.files import read_json, validated
from codyra_llm.text import shown

SCHEMA_VERSION = 1
DESCRIPTION = Path(__file__).with_name("results.schema.json")
Scores = list[list[float | None]]  # [tasks + 1][tasks]: a row for each stage; None: not measured


@dataclass
class ModelFacts:
    """The model: its name as given by the user, its class, its number of parameters."""

    name: str
    architecture: str
    parameters: int


@dataclass
class TaskData:
    """The data of one task.

    Attributes:
        train_rows: number of its own training rows. dropped_train_rows: number of rows with too long answers.
        replayed_rows: number of training rows from earlier tasks.
        validation_rows, test_rows: number of rows for validation and for scoring.
        steps: optimizer steps. sha256: of its files (for images, of its splits and classes), by name.
        scorer: its name; bits_per_byte for raw text. chat_template: of its prompts; None: prompts are used unchanged.
    """

    task: str
    train_rows: int
    dropped_train_rows: int
    test_rows: int
    steps: int
    sha256: dict[str, str]
    replayed_rows: int = 0
    validation_rows: int = 0
    scorer: str = ""
    chat_template: ChatFacts | None = None


@dataclass
class Data:
    """The stream of tasks, the version of its data, its tasks, and its domain: "text" or "images"."""

    stream: str
    version: str
    tasks: list[TaskData]
    domain: str = "text"

    @property
    def facts(self) -> Facts:
        """The facts about the domain."""
        return FACTS.get(self.domain, FACTS["text"])


@dataclass
class General:
    """The scores on suites of general ability.

    Attributes:
        items: suite -> task of the harness -> numbers of the asked items.
        scores: name of the stage ("model" if nothing was trained) -> suite -> its score.
        delta: name of the stage -> mean change from the base model, in points, of suites in percent; None if not known.
    """

    items: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    scores: dict[str, dict[str, SuiteScore | SuiteFailure]] = field(default_factory=dict)
    delta: dict[str, float | None] = field(default_factory=dict)

    def add(self, stages: Sequence[Stage], stage: Stage, scores: dict[str, SuiteScore | SuiteFailure]) -> float | None:
        """Adds the scores of a stage to those that it already has; returns the stage's delta."""
        self.scores[stage.name] = self.scores.get(stage.name, {}) | scores
        self.scores = {each.name: self.scores[each.name] for each in stages if each.name in self.scores}
        base = self.scores.get(stages[0].name, {})
        self.delta = {name: general_delta(of_stage, base) for name, of_stage in self.scores.items()}
        return self.delta[stage.name]


@dataclass
class Resumption:
    """A resumption of the run: the place (number of the task, phase, optimizer step in it), command and ranks."""

    task: int
    phase: str
    step: int
    command: list[str]
    world_size: int
    zero_stage: int


@dataclass
class ValidationLoss:
    """The mean loss per answer token of the validation rows, in nats, after `step` steps of a task."""

    step: int
    loss: float


@dataclass
class TaskLosses:
    """The loss of each optimizer step of a task: mean over its answer tokens, in nats.

    Attributes:
        validation: losses of validation rows, if there are any.
        kept_step: with validation, the number of steps after which the merged branches were taken; None: all steps.
        learning_rate, threshold, live_rank: at each step; empty in files of earlier versions.
    """

    task: str
    loss: list[float] = field(default_factory=list)
    validation: list[ValidationLoss] = field(default_factory=list)
    kept_step: int | None = None
    learning_rate: list[float] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    live_rank: list[float] = field(default_factory=list)


@dataclass
class TaskRanks:
    """The ranks that a task kept, and the norms of its update.

    Attributes:
        mean: mean surviving rank over projections. initial: largest rank before pruning.
        by_projection: mean surviving rank over the projections of a kind (q_proj, up_proj, ...).
        update_norm: Frobenius norm of the task's update. cumulative_norm: that of the sum of all updates so far.
        bound: sum over projections of sqrt(rank) |B diag(gate)|_2 |A|_2, the paper's bound on the update's norm.
    """

    task: str
    mean: float
    initial: int
    by_projection: dict[str, float]
    update_norm: float
    cumulative_norm: float
    bound: float | None = None


@dataclass
class TaskDivergence:
    """The change of the model's outputs by a task: KL(before || after), nats per token of the reference answers.

    Attributes:
        own: on the task's test rows. earlier: on those of earlier tasks, mean over tasks. text: on general text. None:
            there are none.
    """

    task: str
    own: float
    earlier: float | None = None
    text: float | None = None


@dataclass
class Phase:
    """The cost of a phase of the run.

    Attributes:
        task: its name; "base" for the base model. phase: evaluate, train, prune and merge, or save.
        seconds: in all sessions. tokens: trained on or generated, without padding.
        resident_bytes: memory of rank 0 at the end of the phase.
    """

    task: str
    phase: str
    seconds: float = 0.0
    tokens: int = 0
    resident_bytes: int | None = None


@dataclass(kw_only=True)
class Provenance:
    """The provenance of results: command, versions, configuration, number of ranks."""

    schema_version: int
    command: list[str]
    versions: dict[str, str]
    config: dict[str, Any]
    world_size: int


@dataclass(kw_only=True)
class ModelProvenance(Provenance):
    """The provenance of results of one model: also seed, ZeRO stage and model."""

    seed: int
    zero_stage: int
    model: ModelFacts


@dataclass(kw_only=True)
class GeneralScores(ModelProvenance):
    """The general ability of a model that was not trained."""

    general: General = field(default_factory=General)


@dataclass(kw_only=True)
class ModelScores(GeneralScores):
    """The scores of a model that was not trained.

    Attributes:
        data: the data of the tasks.
        tasks: their names, in order.
        scores: scoring variant -> task -> score, 0 to 100.
        mean: scoring variant -> mean over tasks.
        answer_nll: task -> NLL of the reference answers, nats per token; None if it is not finite.
        further: task -> scorer -> scoring variant -> score, for the task's scorers other than the first.
    """

    data: Data
    tasks: list[str]
    scores: dict[str, dict[str, float]]
    mean: dict[str, float]
    answer_nll: dict[str, float | None]
    further: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(kw_only=True)
class RunResults(ModelProvenance):
    """The results of a run.

    Attributes:
        tasks: their names, in order.
        matrix: scores of `evaluate.scorer_variant`, 0 to 100: a row for each stage, a column for each task.
        matrices: the same in every scoring variant. further: task -> scorer -> its score at each stage, in the variant
            of the matrix, for scorers other than the task's first. metrics: variant -> result of `matrix_metrics`.
        answer_nll: NLL of reference answers, nats per token, as `matrix`; None if not measured or not finite.
        seconds: of all sessions. checkpoint_seconds: those spent on checkpoints.
        peak_memory_bytes: of rank 0's resident memory.
        routing: task -> percent of its test rows that a router sent to its own adapter, at each stage.
        trainable_parameters: of the branches at the start of the last task. relative_cost: FLOPs of a step, relative to
            fixed-rank LoRA.
    """

    data: Data
    tasks: list[str]
    matrix: Scores
    matrices: dict[str, Scores]
    answer_nll: Scores
    general: General = field(default_factory=General)
    sessions: list[Resumption] = field(default_factory=list)
    seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    peak_memory_bytes: int = 0
    trainable_parameters: int = 0
    relative_cost: float = 1.0
    losses: list[TaskLosses] = field(default_factory=list)
    ranks: list[TaskRanks] = field(default_factory=list)
    divergence: list[TaskDivergence] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    further: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Metric]] = field(default_factory=dict)
    routing: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def stages(self) -> list[Stage]:
        """The rows of the matrix."""
        return stages_of(self.tasks)

    @property
    def mean_rank(self) -> float | None:
        """Mean over tasks of the mean kept rank of a projection; None before the first task is finished."""
        return sum(each.mean for each in self.ranks) / len(self.ranks) if self.ranks else None

    @property
    def finished(self) -> bool:
        """True if the run has completed its last phase, saving the model."""
        return bool(self.phases) and self.phases[-1].phase == "save"

    def resumed(self, session: ModelProvenance, task: int, phase: str, step: int) -> "RunResults":
        """Returns the results for a session that resumes the run, possibly on other hardware."""
        own = {name: getattr(session, name) for name in ("command", "versions", "config", "world_size", "zero_stage")}
        resumption = Resumption(task, phase, step, session.command, session.world_size, session.zero_stage)
        return dataclasses.replace(self, **own, sessions=[*self.sessions, resumption])


@dataclass
class PromptFileResults:
    """A comparison of two models on one file of prompts.

    Attributes:
        sha256: of the file.
        prompts: number of prompts.
        criterion: that answers were judged by.
        judged: the judge's verdicts; None without a judge.
        proxies: side ("model", "against") -> its proxies.
    """

    sha256: str
    prompts: int
    criterion: str
    judged: Tally | None
    proxies: dict[str, Proxies]


@dataclass(kw_only=True)
class JudgeResults(Provenance):
    """The results of a comparison of two models.

    Attributes:
        config_sha256: hash of settings and prompts.
        models: side ("model", "against") -> name.
        files: results by name of the prompt file.
    """

    config_sha256: str
    models: dict[str, str]
    files: dict[str, PromptFileResults]


def empty_scores(tasks: Sequence[str]) -> Scores:
    """Returns a matrix in which nothing was measured."""
    return [[None] * len(tasks) for _ in stages_of(tasks)]


def new_results(
    provenance: dict[str, Any], data: Data, general: General, variants: Sequence[str] = VARIANTS
) -> RunResults:
    """Returns the results of a run that has not started; `variants`: its scoring variants."""
    tasks = [task.task for task in data.tasks]
    return RunResults(
        **provenance,
        data=data,
        tasks=tasks,
        matrix=empty_scores(tasks),
        matrices={variant: empty_scores(tasks) for variant in variants},
        answer_nll=empty_scores(tasks),
        general=general,
    )


def to_text(results: Provenance) -> str:
    """Returns results as the text of results.json."""
    return json.dumps(dataclasses.asdict(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check_version(content: Any, where: str) -> None:
    """Raises UserError if JSON content has no schema version, or a later one; `where` names it in the error."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema_version is {shown(version)}; this version of codyra_llm reads 1 to {SCHEMA_VERSION}"
        )


def parse_results(content: Any, where: str) -> RunResults:
    """Returns a run's results from their JSON content, of this version or an earlier one.

    Raises:
        UserError: something is missing or has the wrong type, or a later version wrote it.
    """
    check_version(content, where)
    results = validated(RunResults, content, where, "they are not the results of a run")
    shapes = {len(results.matrix), len(results.answer_nll), *map(len, results.matrices.values())}
    if shapes != {len(results.stages)}:
        raise UserError(f"{where}: its matrices have not one row more than there are tasks; restore the file")
    return results


def read_results(folder: Path) -> RunResults:
    """Reads the results of the run in a folder.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = folder / "results.json"
    return parse_results(read_json(path, "name the folder of a run"), str(path))


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of a run's results."""
    return pydantic.TypeAdapter(RunResults).json_schema()
