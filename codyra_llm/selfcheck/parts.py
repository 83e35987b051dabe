"""The parts of the self-check, in their order, and their execution in separate processes."""

import importlib
import json
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from codyra_llm.files import append_json_line, read_json_lines
from codyra_llm.selfcheck.outcome import Outcome, Setting, Skipped
from codyra_llm.selfcheck.processes import resolve, run_apart
from codyra_llm.text import one_line

WAYS = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload")
# glibc keeps freed memory by default; with these, a tensor of 64 KiB or more is returned to the kernel when freed
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
TUNED_ONCE = {"TRITON_CACHE_AUTOTUNING": "1"}  # autotuning results of one process are reused by others from the disk


@dataclass(frozen=True)
class Part:
    """A part of the self-check.

    Attributes:
        name: of the part.
        kind: correctness, speed or memory.
        function: "module:function" in this folder; it takes the setting and `arguments`, and yields rows.
        arguments: further arguments of the function.
        least: seconds that must be left to start it.
        on_cpu, on_cuda: environment variables for it on each device.
    """

    name: str
    kind: str
    function: str
    arguments: tuple[object, ...] = ()
    least: float = 10
    on_cpu: Mapping[str, str] = field(default_factory=dict)
    on_cuda: Mapping[str, str] = field(default_factory=lambda: TUNED_ONCE)


PARTS = (
    Part("machine", "correctness", "machine:machine", least=0),
    Part("kernels", "correctness", "kernel_checks:products", on_cpu={"TRITON_INTERPRET": "1"}),
    Part("fused layer", "correctness", "kernel_checks:layers", on_cpu={"TRITON_INTERPRET": "1"}),
    Part("training on the CPU", "correctness", "training:on_cpu", on_cuda=WITHOUT_GPU),
    *(Part(f"training {way}", "correctness", "training:like_the_cpu", (way, "float32")) for way in WAYS),
    Part("training bfloat16", "correctness", "training:like_the_cpu", ("zero0", "bfloat16")),
    Part("bases in 4 and 8 bits", "correctness", "bases:bases"),
    Part("answers", "correctness", "answers:like_generate"),
    Part("kill and resume", "correctness", "resume:killed"),
    Part("synchronisations", "speed", "synchronisations:synchronisations"),
    Part("bandwidth", "speed", "bandwidth:bandwidth"),
    Part("ceilings", "speed", "ceilings:ceilings"),
    Part("memory", "memory", "memory:memory", on_cpu=ALLOCATOR),
    *(
        Part(f"step {shape}", "speed", "steps:step", (shape,), least=20)
        for shape in ("llama-1b", "llama-2-7b", "gemma-2b")
    ),
    Part("speed of answers", "speed", "answers:speed", least=20),
    Part("merge", "speed", "bandwidth:merge"),
    Part("kernels compiled ahead", "correctness", "ahead:ahead", least=20),
    *(
        Part(f"compiled step {shape}", "speed", "steps:compiled", (shape,), least=60)
        for shape in ("llama-1b", "llama-2-7b", "gemma-2b")
    ),
)
IMPORTED = ("codyra_llm.workflows.train", "peft", "bitsandbytes")  # before parts are forked


def carry_out(part: Part, setting: Setting, logs: Path) -> Outcome:
    """Runs a part in a separate process within the remaining time, and reads its rows."""
    outcome, began = Outcome(part.name, part.kind), time.monotonic()
    if setting.left < part.least:
        outcome.status, outcome.reason = "skipped", f"{setting.left:.0f} s are left of the time for all parts"
        return outcome
    environment = part.on_cpu if setting.small else part.on_cuda
    fork = setting.small and not environment
    for name in IMPORTED if fork else ():
        if find_spec(name.split(".")[0]):
            importlib.import_module(name)
    rows = setting.scratch / f"{part.name}.jsonl"
    log = logs / f"{part.name.replace(' ', '_')}.log"
    status = run_apart(f"{__name__}:work", [part, setting, rows], log, setting.left, environment, fork)
    outcome.seconds = time.monotonic() - began
    _read(outcome, read_json_lines(rows), status, log)
    return outcome


def work(part: Part, setting: Setting, output: Path) -> None:
    """Runs a part in its process: writes each row as it is yielded, and at the end a line with its status."""
    try:
        for row in resolve(f"codyra_llm.selfcheck.{part.function}")(setting, *part.arguments):
            append_json_line(output, row)
        ended = {"ended": "passed"}
    except Skipped as reason:
        ended = {"ended": "skipped", "reason": str(reason)}
    except ModuleNotFoundError as error:
        traceback.print_exc()
        missing = str(error.name).split(".")[0]
        if missing == "codyra_llm":
            raise
        ended = {"ended": "skipped", "reason": f"{missing} is not installed"}
    except Exception as error:
        traceback.print_exc()
        ended = {"ended": "failed", "reason": one_line(f"{type(error).__name__}: {error}")[:300]}
    append_json_line(output, ended)


def _read(outcome: Outcome, lines: list[dict[str, object]], status: int | None, log: Path) -> None:
    ended = lines.pop() if lines and "ended" in lines[-1] else {}
    outcome.rows = lines
    if status is None:
        outcome.status, outcome.reason = "skipped", "was stopped when the time for all parts was over"
    elif not ended:
        outcome.status, outcome.reason = "failed", f"its process ended with status {status}; see {log.name}"
    else:
        outcome.status, outcome.reason = str(ended["ended"]), str(ended.get("reason", ""))
    if wrong := [row for row in lines if row.get("passed") is False]:
        outcome.status = "failed"
        outcome.reason = one_line(json.dumps({k: v for k, v in wrong[0].items() if k != "passed"}))[:300]
