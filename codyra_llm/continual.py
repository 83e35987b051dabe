"""The continual run: for each task prepare, train, finish (prune and merge), evaluate, report."""

import dataclasses
import resource
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from codyra_llm.adapter.injection import describe_targets, kind_of
from codyra_llm.adapter.layer import gated_layers
from codyra_llm.adapter.merge import CumulativeUpdate, ModuleRank
from codyra_llm.config import RunConfig, load_config
from codyra_llm.data.stream import Task, TaskStream
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.launch import World, share, start
from codyra_llm.engine.train import StepReport, train_task
from codyra_llm.engine.zero import add_delta, placement, readable, weight_layout, whole_weights
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import evaluate_tasks
from codyra_llm.evaluation.matrix import matrix_metrics
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.methods import METHODS
from codyra_llm.models.load import load_model
from codyra_llm.models.save import save_model
from codyra_llm.plan import RunPlan, plan_run
from codyra_llm.report import tables
from codyra_llm.report.folder import RunFolder, start_log
from codyra_llm.report.model_card import model_card
from codyra_llm.report.plots import plot_matrix, plot_ranks
from codyra_llm.results import new_results


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
    return _Run(config, world, plan_run(config, world, stream)).run()


class _Run:
    """The state of one run: the model, the results so far, and where they are written (on rank 0)."""

    def __init__(self, config: RunConfig, world: World, plan: RunPlan) -> None:
        self.config, self.world, self.plan = config, world, plan
        self.stream, self.tokenizer = plan.stream, plan.tokenizer
        self.folder = self._on_main(lambda: RunFolder(config))
        place = placement(complete(plan.deepspeed_json, config.train, world.size), world)
        held, notes = config.model, list[str]()
        self.model = load_model(held.name_or_path, held.dtype, held.attn_implementation, place, notes.append)
        self._on_main(lambda: self.folder.open())
        self.log = start_log(self.folder.path / "train.log" if self.folder else None)
        for note in notes:
            self.log.info(note)
        self.board = SummaryWriter(str(self.folder.path / "tensorboard")) if self.folder else None
        self.method = METHODS[config.method](config)
        if place is None:
            self.model.to(world.device)  # type: ignore[arg-type]
        if config.model.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.updates = CumulativeUpdate()
        self.global_step = 0
        self.results = new_results(config, plan, self.model, world.size)

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
        batches = self.plan.batches[number - 1]
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
            self.plan.deepspeed_json,
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
                gates.setdefault(kind_of(name), []).append(layer.gate.detach().float())
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
        rows = sum(len(self.plan.test_examples[i]) for i in which)
        progress = tqdm(total=rows, desc=f"scoring {row_name}", disable=not self.world.is_main, unit="row", leave=False)

        def on_batch(rows_of_batch: int) -> None:
            progress.update(rows_of_batch * self.world.size)

        self.model.eval()
        with readable(self.model, self.config.evaluate.gather, self.world) as synced:
            scored = evaluate_tasks(
                self.model,
                self.tokenizer,
                [self.stream.tasks[i] for i in which],
                [self.plan.test_examples[i] for i in which],
                self.config.evaluate,
                self.world,
                on_batch,
                synced,
            )
        for i, scores in zip(which, scored, strict=True):
            name = self.stream.names[i]
            tokens += scores.tokens
            self._set_cell(number, i, scores.totals, scores.nll)
            if self.folder:
                self.folder.write_predictions(row_name, name, scores.rows)
            if self.board:
                variant = self.config.evaluate.scorer_variant
                self.board.add_scalar(f"score/{name}", scores.totals[variant], number)
                self.board.add_scalar(f"answer_nll/{name}", scores.nll, number)
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
            by_kind.setdefault(kind_of(module.name), []).append(module.rank)
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
        layout, weights = weight_layout(self.model), whole_weights(self.model)

        def save() -> None:
            try:
                save_model(self.model, layout, weights, self.tokenizer, self.folder.model, model_card(self.results))
            finally:
                deque(weights, maxlen=0)  # whatever went wrong, the other ranks go through all of them

        if not self.world.is_main:
            deque(weights, maxlen=0)
        self._on_main(save)

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
