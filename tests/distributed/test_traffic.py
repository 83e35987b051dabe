"""The planned traffic of an optimizer step equals the bytes that two ranks receive, exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from codyra_llm.config import load_config
from codyra_llm.models.source import open_source
from codyra_llm.planning.footprint import model_on_meta
from codyra_llm.planning.memory import ModelSizes, step_traffic
from tests.distributed.forked import run_forked
from tests.models import tiny_model

WHOLE = 500  # ZeRO-3 does not partition parameters up to this size: all branches and norms, but no projection
NOTHING_STAYS = {
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
ALL_STAYS = {"stage3_prefetch_bucket_size": 0}
WAYS: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3, nothing stays": {"stage": 3, **NOTHING_STAYS},
    "zero3, all stays": {"stage": 3, **ALL_STAYS},
}


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], tuple[Any, list[dict[str, list[int]]]]]:
    """{(architecture, way, recompute): (planned traffic, traffic received by each rank)}."""
    folder = tmp_path_factory.mktemp("traffic")
    jobs, planned = {}, {}
    for architecture in ("llama", "gemma"):  # untied and tied embeddings
        tiny_model(architecture, num_hidden_layers=3).save_pretrained(folder / architecture)
        for way, section in WAYS.items():
            for recompute in (False, True):
                key = (architecture, way, recompute)
                settings = {
                    "model.name_or_path": str(folder / architecture),
                    "adapter.rank": 4,
                    "train.global_batch_size": 8 // (1 + recompute),  # 2 micro batches, or 1
                    "train.per_device_train_batch_size": 2,
                    "model.gradient_checkpointing": recompute,
                }
                stage_3 = section["stage"] == 3
                zero = section | ({"stage3_param_persistence_threshold": WHOLE} if stage_3 else {})
                config = load_config(None, settings)
                model, _ = model_on_meta(config, open_source(config.model.name_or_path))
                planned[key] = step_traffic(
                    ModelSizes.of(model), DeepSpeedZeroConfig(**zero), 2, 2 - recompute, recompute
                )
                jobs[key] = {
                    "model": str(folder / architecture),
                    "settings": settings,
                    "zero": zero,
                    "persistent": 4 * WHOLE if stage_3 else 10**9,
                    "output": str(folder / "-".join(map(str, key))),
                    "log": str(folder / "log"),
                }
    statuses = run_forked("tests.distributed.traffic_worker", list(jobs.values()))
    assert not any(map(any, statuses)), (folder / "log").read_text()[-4000:]
    return {
        key: (planned[key], [json.loads(Path(f"{job['output']}.{rank}").read_text()) for rank in (0, 1)])
        for key, job in jobs.items()
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "gemma"])
def test_bytes_of_a_step_are_exact(moved: dict[Any, Any], architecture: str, way: str, recompute: bool) -> None:
    planned, ranks = moved[architecture, way, recompute]
    for received in ranks:
        assert set(received) <= {"gradients", "weights", "optimizer", "agreed"}
        of_kinds = {kind: received.get(kind, [0, 0]) for kind in ("gradients", "weights", "optimizer")}
        assert {kind: size for kind, (_, size) in of_kinds.items()} == {
            kind: getattr(planned, kind) for kind in of_kinds
        }
        assert of_kinds["gradients"][0] == planned.gradient_calls
        assert of_kinds["optimizer"][0] == planned.optimizer_calls
        assert received["agreed"][0] == planned.agreements
        assert of_kinds["weights"][0] <= planned.weight_calls
