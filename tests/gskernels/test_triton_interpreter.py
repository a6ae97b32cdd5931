"""The Triton kernels' arithmetic and indexing against the oracle, through Triton's interpreter: no GPU needed.

The interpreter is chosen by an environment variable before triton is imported, so each family runs in a process of its
own, which this file is the script of. bf16 is left out: the interpreter multiplies it wrongly (and adds it atomically
not at all). What it cannot show, races and the copy engine, is tested with the marker `gpu`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gskernels import oracle
from gskernels.layer import Layer
from gskernels.topology import GroupTopology

ROOT = Path(__file__).parents[2]
# B, D, L, K, G. Tiny, since a program instance takes milliseconds.
GROUPED = [
    (3, 24, 50, 16, 8),  # a group smaller than a tile, ragged last group
    (1, 40, 65, 33, 7),  # nothing is a multiple of anything
    (33, 64, 70, 20, 48),  # padded batch, a tile that is not full
    (4, 90, 300, 80, 200),  # groups of several tiles, several blocks of inputs
    (17, 16, 17, 1, 1),  # one input, one label a group
    (20, 16, 9, 16, 9),  # every input, one group
    (2, 16, 1, 4, 1),  # one label
]
PER_LABEL = [(3, 24, 50, 16, 1), (1, 40, 65, 33, 1), (70, 16, 40, 5, 1), (20, 16, 9, 16, 1), (2, 16, 1, 4, 1)]
FAMILIES = {"gskernels.group_shared.triton": GROUPED, "gskernels.fixed_fan_in.triton": PER_LABEL}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}  # norm of the error over norm of the truth


@pytest.mark.parametrize("module", FAMILIES)
def test_matches_the_oracle(module: str) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'kernels'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, __file__, module], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(cases_of(module))} cases" in done.stdout


def cases_of(module: str) -> list[tuple[int, int, int, int, int, torch.dtype]]:
    """All shapes in fp32; two in fp16 too, which takes other paths only where numbers are rounded."""
    shapes = FAMILIES[module]
    return [(*shape, torch.float32) for shape in shapes] + [(*shape, torch.float16) for shape in shapes[:2]]


def check(module_name: str, batch: int, dim: int, labels: int, fan_in: int, group: int, dtype: torch.dtype) -> None:
    module = importlib.import_module(module_name)
    generator = torch.Generator().manual_seed(batch)
    topology = GroupTopology.uniform(labels, dim, fan_in, group, seed=labels)
    x, dy, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((batch, dim), (batch, labels), (labels, fan_in), (labels,))
    )
    layer = Layer(weight, topology, bias=bias)
    spread_x, spread_dy = torch.stack([x, x], 2)[..., 0], dy.t().contiguous().t()  # not contiguous
    results = {
        "forward": (module.forward(spread_x, layer),),
        "grad_input": (module.grad_input(spread_dy, layer),),
        "grad_weight": (module.grad_weight(spread_dy, spread_x, layer),),
        "backward": module.backward(spread_dy, spread_x, layer),
    }
    if "group_shared" in module_name:
        results["grad_input "] = (module.grad_input(dy, layer, deterministic=True),)
    for pass_, outputs in results.items():
        for output, truth in zip(outputs, oracle.outputs(pass_.strip(), x, dy, layer), strict=True):
            assert output.dtype == dtype
            assert output.shape == truth.shape
            error = float((output.double() - truth).norm() / truth.norm())
            case = f"{module_name} {pass_} B={batch} D={dim} L={labels} K={fan_in} G={group} {dtype}"
            assert error < TOLERANCE[dtype], f"{case}: relative error {error:.1e}"
    empty = module.forward(x[:0], layer)
    assert empty.shape == (0, labels)
    assert [tuple(t.shape) for t in module.backward(dy[:0], x[:0], layer)] == [(0, dim), (labels, fan_in)]


if __name__ == "__main__":
    family = sys.argv[1]
    cases = cases_of(family)
    for one in cases:
        check(family, *one)
    print(f"{len(cases)} cases")
