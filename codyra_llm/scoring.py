"""Scoring a model as it is on the tasks of a configuration: what `run` measures after a task, without training."""

from typing import Any

from tqdm import tqdm

from codyra_llm.config import RunConfig
from codyra_llm.continual import on_main
from codyra_llm.engine.ds_config import complete
from codyra_llm.engine.launch import start
from codyra_llm.engine.zero import placement, readable
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import evaluate_tasks
from codyra_llm.evaluation.generate import Answered
from codyra_llm.evaluation.scorers import VARIANTS
from codyra_llm.models.load import load_model
from codyra_llm.plan import plan_run
from codyra_llm.report.folder import RunFolder
from codyra_llm.results import new_results
from codyra_llm.text import align

OF_A_RUN = ("schema_version", "command", "versions", "config", "seed", "world_size", "model", "data", "tasks")


def score_model(config: RunConfig) -> dict[str, Any]:
    """Scores config.model on every task of the configuration; each rank answers its share of the rows.

    Leaves in config.output_dir: config.yaml, results.json and predictions/model.<task>.jsonl.

    Returns:
        What stands in results.json: what a run says of itself, `scores` (variant -> task -> 0 to 100), `mean`
        (variant -> mean over tasks) and `answer_nll` (task -> nats per token of the true answers).

    Raises:
        UserError: the configuration, data or model is unfit, or output_dir holds something else.
    """
    world = start(config.rendezvous_seconds)
    plan = plan_run(config, world)
    folder: RunFolder = on_main(world, lambda: _folder(config))
    place = placement(complete(plan.deepspeed_json, config.train, world.size), world)
    model = load_model(config.model.name_or_path, config.model.dtype, config.model.attn_implementation, place)
    on_main(world, lambda: folder.open())
    if place is None:
        model.to(world.device)  # type: ignore[arg-type]
    rows = sum(len(examples) for examples in plan.test_examples)
    with tqdm(total=rows, desc="scoring", unit="row", disable=not world.is_main) as progress:

        def on_round(fresh: dict[int, Answered]) -> None:
            progress.update(len(fresh))

        with readable(model, config.evaluate.gather, world) as synced:
            scored = evaluate_tasks(
                model,
                plan.tokenizer,
                plan.stream.tasks,
                plan.test_examples,
                config.evaluate,
                world,
                on_round=on_round,
                synced=synced,
            )
    by_task = dict(zip(plan.stream.names, scored, strict=True))
    scores = {variant: {task: each.totals[variant] for task, each in by_task.items()} for variant in VARIANTS}
    results = {key: value for key, value in new_results(config, plan, model, world.size).items() if key in OF_A_RUN}
    results |= {
        "scores": scores,
        "mean": {variant: sum(of_tasks.values()) / len(of_tasks) for variant, of_tasks in scores.items()},
        "answer_nll": {task: each.nll for task, each in by_task.items()},
    }

    def write() -> None:
        for task, each in by_task.items():
            folder.write_predictions("model", task, each.rows)
        folder.write_results(results)
        print(f"{_table(results)}\n\nall results are in {folder.path}")

    on_main(world, write)
    return results


def _folder(config: RunConfig) -> RunFolder:
    folder = RunFolder(config)
    if (folder.path / "checkpoints").exists():
        raise UserError(f"output_dir {folder.path}: holds a training run; name another folder for the scores")
    return folder


def _table(results: dict[str, Any]) -> str:
    rows = [["task", *VARIANTS, "NLL"]]
    for task in results["tasks"]:
        of_task = [f"{results['scores'][variant][task]:.1f}" for variant in VARIANTS]
        rows.append([task, *of_task, f"{results['answer_nll'][task]:.3f}"])
    return align([*rows, ["mean", *(f"{results['mean'][variant]:.1f}" for variant in VARIANTS), ""]])
