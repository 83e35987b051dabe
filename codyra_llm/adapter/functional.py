"""The gated low-rank branch as a function: y + ((x A^T) * gate) B^T."""

import torch


def add_gated_branch(
    output: torch.Tensor, input: torch.Tensor, A: torch.Tensor, B: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """Adds a gated low-rank branch to the output of its base projection (CoDyRA, equation 1).

    The branch is computed in the dtype of A, B and gate (fp32), and added in the dtype of the output.

    Args:
        output: what the base projection gave, [..., out_features].
        input: what the base projection was given, [..., in_features].
        A: [rank, in_features]. B: [out_features, rank]. gate: [rank].

    Returns:
        [..., out_features], in the dtype of `output`.
    """
    branch = ((input.to(A.dtype) @ A.T) * gate) @ B.T
    return output + branch.to(output.dtype)
