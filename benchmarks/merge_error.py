"""What merging into 16-bit weights loses of the updates: in place, task by task, and exactly, over one task to all.

    python -m benchmarks.merge_error --ledger runs/x/ledger [--data tasks/trace/sample --rows 4] [--json]

The error is |W_t - (W_0 + sum of updates)| / |sum of updates| (Frobenius, over all weights that updates touch), the
sum in float64. W_0 is rounded to the dtype first: published models are stored like that, and what it loses is not the
merge's. `one rounding` is what rounding the true sum once would give: no merge into this dtype can do better.
With --data: the mean negative log-likelihood of the answers of the first rows of each task's test.json, in nats per
token, of the model with float32 weights and of both merges; the model itself always computes in float32.
"""

import argparse
import functools
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.rounds import report
from codyra_llm.data.encode import Example, encode_rows
from codyra_llm.engine.zero import add_delta
from codyra_llm.files import read_json
from codyra_llm.ledger.entry import read_entry, summed
from codyra_llm.ledger.ledger import read_ledger
from codyra_llm.models.load import load_config_and_tokenizer, load_model, original_weights

Weights = dict[str, torch.Tensor]


class Merges:
    """The touched weights of a model, merged in three ways: true (float64), in place and exact (both in `dtype`)."""

    def __init__(self, folders: list[Path], name: str, dtype: torch.dtype) -> None:
        self.folders, read = folders, original_weights(name)
        self.base = {name: torch.empty(len(B), A.shape[1]) for name, (B, A) in summed(folders)}
        for name, weight in self.base.items():
            read(f"{name}.weight")(weight.view(-1), 0)
            weight.copy_(weight.to(dtype))
        self.true = {name: weight.double() for name, weight in self.base.items()}
        self.in_place = {name: weight.to(dtype) for name, weight in self.base.items()}
        self.exact = {name: weight.to(dtype) for name, weight in self.base.items()}

    def merge(self, number: int) -> dict[str, float]:
        """Merges the `number`-th entry (from 1); returns the errors."""
        for name, (B, A) in read_entry(self.folders[number - 1]).items():
            self.true[name] += B.double() @ A.double()
            add_delta(_holder(self.in_place[name]), B, A)
        for name, (B, A) in summed(self.folders[:number], of=self.folders[number - 1]):
            add_delta(_holder(self.exact[name]), B, A, functools.partial(_copy_part, self.base[name]))
        once = {name: weight.to(self.exact[name].dtype) for name, weight in self.true.items()}
        found = {"in place": self.in_place, "exact": self.exact, "one rounding": once}
        return {how: self._error(weights) for how, weights in found.items()}

    def _error(self, weights: Weights) -> float:
        lost = sum(float((weights[name].double() - true).square().sum()) for name, true in self.true.items())
        whole = sum(float((true - self.base[name].double()).square().sum()) for name, true in self.true.items())
        return (lost / whole) ** 0.5


def _copy_part(weight: torch.Tensor, part: torch.Tensor, start: int) -> None:
    part.copy_(weight.view(-1)[start : start + len(part)])


def _holder(weight: torch.Tensor) -> nn.Module:
    """A projection that has this weight."""
    holder = nn.Module()
    holder.weight = nn.Parameter(weight, requires_grad=False)
    return holder


@torch.no_grad()
def answer_nll(model: PreTrainedModel, weights: Weights, examples: list[Example]) -> float:
    """Mean over answer tokens of the negative log-likelihood, with these weights in the model."""
    for name, weight in weights.items():
        model.get_submodule(name).weight.copy_(weight)
    total, tokens = 0.0, 0
    for example in examples:
        logits = model(torch.tensor([[*example.prompt, *example.answer]])).logits[0, len(example.prompt) - 1 : -1]
        total += float(nn.functional.cross_entropy(logits, torch.tensor(example.answer), reduction="sum"))
        tokens += len(example.answer)
    return total / tokens


def examples_of(data: Path, tasks: list[str], rows: int, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The first rows of each task's test.json, long prompts left out."""
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
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--data", type=Path, help="folder with <task>/test.json; without it, no answers are scored")
    parser.add_argument("--rows", type=int, default=4, help="of each task")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    ledger = read_ledger(options.ledger)
    base, tasks = ledger.base_model.name, [entry.task for entry in ledger.entries]
    merges = Merges([options.ledger / entry.name for entry in ledger.entries], base, getattr(torch, options.dtype))
    if options.data:
        model = load_model(base)
        examples = examples_of(options.data, tasks, options.rows, load_config_and_tokenizer(base)[1])
    rows = []
    for number, task in enumerate(tasks, 1):
        row: dict[str, object] = {"tasks": f"{number} ({task})"}
        row |= {f"error, {how}": f"{100 * error:.2f} %" for how, error in merges.merge(number).items()}
        if options.data:
            ways = {"float32": merges.true, "in place": merges.in_place, "exact": merges.exact}
            row |= {f"NLL, {how}": f"{answer_nll(model, weights, examples):.4f}" for how, weights in ways.items()}
        rows.append(row)
    report(f"merging into {options.dtype}, {base}, {len(tasks)} tasks", rows, options.json)


if __name__ == "__main__":
    main()
