"""The plan of a run without the model's weights: checked configuration, tokenized data, number of steps."""

import dataclasses
import hashlib
import json
import operator
import os
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from codyra_llm.adapter.config import CoDyRAConfig
from codyra_llm.adapter.injection import check_rank, find_targets
from codyra_llm.config import RunConfig, TrainConfig, config_fields, decisive
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.chat import ChatTemplate, end_ids, find_chat_template
from codyra_llm.data.encode import check_tokenizer, padding_id
from codyra_llm.data.stream import Task, TaskSpec, TaskStream
from codyra_llm.distributed.ranks import Ranks, check_same
from codyra_llm.domains.base import Domain, Suite
from codyra_llm.domains.find import find_domain
from codyra_llm.engine.ds_config import read_deepspeed_json, zero_stage
from codyra_llm.errors import UserError
from codyra_llm.evaluation.matrix import Stage, stages_of
from codyra_llm.example import Example
from codyra_llm.files import LONGEST_NAME
from codyra_llm.methods import METHODS
from codyra_llm.methods.base import Method
from codyra_llm.methods.hooks import overrides
from codyra_llm.models.load import meta_model
from codyra_llm.models.quantize import check_widths
from codyra_llm.models.source import Source
from codyra_llm.results.schema import Data, TaskData
from codyra_llm.text import shown


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        source: the model.
        domain: text or images.
        stream: the tasks, in order.
        deepspeed_json: the DeepSpeed configuration.
        batches: the training batches of each task; empty if the model is only scored.
        test_examples: the encoded test rows of each task.
        validation: the validation rows of each task; empty in most runs.
        suites: of general ability.
        templates: the chat template of each task.
        general_template: the chat template of general ability.
        notes: messages for the user, a line each.
    """

    source: Source
    domain: Domain
    stream: TaskStream
    deepspeed_json: dict[str, Any]
    batches: list[GlobalBatches]
    test_examples: list[Sequence[Example]]
    validation: list[Sequence[Example]]
    suites: Sequence[Suite]
    templates: list[ChatTemplate | None]
    general_template: ChatTemplate | None
    notes: list[str]

    @property
    def stages(self) -> list[Stage]:
        """The stages of the run at which the model is evaluated."""
        return stages_of(self.stream.names)

    def data(self, config: RunConfig) -> Data:
        """Returns the description of the data for the results."""
        tasks = [
            TaskData(
                task.name,
                train_rows=0,
                dropped_train_rows=0,
                test_rows=len(task.test),
                steps=0,
                sha256=self.domain.hashes(task),
                validation_rows=len(task.validation),
                scorer=task.spec.scorers[0],
                chat_template=template.facts(self.source.tokenizer) if template else None,
            )
            for task, template in zip(self.stream, self.templates, strict=True)
        ]
        for facts, task, batches in zip(
            tasks, self.stream, self.batches, strict=False
        ):  # there are no batches if the model is only scored
            facts.train_rows = len(task.train) if task.spec.is_text else len(batches.own)
            facts.dropped_train_rows = len(task.train) - facts.train_rows
            facts.steps, facts.replayed_rows = batches.total_steps, len(batches.examples) - len(batches.own)
        version = config.data.version or self.stream.version
        return Data(self.stream.name, version, tasks, self.domain.facts.name)

    def measures_general(self, stage: Stage, config: RunConfig) -> bool:
        """True if general ability is measured at a stage."""
        return bool(self.suites) and config.general.is_due(self.stream.names, stage.number)

    @property
    def end_ids(self) -> set[int]:
        """The ids that end a turn in the chat templates that are used."""
        return end_ids(self.source.tokenizer, *self.templates, self.general_template)

    @cached_property
    def tokens(self) -> list[float]:
        """Training tokens (or images) of each task, computed from the mean length of its rows."""
        return [
            batches.total_steps * batches.global_batch_size * sum(map(len, batches.examples)) / len(batches.examples)
            for batches in self.batches
        ]

    def name(self, config: RunConfig) -> str:
        """Returns a hash of all that results depend on: settings, task settings, tokens of all rows, suites."""
        settings = [decisive(config), [task.spec.content for task in self.stream]]
        digest = hashlib.sha256(json.dumps(settings).encode())
        learned = [batches.examples for batches in self.batches] or [()] * len(self.test_examples)
        for train, test in zip(learned, self.test_examples, strict=True):
            for example in chain(train, test):
                digest.update(example.to_bytes())
        for row in chain.from_iterable(task.test for task in self.stream):
            if "references" in row:
                digest.update(json.dumps(row["references"]).encode())
        for example in chain.from_iterable(self.validation):
            digest.update(example.to_bytes())
        for suite in self.suites:
            digest.update(suite.digest.encode())
        return digest.hexdigest()


def plan_run(
    config: RunConfig,
    ranks: Ranks,
    stream: TaskStream | None = None,
    to_train: bool = True,
    source: Source | None = None,
) -> RunPlan:
    """Checks everything that can be checked without the weights, and encodes the data.

    Args:
        config: of the run.
        ranks: all ranks.
        stream: the tasks; None: those that the configuration names.
        to_train: False if the model is only scored.
        source: the model, if it has already been opened.

    Raises:
        UserError: the configuration, data or model is invalid.
    """
    domain = find_domain(config, stream)
    config = domain.settled(config)
    stream = domain.stream(config, stream, to_train)
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    source = source or domain.open(config)
    tokenizer = source.tokenizer
    check_tokenizer(tokenizer)
    _check_quantization(config, source.config, deepspeed_json, to_train)
    structure = meta_model(source.config)
    check_widths(structure, config.model.quantization)
    method = METHODS[config.method](config)
    if to_train:
        method.check_run(zero_stage(deepspeed_json))
        check_adapter(structure, method.adapter)
        domain.check_method(config, source, method)
    rows = domain.rows(config, source, stream)  # first, so that errors in data name their task
    general_template = find_chat_template(tokenizer, config.data.chat_template)
    batches: list[GlobalBatches] = []
    for task, examples in zip(stream, rows.train if to_train else (), strict=to_train):
        batches.append(_batches(config, task, examples, batches, method, ranks, padding_id(tokenizer)))
    _check_after(config, stream)
    suites = domain.suites(config, source, stream.names)
    _check_file_names(stream, suites)
    notes = [*stream.notes, *rows.notes]
    if to_train and config.evaluate.divergence and overrides(method, "serving"):
        notes.append(f"evaluate.divergence is not measured with method {method.name}, of which parts are not merged")
    how = (rows.test, rows.validation, suites, rows.templates, general_template, notes)
    return RunPlan(source, domain, stream, deepspeed_json, batches, *how)


def _batches(
    config: RunConfig,
    task: Task,
    examples: Sequence[Example],
    earlier: Sequence[GlobalBatches],
    method: Method,
    ranks: Ranks,
    pad_token_id: int,
) -> GlobalBatches:
    """Returns the batches of a task, checked by the method."""
    epochs, steps = length_of(config.train, task.spec)
    batches = GlobalBatches(
        examples,
        config.train.global_batch_size,
        config.train.per_device_train_batch_size,
        epochs,
        config.seed,
        task.name,
        ranks.size,
        pad_token_id,
        config.data.packing,
        method.replayed(task.name, {each.task: each.own for each in earlier}),
        method.lengthens,
        steps,
    )
    method.check(task.name, batches.total_steps)
    if config.retention.every > batches.total_steps:
        raise UserError(
            f"task {task.name}: retention.every is {config.retention.every}, and the task has {batches.total_steps} "
            "optimizer steps, so that none would measure it; lower it"
        )
    return batches


def length_of(train: TrainConfig, spec: TaskSpec) -> tuple[float, int | None]:
    """Returns (epochs, optimizer steps to use instead or None) of a task; the run's settings override the task's."""
    steps = train.steps or (None if train.num_train_epochs else spec.steps)
    return train.num_train_epochs or spec.epochs, steps


def check_ranks_agree(config: RunConfig, ranks: Ranks, source: Source, plan: RunPlan | None = None) -> None:
    """Raises UserError, on every rank, if settings, data or the model's weights are not the same on all ranks.

    Weights are hashed once on each host, which caches the hash.
    """
    if ranks.size == 1:
        return
    settings = {name: repr(operator.attrgetter(name)(config)) for name, _ in config_fields() if name != "output_dir"}
    first_on_host = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0
    data = {"data": plan.name(config)} if plan else {}
    weights = {"model weights": source.sha256 if first_on_host else None}
    check_same(ranks, settings | data | weights)


def check_adapter(model: PreTrainedModel, adapter: CoDyRAConfig) -> None:
    """Raises UserError if a model has no projection for a target, or one that is too small for the rank."""
    try:
        check_rank(model, find_targets(model, adapter), adapter.rank)
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None


def _check_quantization(
    config: RunConfig, model_config: PretrainedConfig, deepspeed_json: dict[str, Any], to_train: bool
) -> None:
    model = config.model
    if getattr(model_config, "quantization_config", None) and (to_train or model.quantization):
        remedy = "give the original, with model.quantization" if to_train else "leave model.quantization empty"
        raise UserError(f"model.name_or_path {model.name_or_path}: its weights are quantized already; {remedy}")
    if model.quantization == "int8" and zero_stage(deepspeed_json) == 3:
        raise UserError(
            f"deepspeed {config.deepspeed}: ZeRO stage 3 cannot partition int8 weights, which bitsandbytes keeps "
            "outside of the model's parameters; use stage 0 to 2, or model.quantization nf4"
        )


def _check_after(config: RunConfig, stream: TaskStream) -> None:
    """Raises UserError if general ability is to be measured after a task that the run does not have."""
    unknown = set(config.general.after) - {*stream.names, "last"}
    if unknown:
        raise UserError(f"general.after: {', '.join(sorted(unknown))}: not a task of this run; it has {stream.names}")


def _check_file_names(stream: TaskStream, suites: Sequence[Suite]) -> None:
    """Raises UserError if two files of the run folder would have the same name, or one too long for file systems."""
    of_suites = [f"general.{suite.label}" for suite in suites]
    if taken := set(stream.names) & set(of_suites):
        raise UserError(f"task {min(taken)}: the answers of a suite are in files of that name; rename the task")
    seconds = [*stream.names, *of_suites]
    for task in stream.names:
        names = [f"{len(stream)}-{task}.{second}.jsonl.tmp" for second in seconds]
        longest = max(len(name.encode()) for name in names)
        if longest > LONGEST_NAME:
            raise UserError(
                f"task {shown(task)}: a file of the run would have a name of {longest} bytes, and file systems take "
                f"{LONGEST_NAME}; shorten the names of tasks"
            )
