"""Measures whether later tasks cost more than earlier ones, and what checkpoints cost, in one run of eight equal tasks.

    python benchmarks/endurance.py                                  # ZeRO 0, one process
    python benchmarks/endurance.py --deepspeed ds_configs/zero3.json

Every task has the same rows under another name, so only the state that the program keeps can grow. The figures come
from the run's results.json: for each task the seconds of a training step, and the resident memory of its evaluation.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from codyra_llm import TaskStream, run
from codyra_llm.config import load_config

TASKS = 8


def endurance() -> None:
    """Runs the eight tasks and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--deepspeed", default=None, help="DeepSpeed JSON; empty: ZeRO stage 0")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a task (4 rows each)")
    options = parser.parse_args()
    rows = json.loads((Path(__file__).parents[1] / "tasks/trace/sample/FOMC/train.json").read_text(encoding="utf-8"))
    split = {"train": rows[:32], "test": rows[:4]}
    stream = TaskStream.from_rows({f"task-{number}": split for number in range(1, TASKS + 1)})
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            None,
            {
                "model.name_or_path": options.model,
                "output_dir": str(Path(folder) / "run"),
                "deepspeed": options.deepspeed,
                "train.global_batch_size": 4,
                "train.per_device_train_batch_size": 4,
                "train.num_train_epochs": options.steps / 8,
                "evaluate.max_new_tokens": 4,
            },
        )
        results = run(dataclasses.replace(config, order=tuple(stream.names)), stream)
    phases = {(phase.task, phase.phase): phase for phase in results.phases}
    seconds = [phases[task, "train"].seconds / options.steps for task in stream.names]
    resident = [phases[task, "evaluate"].resident_bytes for task in stream.names]
    print(f"\n| after task | resident, MB | of task 2 | s / step | of task 2 |\n|{'---|' * 5}")
    for number, (memory, step) in enumerate(zip(resident, seconds, strict=True), 1):
        ratios = memory / resident[1], step / seconds[1]
        print(f"| {number} | {memory / 1e6:.0f} | {ratios[0]:.3f} | {step:.2f} | {ratios[1]:.2f} |")
    training = sum(phases[task, "train"].seconds for task in stream.names)
    kept, every = results.checkpoint_seconds, config.train.checkpoint_every
    print(f"\ncheckpoints, every {every} steps and after each phase: {kept:.1f} s beside {training:.0f} s of training, "
          f"{kept / training:.1%}")  # fmt: skip


if __name__ == "__main__":
    endurance()
