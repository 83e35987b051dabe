"""Counts the padding of each packing mode and the memory of the logits; nothing is timed.

    python -m benchmarks.batches --data_dir LLM-CL-Benchmark_500

Padding: the share of padding in all tokens of an epoch, for each task, with contexts of up to 512 tokens. Logits: peak
bytes of the loss' forward and backward pass, starting from the decoder's output, over micro batches of the whole mix.
Our loss, which computes logits at answer positions only and in chunks, is compared with the loss over the logits of all
positions.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoTokenizer

from benchmarks.mix import epoch_tokens, examples
from benchmarks.rounds import report
from codyra_llm.data.batches import IGNORED, GlobalBatches, MicroBatch
from codyra_llm.engine.loss import summed_loss
from codyra_llm.models.head import answer_logits
from codyra_llm.models.load import load_model
from codyra_llm.models.source import resolve_model
from codyra_llm.planning.activations import LiveBytes


def most_alive(model: nn.Module, run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> int:
    """Returns the peak bytes of a loss of hidden states and its backward pass, without the model's weights."""
    hidden = hidden.detach().requires_grad_()
    count = LiveBytes()
    for weight in model.parameters():
        count.hold(weight)
    with count:
        run(hidden).backward()
    return count.peak


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="tasks/trace/sample")
    parser.add_argument("--rows", type=int, default=256, help="of each task")
    parser.add_argument("--global_batch", type=int, default=32)
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    mix = examples(tokenizer, options.data_dir, options.rows, "train")
    rows = []
    for packing in ("none", "bucket", "pack"):
        row: dict[str, object] = {"packing": packing}
        tokens = cells = 0
        for task, found in mix:
            of_task = epoch_tokens(
                GlobalBatches(found, options.global_batch, options.micro_batch, 1, 0, task.name, packing=packing)
            )
            row[task.name] = f"{1 - of_task[0] / of_task[1]:.1%}"
            tokens, cells = tokens + of_task[0], cells + of_task[1]
        rows.append(row | {"all": f"{1 - tokens / cells:.1%}"})
    sizes = f"global batch {options.global_batch}, micro batch {options.micro_batch}, {options.rows} rows a task"
    report(f"padded tokens, {sizes}", rows, options.json)

    model = load_model("smollm2-135m-instruct").requires_grad_(False)
    mixed = [example for _, found in mix for example in found[: options.global_batch // 4]]
    batches = GlobalBatches(mixed, options.global_batch, options.micro_batch, 1, 0, "mix")

    def whole(batch: MicroBatch, hidden: torch.Tensor) -> torch.Tensor:
        logits = answer_logits(model, hidden)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())

    def ours(batch: MicroBatch, hidden: torch.Tensor) -> torch.Tensor:
        targets = batch.labels[:, 1:]
        return summed_loss(model, hidden[:, :-1][targets != IGNORED], targets[targets != IGNORED])

    peaks: dict[str, list[int]] = {"all positions": [], "ours": []}
    for batch in (batch for step in range(batches.total_steps) for batch in batches.micro_batches(step)):
        hidden = torch.randn(*batch.input_ids.shape, model.config.hidden_size)
        peaks["all positions"].append(most_alive(model, lambda h, b=batch: whole(b, h), hidden))
        peaks["ours"].append(most_alive(model, lambda h, b=batch: ours(b, h), hidden))
    report(
        f"memory of the loss, micro batches of {options.micro_batch} rows, vocabulary of {model.config.vocab_size}",
        [
            {"loss": name, "most, MB": round(max(of) / 1e6), "of all positions": max(of) / max(peaks["all positions"])}
            for name, of in peaks.items()
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
