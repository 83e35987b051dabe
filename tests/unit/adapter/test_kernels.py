"""The Triton kernels against plain products, in Triton's interpreter on the CPU."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from codyra_llm.adapter import CoDyRAConfig, inject
from tests.conftest import REPOSITORY

pytest.importorskip("triton")

# Triton chooses its interpreter when a kernel is defined, so the check runs in a separate process.
CHECK = """
import itertools, torch
from torch import nn
from codyra_llm.adapter import kernels, products
from codyra_llm.adapter.functional import add_branch, share_input

def close(found, expected, dtype):
    scale = max(1.0, float(expected.abs().max()))
    assert float((found.double() - expected.double()).abs().max()) <= (2e-5 if dtype == torch.float32 else 1e-2) * scale

shapes = itertools.cycle([(1, 5, 48), (7, 48, 65), (33, 65, 5)])
checked = 0
for rank, dtype in itertools.product(range(1, 65), (torch.float32, torch.bfloat16)):
    tokens, inputs, outputs = next(shapes)
    torch.manual_seed(rank)
    x, A, B = torch.randn(tokens, inputs).to(dtype), torch.randn(rank, inputs), torch.randn(outputs, rank)
    down = torch.randn(tokens, rank)
    gradient = torch.randn(tokens, outputs).to(dtype)
    close(kernels.down(x, A), products.down(x, A), torch.float32)
    close(kernels.project(gradient, B), products.project(gradient, B), torch.float32)
    close(kernels.outer(down, x), products.outer(down, x), torch.float32)
    y = [torch.ones(tokens, outputs, dtype=dtype) for _ in range(2)]
    kernels.add_product(y[0], down, B.T)
    products.add_product(y[1], down, B.T)
    close(y[0], y[1], dtype)
    checked += 1

# three branches of one input, forward and backward
results = []
for module in (kernels, products):
    torch.manual_seed(0)
    x = torch.randn(7, 48, requires_grad=True)
    As = [torch.randn(rank, 48, requires_grad=True) for rank in (64, 64, 3)]
    Bs = [torch.randn(5, len(A), requires_grad=True) for A in As]
    gates = [torch.randn(len(A), requires_grad=True) for A in As]
    W = torch.randn(5, 48)
    shared, downs = share_input(x, As, module)
    y = sum(add_branch(shared @ W.T, d, g, B, module) for d, g, B in zip(downs, gates, Bs)).tanh()
    results.append([y, *torch.autograd.grad(y.sum(), [x, *As, *Bs, *gates])])
for found, expected in zip(*results):
    close(found.detach(), expected.detach(), torch.float32)
print("checked", checked)
"""


def test_kernels_equal_plain_products_at_every_rank() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["checked", "128"]


def test_asking_for_them_without_a_gpu_is_an_error() -> None:
    model = nn.Sequential()
    model.q_proj = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="triton cannot run here: the model is on cpu"):
        inject(model, CoDyRAConfig(rank=2, target_modules=("q_proj",), impl="triton"))
    inject(model, CoDyRAConfig(rank=2, target_modules=("q_proj",)))
    assert model(torch.ones(1, 4)).shape == (1, 4)
