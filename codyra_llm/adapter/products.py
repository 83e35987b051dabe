"""The matrix products of a gated branch in plain PyTorch; `kernels` has the same functions in Triton.

Activations are [tokens, features] of any float dtype; factors and intermediate results have the factors' dtype (fp32),
in which every product is computed.
"""

import torch


def down(input: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Returns input A^T: [tokens, in_features] and [rank, in_features] -> [tokens, rank], in A's dtype."""
    return input.to(A.dtype) @ A.T


def add_product(output: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Computes output += left right, in place: [tokens, features] += [tokens, rank] [rank, features]."""
    if output.dtype == left.dtype:
        output.addmm_(left, right)
    else:
        output += left @ right


def project(gradient: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Returns gradient B: [tokens, out_features] and [out_features, rank] -> [tokens, rank], in B's dtype."""
    return gradient.to(B.dtype) @ B


def outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns left^T right, summed over tokens: [tokens, m] and [tokens, n] -> [m, n], in the wider of their dtypes."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype).T @ right.to(dtype)
