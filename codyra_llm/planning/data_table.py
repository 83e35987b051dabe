"""The description of a run that is shown before it starts: data by task, batches, evaluation."""

import statistics

from codyra_llm.config import RunConfig
from codyra_llm.data.batches import divide_batch, rows_and_places
from codyra_llm.data.chat import ChatTemplate
from codyra_llm.planning.run_plan import RunPlan, length_of
from codyra_llm.text import align

HEADS = (
    "task",
    "rows",
    "dropped",
    "validation",
    "test rows",
    "tokens (median",
    "longest",
    "cut)",
    "epochs",
    "steps",
    "answer limit",
    "template",
    "scorer",
)


def describe_plan(plan: RunPlan, config: RunConfig, ranks: int) -> str:
    """Returns the table of the tasks, and the line on batches and evaluation; `ranks`: number of ranks."""
    return f"{data_table(plan, config)}\n\n{batch_line(config, ranks)}"


def data_table(plan: RunPlan, config: RunConfig) -> str:
    """Returns the tasks in order, with their rows, tokens of a training row, and how they are learned and scored."""
    own = plan.domain.table(config, plan.stream, plan.batches)
    if own is not None:
        return align(own)
    rows = [list(HEADS)]
    for task, batches, template, facts in zip(
        plan.stream, plan.batches, plan.templates, plan.data(config).tasks, strict=True
    ):
        lengths = [len(row) for row in batches.own]
        epochs, steps = length_of(config.train, task.spec)
        cells = [
            facts.train_rows,
            facts.dropped_train_rows,
            facts.validation_rows or "-",
            facts.test_rows,
            int(statistics.median(lengths)),
            max(lengths),
            sum(row.cut for row in batches.own),
            "-" if steps else f"{epochs:g}",
            facts.steps,
            "-" if task.spec.is_text else min(task.spec.max_new_tokens, config.evaluate.max_new_tokens or 10**9),
            _setting(template),
            ", ".join(task.spec.scorers),
        ]
        rows.append([task.name, *map(str, cells)])
    return align(rows)


def batch_line(config: RunConfig, ranks: int) -> str:
    """Returns a line on the method, the batch of an optimizer step and its partition, and what is evaluated when."""
    train, evaluate = config.train, config.evaluate
    micro, accumulation = divide_batch(train.global_batch_size, train.per_device_train_batch_size, ranks)
    rows = rows_and_places(train.global_batch_size, micro * accumulation * ranks)
    scored = {"all": "all tasks after each", "seen": "those learned so far after each", "last": "all tasks at the end"}
    general = f"; general ability: {', '.join(config.general.suites)}" if config.general.suites else ""
    return (
        f"{config.method}, learning rate {train.learning_rate:g}; a step has {rows} = "
        f"{micro} (micro batch) x {accumulation} (accumulation) x {ranks} "
        f"rank{'s' * (ranks > 1)}; scored: {scored[evaluate.tasks]}{general}"
    )


def _setting(template: ChatTemplate | None) -> str:
    return template.setting if template else "none"
