"""Measures the peak memory of each rank in a whole run at ZeRO stage 3, on one rank and on two.

    python benchmarks/memory.py
    python benchmarks/memory.py --layers 8 --ranks 1 2 4

Writes a random LLaMA-shaped model, runs scripts/train_trace.py on two short tasks of the sample (load, train, merge,
evaluate, save) with each number of ranks, and prints the peak resident memory (VmHWM) of each process. All files are
deleted afterwards. The model has about 4 GB, so that its weights dominate the 0.7 GB or so that every process needs for
Python and its libraries. Needs twice the model's size of free memory and of disk space.
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PEAKS = "CODYRA_PEAK_FOLDER"
# DeepSpeed's defaults keep up to a billion gathered values alive, which would be the whole model.
DEEPSPEED = {
    "zero_optimization": {
        "stage": 3,
        "stage3_max_live_parameters": 20_000_000,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 5_000_000,
        "reduce_bucket_size": 5_000_000,
    }
}
RUN = {
    "order": "FOMC,NumGLUE-cm",
    "adapter.rank": 8,
    "data.max_train_examples": 4,
    "data.max_test_examples": 1,
    "train.global_batch_size": 2,
    "train.per_device_train_batch_size": 1,
    "train.num_train_epochs": 1,
    "evaluate.tasks": "last",
    "evaluate.max_new_tokens": 2,
    "evaluate.batch_size": 1,
    "evaluate.gather": "never",
}


def write_model(folder: Path, layers: int, hidden: int, dtype: str) -> int:
    """Writes a random LLaMA with the built-in model's tokenizer, one tensor at a time; returns its size in bytes."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig

    from codyra_llm.models.load import meta_model
    from codyra_llm.models.shards import write_shards
    from codyra_llm.models.source import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )
    layout = {name: weight.to(getattr(torch, dtype)) for name, weight in meta_model(config).named_parameters()}
    torch.manual_seed(0)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in layout.items():
            yield name, torch.randn(weight.shape).mul_(0.02).to(weight.dtype)

    folder.mkdir()
    write_shards(folder, layout, weights(), largest_file=5_000_000_000)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.nbytes for weight in layout.values())


def peaks_of_run(model: Path, scratch: Path, ranks: int, dtype: str) -> list[int]:
    """Runs the training command; returns the peak resident bytes of each rank."""
    output, peaks = scratch / f"run{ranks}", scratch / f"peaks{ranks}"
    peaks.mkdir()
    (scratch / "zero3.json").write_text(json.dumps(DEEPSPEED))
    fields = {
        **RUN,
        "model.name_or_path": model,
        "model.dtype": dtype,
        "output_dir": output,
        "deepspeed": scratch / "zero3.json",
    }
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), __file__),
            *(text for name, value in fields.items() for text in (f"--{name}", str(value))),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", PEAKS: str(peaks)},
        check=True,
    )
    return [int((peaks / str(rank)).read_text()) for rank in range(ranks)]


def train_and_measure() -> None:
    """Runs one rank: the real command, and then writes the peak resident bytes to a file."""
    sys.argv[0] = str(REPOSITORY / "scripts" / "train_trace.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    (Path(os.environ[PEAKS]) / os.environ["RANK"]).write_text(str(int(line.split()[1]) * 1024))


def main() -> None:
    """Reads the command line, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=56, help="decoder layers (default: 56)")
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size, a multiple of 64 (default: 1024)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: float32")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of ranks (default: 1 2)")
    parser.add_argument("--folder", help="where to put the model and the runs (default: the system's temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        size = write_model(Path(scratch) / "model", given.layers, given.hidden, given.dtype)
        peaks = {
            ranks: peaks_of_run(Path(scratch) / "model", Path(scratch), ranks, given.dtype) for ranks in given.ranks
        }
    highest = {ranks: max(values) for ranks, values in peaks.items()}
    first = given.ranks[0]
    print(f"\nmodel: {size / 1e9:.2f} GB, {given.dtype}\n")
    print(f"| ranks | peak memory of each rank (GB) | highest, of that on {first} |\n|---|---|---|")
    for ranks, values in peaks.items():
        each = ", ".join(f"{value / 1e9:.2f}" for value in values)
        print(f"| {ranks} | {each} | {highest[ranks] / highest[first]:.2f} |")


if __name__ == "__main__":
    if PEAKS in os.environ:
        train_and_measure()
    else:
        main()
