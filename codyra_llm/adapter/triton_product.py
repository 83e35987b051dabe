"""One Triton kernel: output (+)= left right, where one of the three sizes is a branch's rank.

Importing it requires triton. With TRITON_INTERPRET=1 it runs on the CPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl


def _config(rows: int, columns: int, inner: int, warps: int) -> triton.Config:
    return triton.Config({"ROWS": rows, "COLUMNS": columns, "INNER": inner}, num_warps=warps)


# one of the sizes is a rank, padded to at least 16 as a dot requires: a general configuration, then one per position
CONFIGS = [_config(32, 32, 32, 4), _config(64, 16, 128, 4), _config(64, 128, 16, 4), _config(16, 128, 64, 4)]
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# autotuning runs add to the output as well, so it is restored each time
@triton.autotune(CONFIGS[:1] if _INTERPRETED else CONFIGS, key=["m_key", "n", "k"], restore_value=["output"])
@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    left, right, output, m, m_key, n, k,
    left_m, left_k, right_k, right_n, output_m, output_n,
    ACCUMULATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, k, INNER):
        inner = first + tl.arange(0, INNER)
        at_left = (rows[:, None] < m) & (inner[None, :] < k)
        at_right = (inner[:, None] < k) & (columns[None, :] < n)
        a = tl.load(left + rows[:, None] * left_m + inner[None, :].to(tl.int64) * left_k, at_left, 0.0)
        b = tl.load(right + inner[:, None].to(tl.int64) * right_k + columns[None, :] * right_n, at_right, 0.0)
        # three tf32 products give fp32's precision
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="tf32x3")
    places = output + rows[:, None] * output_m + columns[None, :] * output_n
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if ACCUMULATE:
        total += tl.load(places, inside, 0.0).to(tl.float32)
    tl.store(places, total.to(output.dtype.element_ty), inside)


def product(left: torch.Tensor, right: torch.Tensor, output: torch.Tensor, accumulate: bool) -> None:
    """Computes output = left right, or += if `accumulate`: [m, n] from [m, k] and [k, n], of any strides and dtypes."""
    (m, k), n = left.shape, right.shape[1]
    if not (m and n):
        return

    def grid(sizes: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(m, sizes["ROWS"]), triton.cdiv(n, sizes["COLUMNS"])

    _kernel[grid](
        left, right, output, m, triton.next_power_of_2(m), n, k,
        *left.stride(), *right.stride(), *output.stride(), ACCUMULATE=accumulate,
    )  # fmt: skip


def kernel() -> Any:
    """Returns the kernel as it is compiled, without its autotuner."""
    return _kernel.fn


@contextmanager
def only(config: triton.Config) -> Iterator[None]:
    """A context in which the kernel runs in one configuration, without autotuning."""
    before = _kernel.configs
    _kernel.configs = [config]
    try:
        yield
    finally:
        _kernel.configs = before
