"""A plan (`Footprint`) as text."""

import shlex
from collections.abc import Sequence

from codyra_llm.adapter.injection import describe_targets
from codyra_llm.data.batches import rows_and_places
from codyra_llm.planning.footprint import MARGIN, RESERVED, Footprint, needed
from codyra_llm.planning.run_time import RunTime
from codyra_llm.text import align

GB = 1e9


def report(plan: Footprint, arguments: Sequence[str]) -> str:
    """Returns the complete plan as text, with the command line of the first way that fits.

    Args:
        plan: the plan.
        arguments: the run's command-line arguments (--config and overrides), which are followed by those of the way.
    """
    parts = [_head(plan), _memory(plan), _moved(plan), _steps(plan)]
    return "\n\n".join([*parts, *time_tables(plan), _verdict(plan, arguments)])


def table(plans: Sequence[Footprint]) -> str:
    """Returns a table with the first way that fits on each number of GPUs."""
    rows = [["GPUs", "micro batch", "accumulation", "first that fits", "recompute", "needs GB per GPU", "host GB"]]
    for plan in plans:
        batch = [str(plan.gpus), str(plan.micro_batch), str(plan.accumulation)]
        best = plan.recommended
        if best is None:
            rows.append([*batch, "nothing", "", _gb(min(needed(way.memory) for way in plan.ways)), ""])
            continue
        recompute = "yes" if best.checkpointing else "no"
        rows.append([*batch, best.name, recompute, _gb(needed(best.memory)), _gb(best.memory.host_peak)])
        if plan.time:
            rows[-1] += [seconds(plan.time.step.total), seconds(plan.time.total)]
    if any(plan.time for plan in plans):
        rows[0] += ["step", "whole run"]
        rows[1:] = [row + [""] * (len(rows[0]) - len(row)) for row in rows[1:]]
    first = plans[0]
    head = f"{first.model}: {first.architecture}, {first.parameters:,} parameters in {first.dtype}"
    return f"{head}\n\n{align(rows)}\n\n--gpus N says more of one of them."


def _head(plan: Footprint) -> str:
    share = plan.trainable / (plan.parameters + plan.trainable)
    work = plan.workload
    rows = rows_and_places(plan.global_batch, plan.gpus * plan.micro_batch * plan.accumulation)
    return "\n".join(
        [
            f"{plan.model}: {plan.architecture}, {plan.parameters:,} parameters in {plan.dtype}, {plan.attention}",
            f"trainable: {plan.trainable:,} values ({share:.2%}) in {describe_targets(plan.projections)}",
            f"global batch: {rows} = {plan.gpus} GPUs x {plan.micro_batch} rows x {plan.accumulation} micro "
            f"batches; {work.length} tokens a row, {work.answer_length} of them answer",
            f"({work.source})",
            *(
                [f"a step costs {plan.relative_cost:.2f} times that of fixed-rank LoRA"]
                if plan.relative_cost != 1
                else []
            ),
        ]
    )


def _memory(plan: Footprint) -> str:
    kinds = ("weights", "gathered", "adapters", "gradients", "optimizer", "buckets", "activations")
    rows = [["GB per GPU", "recompute", *kinds, "peak", "needs", "fits", "host"]]
    for way in plan.ways:
        memory = way.memory
        parts = [_gb(getattr(memory, kind)) for kind in kinds]
        sums = [_gb(memory.peak), _gb(needed(memory)), "yes" if way.fits else "no", _gb(memory.host_peak)]
        rows.append([way.name, "yes" if way.checkpointing else "no", *parts, *sums])
    return (
        align(rows) + f"\npeak: the larger of backward pass (the sum of the columns) and optimizer step; needs: peak x "
        f"{MARGIN:g} + {RESERVED / GB:g} GB\nfor CUDA, cuBLAS and NCCL; host: of one rank, by offloading. "
        "1 GB is 10^9 bytes"
    )


def _moved(plan: Footprint) -> str:
    rows = [["GB moved per step", "recompute", "gradients", "weights", "optimizer", "all", "from host"]]
    for way in plan.ways:
        traffic = way.traffic
        parts = (traffic.gradients, traffic.weights, traffic.optimizer, traffic.network, traffic.host)
        rows.append([way.name, "yes" if way.checkpointing else "no", *map(_gb, parts)])
    return align(rows) + "\nreceived by each GPU over the network, as much is sent; ring collectives"


def _steps(plan: Footprint) -> str:
    steps = plan.workload.steps
    shown = ", ".join(f"{task} {'?' if count is None else count}" for task, count in steps.items())
    return (
        f"optimizer steps: {shown}\n"
        f"checkpoint: {_gb(plan.checkpoint)} GB; ledger: at most {_gb(plan.ledger)} GB a task, "
        f"{_gb(plan.ledger * len(steps))} GB for {len(steps)}"
    )


def time_tables(plan: Footprint) -> list[str]:
    """Returns tables of the time of a step in each way, and of tasks in the first that fits; empty without times."""
    timed = [way for way in plan.ways if way.time]
    if not timed:
        return []
    kinds = ("compute", "gradients", "weights", "optimizer", "agreements", "host")
    rows = [["seconds per step", "recompute", *kinds, "step"]]
    for way in timed:
        parts = [seconds(getattr(way.time, kind)) for kind in kinds]
        assert way.time
        rows.append([way.name, "yes" if way.checkpointing else "no", *parts, seconds(way.time.total)])
    note = "step: what is moved is hidden behind computing where DeepSpeed overlaps them (overlap_comm)"
    return [f"{align(rows)}\n{note}", *([_tasks(plan.time)] if plan.time else [])]


def _tasks(time: RunTime) -> str:
    kinds = ("training", "checkpoints", "merge", "evaluation", "general")
    rows = [["time of a task", "steps", *kinds, "all"]]
    for task in time.tasks:
        parts = ["?" if (found := getattr(task, kind)) is None else seconds(found) for kind in kinds]
        steps = "?" if task.steps is None else str(task.steps)
        rows.append([task.task or "(base model)", steps, *parts, seconds(task.total)])
    known = all(None not in (task.training, task.evaluation, task.general) for task in time.tasks)
    rest = "" if known else "; ? is not known without the data (--rows N, --test-rows N) and left out of sums"
    held = "whole on each GPU" if time.whole else "gathered module by module in each pass"
    return (
        f"{align(rows)}\nloading {seconds(time.start)}, saving {seconds(time.save)}, the whole run "
        f"{seconds(time.total)}{rest}\nrows as long as planned, answers as long as they may be, nothing guessed; "
        f"weights are {held} while answering\nmerge: ledger and merging; ceilings: {time.ceilings.name}, "
        f"{time.ceilings.source}"
    )


def seconds(value: float) -> str:
    """Returns a time in a readable unit: 0.012 s, 3.4 s, 12 min, 5.1 h."""
    for unit, size, least in (("h", 3600, 2 * 3600), ("min", 60, 120)):
        if value >= least:
            return f"{value / size:.3g} {unit}"
    return (f"{value:.2g} s" if value < 10 else f"{value:.0f} s") if value else "-"


def _verdict(plan: Footprint, arguments: Sequence[str]) -> str:
    best = plan.recommended
    size = f"{plan.gpus} x {_gb(plan.gpu_memory)} GB"
    if best is None:
        return (
            f"Nothing fits on {size}: lower train.per_device_train_batch_size or data.max_prompt_length, "
            "or give more GPUs."
        )
    command = ["codyra", "launch", "-n", str(plan.gpus), "--", "train", *arguments]
    command += ["--deepspeed", best.deepspeed or "null"]
    command += ["--model.gradient_checkpointing", str(best.checkpointing).lower()]
    return f"The first that fits on {size}:\n    {shlex.join(command)}"


def _gb(size: int) -> str:
    return f"{size / GB:.2f}" if size else "-"
