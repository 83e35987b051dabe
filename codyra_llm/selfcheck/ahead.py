"""Compiles the Triton kernel without a GPU: shared memory, registers and spills of each variant.

ptxas is part of triton; without it, registers and spills are unknown.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from codyra_llm.selfcheck.outcome import Row, Setting

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # largest shared memory of a block, by compute capability
SPILLED_BYTES = 96  # largest allowed register spill of a thread
# product -> dtypes of left, right and output (input: that of the activations), whether it adds, strides that are one
PRODUCTS = {
    "down": ("input", "fp32", "fp32", False, ("left_k", "right_k", "output_n")),
    "add_product": ("fp32", "fp32", "input", True, ("left_k", "right_k", "output_n")),
    "project": ("input", "fp32", "fp32", False, ("left_k", "right_n", "output_n")),
    "outer": ("fp32", "input", "fp32", False, ("left_m", "right_n", "output_n")),
}


def compile_all(
    capability: int, dtypes: Sequence[str] = ("bf16", "fp16", "fp32"), products: Sequence[str] = tuple(PRODUCTS)
) -> Iterator[Row]:
    """Compiles each product, dtype of activations and configuration of the autotuner; yields a row for each.

    Sizes and strides are assumed to be multiples of 16, as in a model; this gives the widest loads and therefore the
    most shared memory.

    Args:
        capability: compute capability, 80 or 90.
        dtypes: of the activations.
        products: names in `PRODUCTS`.
    """
    from codyra_llm.adapter import triton_product

    for product in products:
        for dtype in dtypes:
            for config in triton_product.CONFIGS:
                tile = "x".join(str(config.kwargs[name]) for name in ("ROWS", "COLUMNS", "INNER"))
                yield {"for": f"sm_{capability}", "product": product, "dtype": dtype, "tile": tile} | _compile(
                    capability, product, dtype, config
                )


def ahead(setting: Setting) -> Iterator[Row]:
    """Compiles the variants of bf16 activations for both capabilities, and checks shared memory and spills."""
    for capability, allowed in SHARED_BYTES.items():
        for row in compile_all(capability, ("bf16",)):
            fits = row["shared bytes"] <= allowed
            yield row | {"passed": fits and (row["spilled bytes"] or 0) <= SPILLED_BYTES}


def _compile(capability: int, product: str, dtype: str, config: Any) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from codyra_llm.adapter import triton_product

    kernel = triton_product.kernel()
    *types, accumulate, ones = PRODUCTS[product]
    pointers = {
        name: "*" + (dtype if kind == "input" else str(kind))
        for name, kind in zip(("left", "right", "output"), types, strict=True)
    }
    constants = {**config.kwargs, "ACCUMULATE": accumulate, **dict.fromkeys(ones, 1)}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name] != "constexpr"},
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(compiled.asm["ptx"])
    return {"shared bytes": compiled.metadata.shared, "registers": registers, "spilled bytes": spilled}


def _resources(ptx: str) -> tuple[int | None, int | None]:
    """Returns (registers of a thread, bytes that it spills) by ptxas, for the target of the PTX; None if unknown."""
    triton = find_spec("triton")
    assert triton and triton.origin
    ptxas = Path(triton.origin).parent / "backends/nvidia/bin/ptxas"
    target = re.search(r"\.target (\w+)", ptx)
    if not ptxas.exists() or not target:
        return None, None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [str(ptxas), "-v", f"--gpu-name={target[1]}", "kernel.ptx", "-o", "kernel.cubin"]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    stores = re.findall(r"(\d+) bytes spill stores", said)
    used = re.findall(r"Used (\d+) registers", said)
    return max(map(int, used), default=None), max(map(int, stores), default=None)
