"""The matrix products of a gated branch as Triton kernels: the same functions as `products`, for CUDA.

Inputs may be bf16, fp16 or fp32, in any layout. Every product is accumulated in fp32, and inputs are not copied to a
wider dtype first.
"""

import importlib.util

import torch


def missing(weight: torch.Tensor) -> str | None:
    """Returns the reason why the kernels cannot compute a model's branches; None if they can."""
    if weight.device.type != "cuda":
        return f"the model is on {weight.device.type}, not on a CUDA device"
    if weight.dtype == torch.float64:
        return "they accumulate in fp32, and the model is float64"
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


def down(input: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """See `products.down`."""
    return _new_product(input, A.T)


def add_product(output: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """See `products.add_product`."""
    _product(left, right, output, accumulate=True)


def project(gradient: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """See `products.project`."""
    return _new_product(gradient, B)


def outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """See `products.outer`; always in fp32."""
    return _new_product(left.T, right)


def _new_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    output = torch.empty(left.shape[0], right.shape[1], dtype=torch.float32, device=left.device)
    _product(left, right, output, accumulate=False)
    return output


def _product(left: torch.Tensor, right: torch.Tensor, output: torch.Tensor, accumulate: bool) -> None:
    from codyra_llm.adapter import triton_product  # imported here, as triton may not be installed

    triton_product.product(left, right, output, accumulate)
