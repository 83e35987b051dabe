"""The bandwidth of memory copies, and the shares of it that the kernels and a merge reach."""

from collections.abc import Callable, Iterator
from typing import Any

from codyra_llm.selfcheck.outcome import Row, Setting

ROUNDS = 10


def bandwidth(setting: Setting) -> Iterator[Row]:
    """Times a copy and each product of a branch: GB per second read and written, and its ratio to that of the copy."""
    import statistics

    import torch

    from codyra_llm.adapter import kernels, products
    from codyra_llm.selfcheck.timing import interleave, seconds_of

    copy_speed = _copy_speed(2**24 if setting.small else 2**29, setting.device)
    yield {"what": "copy", "GB/s": copy_speed, "of a copy": 1.0, "first call, s": 0.0}
    by = products if kernels.missing(torch.empty(0, device=setting.device)) else kernels
    tokens, features = (256, 512) if setting.small else (16384, 4096)
    for rank in (8, 16, 64):
        for name, (run, bytes_moved) in _products(by, tokens, features, rank, setting.device).items():
            first = seconds_of(run)
            seconds = statistics.median(interleave({name: run}, ROUNDS)[name])
            speed = bytes_moved / seconds / 1e9
            yield {
                "what": f"{name}, rank {rank}",
                "GB/s": speed,
                "of a copy": speed / copy_speed,
                "first call, s": first,
            }


def merge(setting: Setting) -> Iterator[Row]:
    """Times adding a branch of rank 16 to a weight, compared with reading and writing this weight once."""
    from codyra_llm.selfcheck.timing import compared, interleave

    rows, columns = (512, 1376) if setting.small else (4096, 11008)
    contestants = merges(rows, columns, setting.device)
    for name, times in compared(interleave(contestants, ROUNDS), "read and write, fp32").items():
        yield {"contestant": name, **times, "weight": f"{rows} x {columns}"}


def merges(rows: int, columns: int, device: str = "cpu") -> dict[str, Callable[[], object]]:
    """Returns contestants: merges of a rank-16 branch into a [rows, columns] weight; `PEFT`: the sum in its merge."""
    import torch
    from torch import nn

    from codyra_llm.adapter.merging import add_delta_in_place

    narrow = nn.Linear(columns, rows, dtype=torch.bfloat16, device=device)
    wide = nn.Linear(columns, rows, device=device)
    B, A = (torch.randn(rows, 16) * 1e-3).to(device), torch.randn(16, columns).to(device)
    weight = wide.weight.detach()
    return {
        "read and write, fp32": lambda: weight.mul_(1.0),
        "ours, fp32": torch.no_grad()(lambda: add_delta_in_place(wide, B, A)),
        "ours, bf16": torch.no_grad()(lambda: add_delta_in_place(narrow, B, A)),
        "PEFT, fp32": lambda: weight.add_(B @ A),
    }


def _copy_speed(size: int, device: str) -> float:
    """Returns GB per second read and written in copying `size` values of bf16."""
    import statistics

    import torch

    from codyra_llm.selfcheck.timing import interleave

    source = torch.ones(size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return (
        2 * source.nbytes / statistics.median(interleave({"copy": lambda: target.copy_(source)}, ROUNDS)["copy"]) / 1e9
    )


def _products(
    by: Any, tokens: int, features: int, rank: int, device: str
) -> dict[str, tuple[Callable[[], object], int]]:
    """Returns each product of a branch over bf16 activations, and the bytes that it must read and write."""
    import torch

    x = torch.randn(tokens, features).to(device, torch.bfloat16)
    A, B = torch.randn(rank, features).to(device), torch.randn(features, rank).to(device)
    down, output = torch.randn(tokens, rank).to(device), x.clone()
    once = x.nbytes + A.nbytes + down.nbytes
    return {
        "down": (lambda: by.down(x, A), once),
        "add_product": (lambda: by.add_product(output, down, B.T), once + x.nbytes),
        "project": (lambda: by.project(x, B), once),
        "outer": (lambda: by.outer(down, x), once),
    }
