"""Compares the measured memory of training with that planned by scripts/plan.py: the built-in model, every ZeRO stage.

    python benchmarks/footprint.py [--ranks 1,2] [--ways zero0,zero3] [--recompute no] [--rows 1] [--length 128]
    python benchmarks/footprint.py --ranks 1 --ways zero0 --recompute no --dtype bfloat16 --quantization nf4

Each way of running trains the built-in model in its own processes, on the CPU. The measured value is the growth of a
rank's resident memory from before the model is loaded to the peak of the third optimizer step, as reported by the
kernel (VmRSS; VmHWM, reset after the second step), on the rank where it is largest. On a CPU, device and host memory
are the same, so the plan's two figures are added. Reduce buckets are set to 2 million values: DeepSpeed's default of
500 million would be most of the planned memory, but such a bucket is allocated and hardly touched, so on a CPU it is
not resident. Gloo, unlike NCCL, receives an all-gather in its own buffer and then copies it: where ZeRO-3 gathers over
several ranks, one more prefetch bucket is counted here than in the plan for GPUs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from codyra_llm.command import Parser, main
from codyra_llm.config import RunConfig, load_config
from codyra_llm.selfcheck.memory import ANSWER, Watch, resident, train
from codyra_llm.selfcheck.parts import ALLOCATOR, WAYS
from codyra_llm.selfcheck.training import zero_section
from codyra_llm.text import align

ACCUMULATION = 2


def run_config(rows: int, ranks: int, checkpointing: bool, held: dict[str, Any]) -> RunConfig:
    """Returns the configuration of a measured run.

    Args:
        rows: rows of a micro batch.
        ranks: number of ranks.
        checkpointing: whether gradient checkpointing is on.
        held: fields of the section `model` that specify how weights are stored (dtype, quantization).
    """
    overrides = {
        **{f"model.{name}": value for name, value in held.items()},
        "train.per_device_train_batch_size": rows,
        "train.global_batch_size": rows * ranks * ACCUMULATION,
        "model.gradient_checkpointing": checkpointing,
    }
    return load_config(None, overrides)


def measure(way: str, rows: int, length: int, checkpointing: bool, held: dict[str, Any], output: Path) -> None:
    """Runs one rank of a measured run; the first rank writes (loaded, between steps, peak) bytes to `output`."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from codyra_llm.distributed.ranks import all_gather, start
    from codyra_llm.engine.zero import load_base
    from codyra_llm.models.source import open_source

    ranks = start()
    config = run_config(rows, ranks.size, checkpointing, held)
    tiny = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    # a first run on a tiny model: what libraries allocate at first use is not part of the plan
    train(AutoModelForCausalLM.from_config(tiny), config, way, length, ranks)
    watch = Watch("cpu")
    model = load_base(open_source(config.model.name_or_path), config, {"zero_optimization": {"stage": 0}}, ranks, print)
    gc.collect()
    loaded = resident("VmRSS") - watch.before
    train(model, config, way, length, ranks, lambda report, read: watch.step(report.step))
    results = all_gather((loaded, watch.between, watch.peak))
    if ranks.is_main:
        output.write_text(json.dumps([max(values) for values in zip(*results, strict=True)]))


def run_measured(
    way: str, ranks: int, rows: int, length: int, checkpointing: bool, held: dict[str, Any]
) -> tuple[int, int, int]:
    """Returns (bytes of the loaded model, bytes between steps, peak bytes), each the maximum over the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += [__file__, "--ways", way, "--rows", str(rows), "--length", str(length), "--output", str(output)]
        command += ["--checkpointing"] if checkpointing else []
        command += [word for name, value in held.items() if value for word in (f"--{name}", value)]
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        loaded, between, peak = json.loads(output.read_text())
        return loaded, between, peak


def planned(
    ways: list[str], ranks: int, rows: int, length: int, checkpointing: bool, held: dict[str, Any]
) -> tuple[int, dict[str, int]]:
    """Returns the plan's (bytes of the base weights, {way: peak bytes of device and host together})."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from codyra_llm.models.source import open_source
    from codyra_llm.planning.activations import activation_bytes
    from codyra_llm.planning.footprint import model_on_meta
    from codyra_llm.planning.memory import ModelSizes, partitioned, rank_memory

    config = run_config(rows, ranks, checkpointing, held)
    model, _ = model_on_meta(config, open_source(config.model.name_or_path))
    sizes = ModelSizes.of(model)
    peaks = {}
    for way in ways:
        section = zero_section(way)
        if ranks == 1:
            section.pop("offload_param", None)  # a single rank on a CPU uses offloaded weights in place
        zero = DeepSpeedZeroConfig(**section)
        activations = activation_bytes(model, rows, length, rows * ANSWER, checkpointing, zero.stage == 3)
        memory = rank_memory(sizes, zero, ranks, ACCUMULATION, activations)
        peaks[way] = memory.shared_peak
        if zero.stage == 3 and ranks > 1:
            values, total = partitioned(sizes, zero)
            received = min(values, zero.prefetch_bucket_size) * total // values
            while_gathering = memory.passing - memory.activations + received
            peaks[way] = max(peaks[way], memory.held + memory.host + while_gathering)
    return sizes.bytes_of(trains=False), peaks


def compare() -> None:
    """Reads the command line; measures, plans and prints the table."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ways", default=",".join(WAYS), help="which ways of running")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks")
    parser.add_argument("--recompute", default="no,yes", help="without gradient checkpointing, with it")
    parser.add_argument("--rows", type=int, default=1, help="rows of a micro batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--dtype", default="float32", help="of the base weights (default: float32)")
    parser.add_argument("--quantization", choices=["nf4", "int8"], help="hold the projections in 4 or 8 bits")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(sys.argv[1:])
    ways, held = options.ways.split(","), {"dtype": options.dtype, "quantization": options.quantization}
    if options.output:
        measure(ways[0], options.rows, options.length, options.checkpointing, held, options.output)
        return
    head = ["way", "ranks", "recompute", "planned MB", "measured MB", "ratio", "between steps MB"]
    table = [[*head, "base planned MB", "base loaded MB"]]
    for checkpointing in (word == "yes" for word in options.recompute.split(",")):
        for ranks in map(int, options.ranks.split(",")):
            base, plans = planned(ways, ranks, options.rows, options.length, checkpointing, held)
            for way in ways:
                measured = run_measured(way, ranks, options.rows, options.length, checkpointing, held)
                loaded, between, peak = measured
                numbers = [f"{plans[way] / 1e6:.0f}", f"{peak / 1e6:.0f}", f"{plans[way] / peak:.2f}"]
                table.append([way, str(ranks), "yes" if checkpointing else "no", *numbers, f"{between / 1e6:.0f}"])
                table[-1] += [f"{base / 1e6:.1f}", f"{loaded / 1e6:.1f}"]
                print(align([table[0], table[-1]]), flush=True)
    print(align(table))


if __name__ == "__main__":
    main(compare)
