"""The continual run: for each task prepare, train, finish (prune and merge), evaluate, report."""

import dataclasses
import importlib.metadata
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from codyra_llm.adapter.injection import check_rank, describe_targets, find_targets
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merge import CumulativeUpdate, ModuleRank
from codyra_llm.config import RunConfig, load_config, resolve_path
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.encode import Example, check_tokenizer, encode_rows
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.engine.launch import World, share, start
from codyra_llm.engine.train import StepReport, train_task
from codyra_llm.engine.zero import add_delta, gathered, parameter_count
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import evaluate_task
from codyra_llm.evaluation.matrix import matrix_metrics
from codyra_llm.evaluation.scorers import SCORERS, VARIANTS
from codyra_llm.methods import METHODS
from codyra_llm.models.load import load_config_and_tokenizer, load_model, skeleton
from codyra_llm.models.save import save_model
from codyra_llm.report import tables
from codyra_llm.report.folder import RunFolder, start_log
from codyra_llm.report.model_card import model_card
from codyra_llm.report.plots import plot_matrix, plot_ranks

SCHEMA_VERSION = 1
PACKAGES = ("codyra_llm", "torch", "transformers", "deepspeed", "datasets", "bitsandbytes", "rapidfuzz", "rouge-score")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that was checked in full before any weight is loaded."""

    stream: TaskStream
    tokenizer: PreTrainedTokenizerBase
    deepspeed_json: dict[str, Any]
    batches: list[GlobalBatches]
    test_examples: list[list[Example]]


def run(config: RunConfig | str | Path, stream: TaskStream | None = None) -> dict[str, Any]:
    """Teaches a model the tasks of a stream, one after another, and writes the run folder.

    Args:
        config: a configuration, or the path of its YAML file.
        stream: the tasks; by default those that the configuration names.

    Returns:
        What stands in results.json.

    Raises:
        UserError: the configuration, data, model or run folder is unfit; nothing was written then.
    """
    config = config if isinstance(config, RunConfig) else load_config(config)
    if stream is not None:  # what is saved as the configuration should not name tasks that were not run
        config = dataclasses.replace(config, order=tuple(stream.names), data_dir="(in memory)")
    world = start()
    prepared = prepare(config, world, stream)
    return _Run(config, world, prepared).run()


def prepare(config: RunConfig, world: World, stream: TaskStream | None = None) -> Prepared:
    """Checks everything that can be checked without the weights, and tokenises the data.

    Raises:
        UserError: as `run`.
    """
    data, train = config.data, config.train
    if stream is None:
        stream = TaskStream.load(
            resolve_path(config.task_file),
            resolve_path(config.data_dir),
            config.order,
            data.max_train_examples,
            data.max_test_examples,
        )
    if not stream.tasks:
        raise UserError("the stream has no task; give it at least one")
    for task in stream:
        if task.spec.scorer not in SCORERS:
            raise UserError(f'task {task.name}: unknown scorer "{task.spec.scorer}"; there are {", ".join(SCORERS)}')
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    model_config, tokenizer = load_config_and_tokenizer(config.model.name_or_path)
    check_tokenizer(tokenizer)
    method = METHODS[config.method](config)
    model = skeleton(model_config)
    try:
        check_rank(model, find_targets(model, method.adapter), method.adapter.rank)
    except ValueError as error:
        raise UserError(f"adapter: {error}") from None
    batches, test_examples = [], []
    for task in stream:
        prompt_length = data.max_prompt_length or task.spec.max_prompt_length
        where = f"{Path(config.data_dir) / task.name}"
        train_examples = encode_rows(
            tokenizer,
            task.train,
            prompt_length,
            data.max_answer_length,
            task.spec.body,
            drop_long_answers=data.long_answers == "drop",
            where=f"{where}/train.json",
        )
        test_examples.append(
            encode_rows(tokenizer, task.test, prompt_length, None, task.spec.body, where=f"{where}/test.json")
        )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        batches.append(
            GlobalBatches(
                train_examples,
                train.global_batch_size,
                train.per_device_train_batch_size,
                train.num_train_epochs or task.spec.epochs,
                config.seed,
                task.name,
                world.size,
                pad,
            )
        )
        method.check(task.name, batches[-1].total_steps)
        _check_positions(task.name, [*train_examples, *test_examples[-1]], model_config)
    return Prepared(stream, tokenizer, deepspeed_json, batches, test_examples)


def _check_positions(task: str, examples: list[Example], model_config: PretrainedConfig) -> None:
    longest = max(len(example) for example in examples)
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None) or longest
    if longest > positions:
        raise UserError(
            f"task {task}: the longest row has {longest} tokens, the model knows {positions} positions; "
            "lower data.max_prompt_length or data.max_answer_length"
        )


class _Run:
    """The state of one run: the model, the results so far, and where they are written (on rank 0)."""

    def __init__(self, config: RunConfig, world: World, prepared: Prepared) -> None:
        self.config, self.world, self.prepared = config, world, prepared
        self.stream, self.tokenizer = prepared.stream, prepared.tokenizer
        self.folder = self._on_main(lambda: RunFolder(config))
        self.model = load_model(config.model.name_or_path, config.model.dtype, config.model.attn_implementation)
        self._on_main(lambda: self.folder and self.folder.open())
        self.log = start_log(self.folder.path / "train.log" if self.folder else None)
        self.board = SummaryWriter(str(self.folder.path / "tensorboard")) if self.folder else None
        self.method = METHODS[config.method](config)
        self.model.to(world.device)  # type: ignore[arg-type]
        if config.model.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.updates = CumulativeUpdate()
        self.global_step = 0
        self.results = self._head()

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        self.log.info(self._greeting())
        if self.config.model.dtype != "float32":
            self.log.info(
                f"updates are merged in place: each task rounds the weights to {self.config.model.dtype} again"
            )
        if self.config.evaluate.tasks != "last":
            self._evaluate(0)
        for number, task in enumerate(self.stream, 1):
            self._learn(number, task)
            if self.config.evaluate.tasks != "last" or number == len(self.stream):
                self._evaluate(number)
            self._write()
        self.results["seconds"] = time.perf_counter() - began
        self.results["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._write()
        self._save_model()
        self._farewell()
        return self.results

    def _learn(self, number: int, task: Task) -> None:
        batches = self.prepared.batches[number - 1]
        prepared = self.method.prepare(self.model, task.name, batches.total_steps)
        self.log.info(f"\ntask {number} of {len(self.stream)}: {task.name}, {describe_targets(prepared.wrapped)}")
        progress = tqdm(total=batches.total_steps, desc=task.name, disable=not self.world.is_main, unit="step")

        began = time.perf_counter()

        def on_step(report: StepReport) -> None:
            self._show_step(report, progress)

        steps = train_task(
            self.model,
            prepared.optimizer,
            prepared.schedule,
            batches,
            self.config.train,
            self.prepared.deepspeed_json,
            self.world,
            on_step,
        )
        progress.close()
        self._phase(task.name, "train", time.perf_counter() - began, sum(s.tokens for s in steps))
        self.results["losses"].append({"task": task.name, "loss": [s.loss for s in steps]})
        began = time.perf_counter()
        if self.board:
            gates: dict[str, list[torch.Tensor]] = {}
            for name, layer in gated_layers(self.model):
                gates.setdefault(name.rsplit(".", 1)[-1], []).append(layer.gate.detach().float())
            for kind, values in gates.items():
                self.board.add_histogram(f"gates/{kind}", torch.cat(values), number)
        for name, layer in gated_layers(self.model):
            self.updates.add(name, *layer.factors(), self.config.merge.scale)
        report = self.method.finish(self.model, add_delta)
        self._report_ranks(task, number, report)
        self._phase(task.name, "prune and merge", time.perf_counter() - began, 0)

    def _evaluate(self, number: int) -> None:
        """Scores the model after `number` tasks (0: the base model) and adds a row to the matrix."""
        which = range(len(self.stream))
        if self.config.evaluate.tasks == "seen":
            which = range(number)
        after = self.stream.names[number - 1] if number else "base"
        row_name = f"{number}-{after}"
        began, tokens = time.perf_counter(), 0
        rows = sum(len(self.prepared.test_examples[i]) for i in which)
        progress = tqdm(total=rows, desc=f"scoring {row_name}", disable=not self.world.is_main, unit="row", leave=False)

        def on_batch(rows_of_batch: int) -> None:
            progress.update(rows_of_batch * self.world.size)

        self.model.eval()
        with gathered(self.model):
            for i in which:
                task = self.stream.tasks[i]
                scores = evaluate_task(
                    self.model,
                    self.tokenizer,
                    task,
                    self.prepared.test_examples[i],
                    self.config.evaluate,
                    self.world,
                    on_batch,
                )
                tokens += scores.tokens
                self._set_cell(number, i, scores.totals, scores.nll)
                if self.folder:
                    self.folder.write_predictions(row_name, task.name, scores.rows)
                if self.board:
                    variant = self.config.evaluate.scorer_variant
                    self.board.add_scalar(f"score/{task.name}", scores.totals[variant], number)
                    self.board.add_scalar(f"answer_nll/{task.name}", scores.nll, number)
        progress.close()
        self._phase(after, "evaluate", time.perf_counter() - began, tokens)
        shown = [score for score in self.results["matrix"][number] if score is not None]
        if shown:
            self.log.info(
                f"{'base model' if not number else f'after {after}'}: mean score {sum(shown) / len(shown):.1f}"
            )

    def _set_cell(self, number: int, i: int, totals: dict[str, float], nll: float) -> None:
        for variant in VARIANTS:
            self.results["matrices"][variant][number][i] = totals[variant]
        self.results["matrix"][number][i] = totals[self.config.evaluate.scorer_variant]
        self.results["answer_nll"][number][i] = nll

    def _report_ranks(self, task: Task, number: int, report: list[ModuleRank]) -> None:
        by_kind: dict[str, list[int]] = {}
        for module in report:
            by_kind.setdefault(module.name.rsplit(".", 1)[-1], []).append(module.rank)
        drift = self.updates.norms()
        entry = {
            "task": task.name,
            "mean": sum(m.rank for m in report) / len(report),
            "initial": report[0].initial_rank,
            "by_projection": {kind: sum(ranks) / len(ranks) for kind, ranks in by_kind.items()},
            "update_norm": sum(m.norm**2 for m in report) ** 0.5,
            "cumulative_norm": sum(norm**2 for norm in drift.values()) ** 0.5,
        }
        self.results["ranks"].append(entry)
        self.log.info(
            f"{task.name}: kept {entry['mean']:.1f} of {entry['initial']} components, "
            f"update norm {entry['update_norm']:.3f}, last loss {self.results['losses'][-1]['loss'][-1]:.3f}"
        )
        if self.folder:
            self.folder.append_ranks(task.name, report, drift)
        if self.board:
            for kind, rank in entry["by_projection"].items():
                self.board.add_scalar(f"rank/{kind}", rank, number)

    def _show_step(self, report: StepReport, progress: Any) -> None:
        self.global_step += 1
        speed = report.tokens / report.seconds
        progress.update()
        progress.set_postfix_str(
            f"loss {report.loss:.3f}, lr {report.learning_rate:.1e}, rank {report.live_rank:.1f}, {speed:.0f} tokens/s"
        )
        if self.board:
            for name in ("loss", "learning_rate", "threshold", "live_rank", "grad_norm"):
                self.board.add_scalar(f"train/{name}", getattr(report, name), self.global_step)
            self.board.add_scalar("train/tokens_per_second", speed, self.global_step)

    def _phase(self, task: str, phase: str, seconds: float, tokens: int) -> None:
        self.results["phases"].append({"task": task, "phase": phase, "seconds": seconds, "tokens": tokens})

    def _write(self) -> None:
        self.results["metrics"] = {variant: matrix_metrics(self.results["matrices"][variant]) for variant in VARIANTS}
        if self.folder:
            self.folder.write_results(self.results)
            self.folder.write_matrix(self.stream.names, self.results["matrix"])

    def _save_model(self) -> None:
        with gathered(self.model):
            if self.folder:
                save_model(self.model, self.tokenizer, self.folder.model, model_card(self.results))

    def _on_main(self, action: Callable[[], Any]) -> Any:
        """What `action` gives on rank 0, None on the others; a mistake there is a mistake everywhere."""
        result, problem = None, None
        if self.world.is_main:
            try:
                result = action()
            except UserError as error:
                problem = str(error)
        problem = share(problem)
        if problem:
            raise UserError(problem)
        return result

    def _head(self) -> dict[str, Any]:
        tasks, stream = len(self.stream), self.stream
        empty: list[list[float | None]] = [[None] * tasks for _ in range(tasks + 1)]
        return {
            "schema_version": SCHEMA_VERSION,
            "command": sys.argv,
            "versions": {"python": platform.python_version(), **_versions()},
            "config": dataclasses.asdict(self.config),
            "seed": self.config.seed,
            "world_size": self.world.size,
            "zero_stage": self.prepared.deepspeed_json.get("zero_optimization", {}).get("stage", 0),
            "model": {
                "name": self.config.model.name_or_path,
                "architecture": type(self.model).__name__,
                "parameters": parameter_count(self.model),
            },
            "data": {
                "stream": stream.name,
                "version": self.config.data.version or stream.version,
                "tasks": [
                    {
                        "task": task.name,
                        "train_rows": len(batches.examples),
                        "dropped_train_rows": len(task.train) - len(batches.examples),
                        "test_rows": len(task.test),
                        "steps": batches.total_steps,
                        "sha256": task.files,
                    }
                    for task, batches in zip(stream, self.prepared.batches, strict=True)
                ],
            },
            "tasks": stream.names,
            "matrix": [list(row) for row in empty],
            "matrices": {variant: [list(row) for row in empty] for variant in VARIANTS},
            "answer_nll": [list(row) for row in empty],
            "losses": [],
            "ranks": [],
            "phases": [],
        }

    def _greeting(self) -> str:
        model = self.results["model"]
        return (
            f"{model['name']}: {model['architecture']}, {model['parameters']:,} parameters; "
            f"{self.stream.name}: {len(self.stream)} tasks; method {self.config.method}; "
            f"ZeRO stage {self.results['zero_stage']} on {self.world.size} x {self.world.device.type}"
        )

    def _farewell(self) -> None:
        if not self.folder or not self.board:
            return
        self.board.close()
        plot_matrix(self.results, self.folder.path / "matrix.png")
        plot_ranks(self.results, self.folder.path / "ranks.png")
        variant = self.config.evaluate.scorer_variant
        self.log.info(f"\nScores (0 to 100, {variant}; [..] just learned)\n{tables.matrix_table(self.results)}")
        self.log.info(f"\nNLL of the true answers (nats per token)\n{tables.nll_table(self.results)}")
        self.log.info(f"\n{tables.metrics_table(self.results)}")
        self.log.info(f"\nSurviving rank\n{tables.rank_table(self.results)}")
        self.log.info(f"\n{self.results['seconds']:.0f} s; the model and all results are in {self.folder.path}")


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
