"""The gated low-rank branch as a function: y + ((x A^T) * gate) B^T, plain and fused.

The fused form is two autograd functions around the base projection, which stays a module of its own:

    x, (H_1, H_2, ...) = share_input(x, [A_1, A_2, ...])       one product x [A_1; A_2; ...]^T for all that read x
    y_i = add_branch(base_i(x), H_i, gate_i, B_i)              adds (H_i * gate_i) B_i^T to the base's output

Between forward and backward it stores x itself and the [tokens, rank] products H, and no frozen weight. In the
backward pass, the bases' gradients of x arrive summed in one buffer, to which sum_i (dH_i A_i) is added.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from codyra_llm.adapter import products as torch_products

Mix = Callable[[torch.Tensor], torch.Tensor]  # transforms the products x A^T of all components


def add_gated_branch(
    output: torch.Tensor,
    input: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    gate: torch.Tensor,
    mix: Mix | None = None,
) -> torch.Tensor:
    """Adds a gated low-rank branch to the output of its base projection (CoDyRA, equation 1): the plain reference.

    The branch is computed in the dtype of A, B and gate (fp32), under autocast as well, and added in the dtype of
    the output.

    Args:
        output: the output of the base projection, [..., out_features].
        input: the input of the base projection, [..., in_features].
        A: [rank, in_features].
        B: [out_features, rank].
        gate: [rank].
        mix: transforms x A^T, [..., rank]; None leaves it unchanged.

    Returns:
        [..., out_features], in the dtype of `output`.
    """
    with _no_autocast(input.device):
        down = input.to(A.dtype) @ A.T
        branch = ((mix(down) if mix else down) * gate) @ B.T
        return output + branch.to(output.dtype)


def share_input(
    input: torch.Tensor, As: Sequence[torch.Tensor], products: Any = torch_products
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Computes one stacked down-projection for all branches that read the same input.

    Args:
        input: [tokens, in_features].
        As: each [rank_i, in_features].
        products: `codyra_llm.adapter.products`, or `kernels` on a GPU.

    Returns:
        (the input, which must be passed to the base projections and nothing else, since the gradient that it collects
        is added to in place; for each A the product input A^T, [tokens, rank_i], in A's dtype).
    """
    shared, *down = _ShareInput.apply(products, input, *As)
    return shared, down


def add_branch(
    output: torch.Tensor, down: torch.Tensor, gate: torch.Tensor, B: torch.Tensor, products: Any = torch_products
) -> torch.Tensor:
    """Computes output + (down * gate) B^T, in the output's own memory where autograd allows that.

    Args:
        output: the output of the base projection, [tokens, out_features]; not to be used afterwards.
        down: [tokens, rank], from `share_input`.
        gate: [rank].
        B: [out_features, rank].
        products: `codyra_llm.adapter.products`, or `kernels` on a GPU.
    """
    in_place = not output._is_view() and not (output.is_leaf and output.requires_grad)
    return _AddBranch.apply(products, output if in_place else output.clone(), down, gate, B)


class _ShareInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Any, input: torch.Tensor, *As: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *As)
        ctx.products = products
        with _no_autocast(input.device):
            down = products.down(input, _stack(As))
        return (input, *down.split([len(A) for A in As], dim=1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_input: torch.Tensor | None, *d_down: torch.Tensor | None) -> tuple[Any, ...]:
        input, *As = ctx.saved_tensors
        if all(gradient is None for gradient in d_down):
            return None, d_input, *[None] * len(As)
        with _no_autocast(input.device):
            d = _stack([_or_zeros(gradient, input, A) for gradient, A in zip(d_down, As, strict=True)], dim=1)
            d_As = ctx.products.outer(d, input).split([len(A) for A in As])
            if ctx.needs_input_grad[1]:
                if d_input is None:
                    d_input = torch.zeros_like(input)
                ctx.products.add_product(d_input, d, _stack(As))
        return None, d_input, *d_As


class _AddBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, products: Any, output: torch.Tensor, down: torch.Tensor, gate: torch.Tensor, B: torch.Tensor
    ) -> torch.Tensor:
        ctx.mark_dirty(output)
        ctx.save_for_backward(down, gate, B)
        ctx.products = products
        with _no_autocast(output.device):
            products.add_product(output, down * gate, B.T)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: torch.Tensor) -> tuple[Any, ...]:
        down, gate, B = ctx.saved_tensors
        with _no_autocast(d_output.device):
            d_gated = ctx.products.project(d_output, B)
            d_gate = (d_gated * down).sum(0) if ctx.needs_input_grad[3] else None
            d_B = ctx.products.outer(down * gate, d_output).T  # the product is faster with the narrow factor first
        return None, d_output, d_gated.mul_(gate), d_gate, d_B


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # called four times per branch and step, so its overhead counts


def _stack(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _or_zeros(gradient: torch.Tensor | None, input: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    return A.new_zeros(len(input), len(A)) if gradient is None else gradient
