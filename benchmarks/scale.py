"""Planned times of large models on 8 to 512 GPUs, and a comparison of planned and measured times on 1 and 2 CPU ranks.

    python -m benchmarks.scale --into docs/scale.md [--ceilings h100]
    python -m benchmarks.scale --measure [--ranks 1,2] [--ways zero0,zero3] [--steps 6]

The tables are written between two marks of the page. With --measure, a model of a few layers is trained and answers
questions in separate processes. The machine's ceilings (products, copies, collectives, starting a layer) are measured
in the same processes, before and after, so that other load on the machine slows both. `ratio` is the modelled time
divided by the measured one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from codyra_llm.command import Parser, main
from codyra_llm.config import RunConfig, load_config
from codyra_llm.files import put_between_marks
from codyra_llm.planning.ceilings import Ceilings, Protocol
from codyra_llm.selfcheck.report import table as markdown
from codyra_llm.selfcheck.training import zero_section
from codyra_llm.text import align

SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "vocab_size": 4096}
# as many weights gathered at stage 3 (branches and norms are not gathered), and little to compute or to move
NARROW = SHAPE | {"hidden_size": 128, "intermediate_size": 128}
LENGTH, ANSWER, ACCUMULATION = 192, 32, 2
ROWS, PROMPT, NEW = 8, 128, 32  # of a batch of answers


def settings(ranks: int, recompute: bool) -> RunConfig:
    """Returns the configuration of a measured run."""
    rows = {"train.per_device_train_batch_size": 2, "train.global_batch_size": 2 * ranks * ACCUMULATION}
    return load_config(None, {**rows, "adapter.rank": 16, "model.gradient_checkpointing": recompute})


def model_config(shape: dict[str, int]) -> Any:
    """Returns the configuration of a measured model, which has random weights in fp32."""
    from transformers import LlamaConfig

    heads = shape["hidden_size"] // 64
    return LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads // 2, tie_word_embeddings=False)


def measure(way: str, recompute: bool, steps: int, clock: str, output: Path) -> None:
    """Runs one rank of a measured run; the first rank writes its times and the ceilings to `output`."""
    import torch
    from transformers import AutoModelForCausalLM

    from codyra_llm.distributed.ranks import start

    ranks = start()
    torch.manual_seed(0)
    if clock == "cpu":
        time.perf_counter = time.process_time
    before = ceilings_here(ranks)
    answers = seconds_of_answers(AutoModelForCausalLM.from_config(model_config(SHAPE)).eval())
    taken = seconds_of_steps(way, SHAPE, recompute, steps, ranks)
    fetching = 0.0
    if _section(way, SHAPE)["stage"] == 3:
        fetching = seconds_of_steps(way, NARROW, recompute, steps, ranks)
        fetching -= seconds_of_steps("zero0", NARROW, recompute, steps, ranks)
    after = ceilings_here(ranks)
    found = {what: (before[what] + after[what]) / 2 for what in before}
    if ranks.is_main:
        output.write_text(json.dumps({"step": taken, "answers": answers, "fetching": fetching, "ceilings": found}))


def ceilings_here(ranks: Any) -> dict[str, float]:
    """Measures the ceilings of this machine while all ranks are busy.

    Returns:
        Fields of `Ceilings`, and `narrow`: bytes of weights a second in products with few rows.
    """
    import torch
    import torch.distributed as dist

    width, features = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    x, weight = torch.randn(2 * LENGTH, width), torch.randn(features, width)
    source = torch.ones(2**24)
    target, small, big = torch.empty_like(source), torch.zeros(2), torch.zeros(2**21)
    narrow, one = _narrow(), torch.ones(1, 1, dtype=torch.long)

    def timed(run: Callable[[], object]) -> float:
        dist.barrier()
        return _median(run, 7)

    weights = [torch.randn(features, width) for _ in range(24)]  # larger than the caches
    few = torch.randn(ROWS, width)
    product = timed(lambda: torch.nn.functional.linear(x, weight))
    narrow_products = timed(lambda: [torch.nn.functional.linear(few, each) for each in weights])
    copy = timed(lambda: target.copy_(source))
    layer = timed(torch.inference_mode()(lambda: narrow(one, use_cache=False))) / 8
    call = transfer = 1e-9
    if ranks.size > 1:
        parts = {size: torch.zeros(size // 2) for size in (len(small), len(big))}
        call = timed(lambda: dist.all_gather_into_tensor(small, parts[len(small)]))
        transfer = timed(lambda: dist.all_gather_into_tensor(big, parts[len(big)])) - call
    return {
        "flops": 2 * x.shape[0] * width * features / product,
        "memory": 2 * source.nbytes / copy,
        "narrow": sum(each.nbytes for each in weights) / narrow_products,
        "link": big.nbytes / 2 / max(transfer, 1e-9),
        "call": call,
        "layer": layer,
    }


def _narrow() -> Any:
    from codyra_llm.selfcheck.ceilings import narrow_model

    return narrow_model("cpu")


def _median(run: Callable[[], object], rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def seconds_of_steps(way: str, shape: dict[str, int], recompute: bool, steps: int, ranks: Any) -> float:
    """Returns the median seconds of an optimizer step, without the first two steps."""
    import torch
    from transformers import AutoModelForCausalLM

    from codyra_llm.data.batches import GlobalBatches
    from codyra_llm.distributed.ranks import all_gather, broadcast
    from codyra_llm.engine.ds_config import complete
    from codyra_llm.engine.train import train_task
    from codyra_llm.engine.zero import placement
    from codyra_llm.example import Example
    from codyra_llm.methods import METHODS
    from codyra_llm.models.load import load_model

    config, section = settings(ranks.size, recompute), {"zero_optimization": _section(way, shape)}
    with tempfile.TemporaryDirectory() as own:
        AutoModelForCausalLM.from_config(model_config(shape), dtype=torch.float32).save_pretrained(own)
        folder = broadcast(own)  # transformers writes on rank 0 alone
        model = load_model(folder, place=placement(complete(section, config.train, ranks.size), ranks))
        all_gather(None)  # all ranks have loaded before the folder is deleted
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ready = METHODS[config.method](config).prepare(model, "measured", steps + 2)
    example = Example(list(range(100, 100 + LENGTH - ANSWER)), list(range(100, 100 + ANSWER)))
    size = config.train.global_batch_size
    rows = [example] * ((steps + 2) * size)
    batches = GlobalBatches(rows, size, config.train.per_device_train_batch_size, 1, 0, "measured", ranks.size)
    reports = train_task(model, ready.optimizer, ready.schedule, batches, config.train, section, ranks)
    return statistics.median(report.seconds for report in reports[2:])


def seconds_of_answers(model: Any) -> float:
    """Returns the seconds of one batch of answers of NEW tokens each, on this rank alone and without guesses."""
    from unittest.mock import patch

    import torch

    from codyra_llm.example import Example
    from codyra_llm.generation.generate import Question, answer_questions
    from codyra_llm.generation.prompt_lookup import Draft
    from codyra_llm.models.source import open_source

    tokenizer = open_source("smollm2-135m-instruct").tokenizer
    prompts = torch.randint(100, SHAPE["vocab_size"], (ROWS, PROMPT)).tolist()
    questions = [Question(Example(prompt, [7] * ANSWER), NEW) for prompt in prompts]
    # no answer ends before its limit
    with (
        patch.object(Draft, "guess", return_value=[]),
        patch("codyra_llm.generation.generate.end_tokens", return_value=frozenset()),
    ):
        return _median(lambda: answer_questions(model, tokenizer, questions, ROWS), 3)


def _section(way: str, shape: dict[str, int]) -> dict[str, Any]:
    """Returns the ZeRO section of DeepSpeed's configuration.

    Communication does not overlap computation, since gloo runs on the same cores. At stage 3 a weight is gathered for
    each use; projections are partitioned, branches, which are smaller, are not.
    """
    section = {**zero_section(way), "overlap_comm": False}
    if section["stage"] == 3:
        section |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        section["stage3_param_persistence_threshold"] = shape["hidden_size"] ** 2 // 2 - 1  # k and v have a value more
    return section


def run_measured(way: str, ranks: int, recompute: bool, steps: int, clock: str) -> dict[str, Any]:
    """Runs `measure` on all ranks; returns what it writes."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command += ["-m", "benchmarks.scale", "--ways", way, "--steps", str(steps), "--clock", clock]
        command += ["--output", str(output)]
        command += ["--recompute"] if recompute else []
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def modelled(way: str, ranks: int, recompute: bool, measured: dict[str, Any]) -> tuple[Any, float]:
    """Returns the plan's (time of a step, seconds of a batch of answers), with the measured ceilings."""
    import torch
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from codyra_llm.methods import METHODS
    from codyra_llm.models.load import meta_model
    from codyra_llm.planning.activations import pass_bytes
    from codyra_llm.planning.memory import ModelSizes, step_traffic
    from codyra_llm.planning.run_time import StepModel
    from codyra_llm.planning.time_model import Questions, Shape, batch_seconds

    config, zero = settings(ranks, recompute), DeepSpeedZeroConfig(**_section(way, SHAPE))
    model = meta_model(model_config(SHAPE), dtype=torch.float32)
    METHODS[config.method](config).wrap(model)
    sizes = ModelSizes.of(model)
    shape = Shape.of(model, sizes)
    micro = config.train.per_device_train_batch_size
    _, touched, forward = pass_bytes(model, micro, LENGTH, micro * ANSWER, recompute, zero.stage == 3)
    traffic = step_traffic(sizes, zero, ranks, ACCUMULATION, recompute)
    stated = {"network": 1.0, "host": 1.0, "devices": ranks, "disk": 1.0, "hashing": 1.0}
    here = dict(measured["ceilings"])
    narrow = here.pop("narrow")
    if traffic.weight_calls:  # the narrow model has the same number of calls
        here["fetch"] = max(0.0, measured["fetching"] / traffic.weight_calls - here["call"])
    machine = Ceilings("here", **here, **stated, protocols=(Protocol(0, 0),), ahead=False)
    how = ACCUMULATION, touched, traffic, zero, ranks, recompute
    step = StepModel(shape, machine).step((micro, LENGTH, LENGTH, ANSWER), *how)
    plain = dataclasses.replace(shape, branches=0, touched=forward / micro / LENGTH)  # no branches while answering
    reads = dataclasses.replace(machine, memory=narrow)
    return step, batch_seconds(plain, reads, Questions(ROWS, PROMPT, ANSWER, NEW), ROWS)


# eight tasks of 20,000 training and 500 test rows of 2048 tokens, 512 of them the answer; TRACE's six suites, 200 items
RUN = {
    "model.dtype": "bfloat16",
    "data_dir": "nowhere",
    "data.max_prompt_length": 1536,
    "adapter.rank": 16,
    "train.num_train_epochs": 1,
    "train.global_batch_size": 512,
    "train.per_device_train_batch_size": 4,
    "model.gradient_checkpointing": True,
    "evaluate.max_new_tokens": 128,
    "general.suites": ("general",),
    "general.limit": 200,
}
TRAIN_ROWS, TEST_ROWS, TASKS = 20_000, 500, 8
MODELS = (
    "meta-llama/Llama-3.1-8B", "google/gemma-2-27b", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-405B",
)  # fmt: skip
GPUS, STAGES = (8, 32, 128, 512), (1, 2, 3)


def planned(name: str, ceilings: Ceilings, gpu_memory: int) -> Iterator[dict[str, object]]:
    """Yields the rows of a model's table: each number of GPUs at each ZeRO stage."""
    from codyra_llm.data.batches import divide_batch
    from codyra_llm.models.architectures import find_source
    from codyra_llm.planning.activations import pass_bytes
    from codyra_llm.planning.footprint import model_on_meta, needed, zero_of
    from codyra_llm.planning.memory import FP32, ModelSizes, rank_memory, step_traffic
    from codyra_llm.planning.run_time import Files, StepModel, holds_whole, run_time
    from codyra_llm.planning.time_model import Questions, Shape

    config = load_config(None, {**RUN, "model.name_or_path": name})
    model, projections = model_on_meta(config, find_source(name))
    sizes = ModelSizes.of(model)
    of_steps = StepModel(Shape.of(model, sizes), ceilings)
    files = Files((3 * sizes.trainable + sizes.gates) * FP32, (sizes.trainable - sizes.gates) * FP32, len(projections))
    answer, passes = config.data.max_answer_length, {}
    length = RUN["data.max_prompt_length"] + answer
    new = config.evaluate.max_new_tokens
    tasks = [f"task {number}" for number in range(1, TASKS + 1)]
    questions = dict.fromkeys(tasks, Questions(TEST_ROWS, length - answer, new, new))
    steps = dict.fromkeys(tasks, TRAIN_ROWS // config.train.global_batch_size)
    for gpus in GPUS:
        micro, accumulation = divide_batch(config.train.global_batch_size, 4, gpus)
        for stage in STAGES:
            zero, kind = zero_of(f"ds_configs/zero{stage}.json"), (micro, stage == 3)
            if kind not in passes:
                passes[kind] = pass_bytes(model, micro, length, micro * answer, True, stage == 3)
            memory = rank_memory(sizes, zero, gpus, accumulation, passes[kind][0])
            traffic = step_traffic(sizes, zero, gpus, accumulation, recompute=True)
            row = {"GPUs": gpus, "ZeRO": stage, "needs GB": needed(memory) / 1e9, "GB a step": traffic.network / 1e9}
            calls = traffic.gradient_calls + traffic.weight_calls + traffic.optimizer_calls
            row["collectives"] = calls + traffic.agreements
            if needed(memory) > gpu_memory:
                yield row | dict.fromkeys(COLUMNS, "") | {COLUMNS[-1]: "does not fit"}
                continue
            how = accumulation, passes[kind][1], traffic, zero, gpus, True
            step = of_steps.step((micro, length, length, answer), *how)
            whole = stage < 3 or holds_whole("auto", of_steps.shape.weights, gpu_memory - memory.held)
            touched = passes[kind][2] / micro / length
            of_steps = dataclasses.replace(of_steps, shape=dataclasses.replace(of_steps.shape, touched=touched))
            time = run_time(config, of_steps, step, steps, questions, files, gpus, stage, whole)
            yield row | _columns(time, step, whole)


COLUMNS = (
    "computing", "moving", "step", "training", "files", "merge", "evaluation", "general", "all 8 tasks",
    "longest",
)  # fmt: skip


def _columns(time: Any, step: Any, whole: bool) -> dict[str, str]:
    """Returns the columns of times; those of a task are of the last one, whose merge takes the longest."""
    from codyra_llm.planning.report import seconds

    task = time.tasks[-1]
    of_task = {
        "training": task.training, "files": task.checkpoints, "merge": task.merge, "evaluation": task.evaluation,
        "general": task.general,
    }  # fmt: skip
    longest = max(of_task, key=lambda name: of_task[name])
    if longest == "training":
        longest = "gathering" if step.network > step.compute else "computing"
    elif not whole and longest in ("evaluation", "general"):
        longest += ", weights in parts"
    found = [step.compute, step.network, step.total, *of_task.values(), time.total]
    return dict(zip(COLUMNS, [*map(seconds, found), longest], strict=True))


def compare(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the header and the rows of the table of measured times."""
    yield ["way", "ranks", "recompute", "step modelled s", "measured s", "ratio", "of it moving s", "answers ratio"]
    for ranks in map(int, options.ranks.split(",")):
        for way in options.ways.split(","):
            for recompute in (False, True):
                found = run_measured(way, ranks, recompute, options.steps, options.clock)
                step, answers = modelled(way, ranks, recompute, found)
                print(found, file=sys.stderr, flush=True)
                numbers = [step.total, found["step"], step.total / found["step"], step.network]
                numbers += [answers / found["answers"]]
                yield [way, str(ranks), "yes" if recompute else "no", *(f"{number:.2f}" for number in numbers)]


def command() -> None:
    """Reads the command line; compares with measured times, or makes the planned tables."""
    parser = Parser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="compare with measured times")
    parser.add_argument("--ways", default="zero0,zero1,zero2,zero3", help="ways of running to measure")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks to measure")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps to measure")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="measure processor time, where others use the machine"
    )
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", default="h100", help="as scripts/plan.py --ceilings (default: h100)")
    parser.add_argument("--gpu-memory", default="80GB", help="of one GPU (default: 80GB)")
    parser.add_argument("--into", type=Path, help="the page between whose marks the tables are put")
    options = parser.parse_args(sys.argv[1:])
    if options.output:
        measure(options.ways, options.recompute, options.steps, options.clock, options.output)
        return
    if options.measure:
        rows = list(compare(options))
        print(align(rows))
        part, text = "measured", markdown([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    else:
        part, text = "planned", "\n\n".join(sections(options.ceilings, options.gpu_memory))
        print(text)
    if options.into:
        put_between_marks(options.into, part, text)


def sections(name: str, gpu_memory: str) -> Iterator[str]:
    """Yields the assumptions, and then the table of each model."""
    from codyra_llm.planning.ceilings import find_ceilings
    from codyra_llm.planning.footprint import parse_size

    ceilings = find_ceilings(name)
    yield f"Ceilings: {ceilings.name}, {ceilings.source}. GPUs of {gpu_memory}."
    for model in MODELS:
        print(model, file=sys.stderr, flush=True)
        yield f"**{model}**\n\n{markdown(list(planned(model, ceilings, parse_size(gpu_memory))))}"


if __name__ == "__main__":
    main(command)
