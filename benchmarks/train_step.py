"""Compares a forward and backward pass with branches and without: time, kept activations, operator traffic.

    python -m benchmarks.train_step                              # all models, 15 rounds
    python -m benchmarks.train_step --models group --rounds 1    # only the counted figures of a q/k/v group

All contestants run in turn in every round, in one process. `bound` is the frozen base where only activations receive
gradients; `reference` and `fused` are ours; `PEFT` is PEFT's LoRA with the same rank and target modules. Models: two
blocks of the shapes of Llama-3.2-1B and of Gemma-2-2B and four small blocks of hidden size 1024, with random weights
and a random upstream gradient instead of a loss; and the built-in 135M model on random token ids, of which a fifth are
answers. On the latter, PEFT also runs with the loss of transformers (logits at every position).
Counted figures (bytes, operations, growth of the peak of memory) come from one additional step each.
"""

import argparse
import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import LlamaConfig

from benchmarks.counting import cost, costs, saved_bytes
from benchmarks.rounds import report
from codyra_llm.data.batches import IGNORED
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.models.load import load_model
from codyra_llm.selfcheck import steps
from codyra_llm.selfcheck.kernel_checks import GROUP, Group
from codyra_llm.selfcheck.steps import blocks, variants
from codyra_llm.selfcheck.timing import compared, interleave, ratios

SHAPES = {
    **{name: blocks_of for name, blocks_of in steps.SHAPES.items() if name != "llama-2-7b"},
    "hidden-1024": lambda: LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_attention_heads=16, num_key_value_heads=16,
        num_hidden_layers=4, vocab_size=64,
    ),
}  # fmt: skip


def builtin(rank: int, tokens: int) -> tuple[dict[str, nn.Module], Callable[[nn.Module], torch.Tensor]]:
    """Returns the variants of the built-in model, and a function that computes a variant's loss."""
    made = variants(load_model("smollm2-135m-instruct"), rank)
    ids = torch.randint(5, 40000, (4, tokens // 4), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : ids.shape[1] * 4 // 5] = IGNORED
    losses = {id(variant): AnswerLoss(variant) for variant in made.values()}
    with_their_loss = copy.copy(made["PEFT"])
    made["bound"].get_input_embeddings().register_forward_hook(lambda *hook: hook[-1].requires_grad_())
    made["PEFT, loss of transformers"] = with_their_loss

    def forward(variant: nn.Module) -> torch.Tensor:
        if variant is with_their_loss:
            return variant(input_ids=ids, labels=labels, use_cache=False).loss
        return losses[id(variant)](ids, labels)

    return made, forward


def timed(name: str, rank: int, tokens: int, rounds: int, as_json: bool) -> None:
    """Prints one table: the time of a step relative to the bound's and to PEFT's, and its costs."""
    made, forward = builtin(rank, tokens) if name == "135m" else blocks(SHAPES[name](), rank, tokens)
    for variant in made.values():
        variant.train()

    def step(variant: nn.Module) -> None:
        forward(variant).backward()
        variant.zero_grad(set_to_none=True)

    seconds = interleave({key: lambda v=variant: step(v) for key, variant in made.items()}, rounds)
    over_bound, over_peft = compared(seconds, "bound"), ratios(seconds, "PEFT")
    rows = [
        {
            "contestant": key,
            **over_bound[key],
            "time / PEFT": over_peft[key]["median"],
            **costs(lambda v=variant: step(v), variant.parameters()),
        }
        for key, variant in made.items()
    ]
    report(f"{name}, fp32, rank {rank}, {tokens} tokens, {rounds} rounds", rows, as_json)


def counted(rank: int, tokens: int, width: int, dtype: torch.dtype, as_json: bool) -> None:
    """Prints one table: the costs that the branches of a q/k/v group add to those of the frozen group."""
    made = variants(Group(width, dtype), rank, GROUP)
    input = torch.randn(tokens, width, dtype=dtype)
    upstream = [torch.randn(tokens, width, dtype=dtype) for _ in GROUP]
    least = 6 * tokens * rank * 2 * width * len(GROUP)

    def forward(variant: nn.Module) -> list[torch.Tensor]:
        return variant(input.requires_grad_())

    costs = {
        key: cost(lambda v=variant: torch.autograd.backward(forward(v), upstream)) for key, variant in made.items()
    }
    frozen, theirs = costs["bound"], costs["PEFT"].traffic - costs["bound"].traffic
    rows = [
        {
            "contestant": key,
            "added traffic, MiB": round((costs[key].traffic - frozen.traffic) / 2**20),
            "added traffic / PEFT": (costs[key].traffic - frozen.traffic) / theirs,
            "added FLOPs / least": (costs[key].flops - frozen.flops) / least,
            "kept / input": saved_bytes(lambda v=variant: forward(v), variant.parameters()) / input.nbytes,
        }
        for key, variant in made.items()
    ]
    name = str(dtype).removeprefix("torch.")
    report(f"q/k/v group, {name} base, fp32 branches, rank {rank}, {tokens} tokens, width {width}", rows, as_json)


def main() -> None:
    """Prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["group", *SHAPES, "135m"], choices=["group", *SHAPES, "135m"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=512, help="of a step (a group always has 1024)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    for name in options.models:
        if name == "group":
            for dtype in (torch.float32, torch.bfloat16):
                counted(options.rank, 1024, 2048, dtype, options.json)
        else:
            timed(name, options.rank, options.tokens, options.rounds, options.json)


if __name__ == "__main__":
    main()
