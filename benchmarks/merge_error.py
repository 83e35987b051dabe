"""Measures the error of merging updates into 16-bit or 4-bit weights, in place and exactly, after each task.

    python -m benchmarks.merge_error --ledger runs/x/ledger [--data tasks/trace/sample --rows 4] [--json]
    python -m benchmarks.merge_error --ledger runs/x/ledger --dtype nf4

The error is |W_t - (W_0 + sum of updates)| / |sum of updates| (Frobenius norm, over all weights that the updates
change), with the sum in float64. W_0 is rounded to the 16-bit dtype first: published models are stored in 16 bits, and
this rounding is not an error of the merge. For nf4, W_0 is the original in bfloat16, so the error includes the whole
quantization error, most of which is that of W_0.
`one rounding` is the true sum rounded once: no merge into 16 bits can do better.
`arrived` is the share of the sum by which the weights moved: <W_t - W_0 as stored, sum> / |sum|^2.
With --data: the mean negative log-likelihood of the answers of the first rows of each task's test.json, in nats per
token, of the model with float32 weights and of both merges; the model itself always computes in float32.
"""

import argparse
import functools
from collections.abc import Iterable
from pathlib import Path

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.rounds import report
from codyra_llm.data.encode import encode_rows
from codyra_llm.engine.zero import add_delta
from codyra_llm.example import Example
from codyra_llm.files import read_json
from codyra_llm.ledger.entry import read_entry, summed
from codyra_llm.ledger.ledger import read_ledger
from codyra_llm.models.load import copy_part, load_model, original_weights
from codyra_llm.models.quantize import dequantized, is_quantized, quantized, set_weight
from codyra_llm.models.source import open_source

NF4 = "nf4"
WAYS = ("in place", "exact", "one rounding")


class Merges:
    """The updated weights of a model, merged in three ways: true (float64), in place and exact (both in `dtype`)."""

    def __init__(self, folders: list[Path], name: str, dtype: str) -> None:
        self.folders, read = folders, original_weights(name)
        self.base = {name: torch.empty(len(B), A.shape[1]) for name, (B, A) in summed(folders)}
        for name, weight in self.base.items():
            read(f"{name}.weight")(weight.view(-1), 0)
            weight.copy_(weight.to(torch.bfloat16 if dtype == NF4 else getattr(torch, dtype)))
        self.true = {name: weight.double() for name, weight in self.base.items()}
        self.in_place = {name: held(weight, dtype) for name, weight in self.base.items()}
        self.exact = {name: held(weight, dtype) for name, weight in self.base.items()}
        self.dtype = dtype

    def merge(self, number: int) -> dict[str, float]:
        """Merges the `number`-th entry (from 1); returns the relative error and the arrived share of each way."""
        for name, (B, A) in read_entry(self.folders[number - 1]).items():
            self.true[name] += B.double() @ A.double()
            add_in_place(self.in_place[name], B, A)
        for name, (B, A) in summed(self.folders[:number], of=self.folders[number - 1]):
            add_delta(self.exact[name], B, A, functools.partial(copy_part, self.base[name]))
        lost, arrived, whole = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0), 0.0
        for name, true in self.true.items():
            update, start = true - self.base[name], weight_of(held(self.base[name], self.dtype)).double()
            whole += float(update.square().sum())
            found = (self.in_place[name], self.exact[name], held(true.float(), self.dtype))
            for how, weight in zip(WAYS, (weight_of(projection).double() for projection in found), strict=True):
                lost[how] += float((weight - true).square().sum())
                arrived[how] += float(((weight - start) * update).sum())
        errors = {f"error, {how}": (lost[how] / whole) ** 0.5 for how in WAYS}
        return errors | {f"arrived, {how}": arrived[how] / whole for how in WAYS}


def held(weight: torch.Tensor, dtype: str) -> nn.Module:
    """Returns a projection that stores a copy of an fp32 weight, in a dtype or in NF4."""
    if dtype == NF4:
        layer = bnb.nn.LinearNF4(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.compute_dtype = torch.float32
        set_weight(layer, quantized(layer, weight.clone()))
        return layer
    holder = nn.Module()
    holder.weight = nn.Parameter(weight.to(getattr(torch, dtype), copy=True), requires_grad=False)
    return holder


def weight_of(projection: nn.Module) -> torch.Tensor:
    """Returns the weight of a projection, dequantized if it is quantized."""
    weight: torch.Tensor = dequantized(projection) if is_quantized(projection) else projection.weight
    return weight


def add_in_place(projection: nn.Module, B: torch.Tensor, A: torch.Tensor) -> None:
    """Adds an update to the stored weight of a projection and rounds (or quantizes) the sum again."""
    if is_quantized(projection):
        set_weight(projection, quantized(projection, dequantized(projection).addmm_(B, A)))
    else:
        add_delta(projection, B, A)


@torch.no_grad()
def answer_nll(model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]], examples: list[Example]) -> float:
    """Copies the weights into the model; returns the mean negative log-likelihood over answer tokens."""
    for name, weight in weights:
        model.get_submodule(name).weight.copy_(weight)
    total, tokens = 0.0, 0
    for example in examples:
        logits = model(torch.tensor([[*example.prompt, *example.answer]])).logits[0, len(example.prompt) - 1 : -1]
        total += float(nn.functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum"))
        tokens += len(example.answer)
    return total / tokens


def examples_of(data: Path, tasks: list[str], rows: int, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Returns the first rows of each task's test.json whose prompts have at most 1024 tokens."""
    found = []
    for task in tasks:
        content = read_json(data / task / "test.json")
        short = [row for row in content if len(tokenizer(row["prompt"]).input_ids) <= 1024]
        found += encode_rows(tokenizer, short[:rows], 1024)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", NF4], default="bfloat16")
    parser.add_argument("--data", type=Path, help="folder with <task>/test.json; without it, no answers are scored")
    parser.add_argument("--rows", type=int, default=4, help="of each task")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ledger = read_ledger(options.ledger)
    base, tasks = ledger.base_model.name, [entry.task for entry in ledger.entries]
    merges = Merges([options.ledger / entry.name for entry in ledger.entries], base, options.dtype)
    if options.data:
        model = load_model(base)
        examples = examples_of(options.data, tasks, options.rows, open_source(base).tokenizer)
    rows = []
    for number, task in enumerate(tasks, 1):
        row: dict[str, object] = {"tasks": f"{number} ({task})"}
        row |= {what: f"{100 * share:.2f} %" for what, share in merges.merge(number).items()}
        if options.data:
            row["NLL, float32"] = f"{answer_nll(model, merges.true.items(), examples):.4f}"
            for how, projections in (("in place", merges.in_place), ("exact", merges.exact)):
                weights = ((name, weight_of(projection)) for name, projection in projections.items())
                row[f"NLL, {how}"] = f"{answer_nll(model, weights, examples):.4f}"
        rows.append(row)
    report(f"merging into {options.dtype}, {base}, {len(tasks)} tasks", rows, options.json)


if __name__ == "__main__":
    main()
