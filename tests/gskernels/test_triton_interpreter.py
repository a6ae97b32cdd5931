"""The Triton kernels' arithmetic and indexing against the oracle, through Triton's interpreter: no GPU needed.

The interpreter is chosen by an environment variable before triton is imported, so each family runs in a process of its
own, which this file is the script of. bf16 is left out: the interpreter multiplies it wrongly (and adds it atomically
not at all). What it cannot show, races and the copy engine, is tested with the marker `gpu`.
"""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gskernels import oracle
from gskernels.layer import Layer
from gskernels.loss import gradient_in_place
from gskernels.optim import Update
from gskernels.positives import Positives
from gskernels.steps import Targets
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
STEPPED = [GROUPED[0], GROUPED[1], (17, 64, 37, 20, 33)]  # with passes that store no logits; the last: two tiles a group
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
    extra = [STEPPED[-1]] if shapes is GROUPED else []
    return [(*shape, torch.float32) for shape in shapes + extra] + [(*shape, torch.float16) for shape in shapes[:2]]


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
    if (batch, dim, labels, fan_in, group) in STEPPED and dtype == torch.float32:
        check_step(module, x, layer, "squared_hinge" if labels % 2 else "cross_entropy")
        check_topk(module, x, layer)
    empty = module.forward(x[:0], layer)
    assert empty.shape == (0, labels)
    assert [tuple(t.shape) for t in module.backward(dy[:0], x[:0], layer)] == [(0, dim), (labels, fan_in)]


def lists(batch: int, labels: int) -> Positives:
    """Every third label in the first row, none in the second, then two a row."""
    rows = [range(0, labels, 3), [], *([i % labels, labels - 1] for i in range(2, batch))][:batch]
    rows = [sorted(set(row)) for row in rows]
    pointers = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return Positives(pointers, torch.tensor([label for row in rows for label in row], dtype=torch.int64))


def check_step(module: ModuleType, x: Tensor, layer: Layer, loss: str) -> None:
    """Loss and gradients, then, with other weights of the same values, an update; a NaN leaves them alone if asked to."""
    weighted = torch.linspace(0.5, 2, layer.labels)
    targets = Targets(lists(len(x), layer.labels), loss, weighted if loss == "squared_hinge" else None)
    truth = oracle.step(x, layer, targets)
    got = module.step(x, layer, targets, {})
    assert float(got.loss) == pytest.approx(float(truth.loss), rel=1e-6)
    for mine, right in zip(got[1:4], truth[1:4], strict=True):
        error, most = float((mine.double() - right).norm()), TOLERANCE[x.dtype] * float(right.norm())
        assert error <= most, f"step {loss} {tuple(x.shape)} {x.dtype}: error {error:.1e}, at most {most:.1e}"
    if len(x) > 4:
        return
    mine = replace(layer, weight=layer.weight.clone())
    update = Update(0.1, 0.9, 0.1, momentum_buffer=torch.ones_like(layer.weight))
    spoilt = x.clone()
    spoilt[0] = torch.nan
    assert module.step(spoilt, mine, targets, {"weight": update}, guard=True).loss.isnan()
    assert torch.equal(mine.weight, layer.weight)
    before = replace(update, momentum_buffer=torch.ones_like(layer.weight))
    assert module.step(x, mine, targets, {"weight": update}, guard=True).dw is None
    assert truth.dw is not None
    expected = oracle.updated(layer.weight, truth.dw, before)
    for new, right in zip((mine.weight, update.momentum_buffer), expected, strict=True):
        assert new is not None
        assert right is not None
        assert float((new.double() - right).norm() / right.norm()) < TOLERANCE[x.dtype]


def check_topk(module: ModuleType, x: Tensor, layer: Layer) -> None:
    """Exact, ties by label, on small whole numbers; in one chunk of tiles and in several."""
    whole = {name: getattr(layer, name).clamp(-2, 2).round() for name in ("weight", "bias")}
    layer, x = replace(layer, **whole), x[:2].clamp(-2, 2).round()
    k = min(3, layer.labels)
    for chunk_bytes, exclude in ((1 << 20, None), (64, lists(len(x), layer.labels))):
        importlib.import_module("gskernels.group_shared.triton_topk").CHUNK_BYTES = chunk_bytes
        values, labels = module.topk(x, layer, k, exclude)
        right_values, right_labels = oracle.topk(x, layer, k, exclude)
        assert torch.equal(values.double(), right_values)
        assert torch.equal(labels, right_labels)


def check_pointwise() -> None:
    """Weights are rounded as `Update.apply` does it, to the last bit, past 2^32 weights as well; stored logits become their
    derivative. Weights only stochastically: the interpreter cuts a bf16 off where a GPU rounds it to the nearest.
    """
    kernels = importlib.import_module("gskernels.pointwise_triton")
    for first in (0, 2**33 + 5):
        w, g = (torch.randn(50, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
        w, update = w.bfloat16(), Update(0.01, 0.0, 0.1, "stochastic", 2**40 + 3)
        mine = w.clone()
        kernels.update(mine, g, None, None, "stochastic", (0.01, 0.0, 0.1), update.seed, first)
        update.apply(w, g, first)
        assert torch.equal(mine, w)
    labels, weight = 300, torch.linspace(0.5, 2, 300)
    positives = lists(5, labels)
    z = 4 * torch.randn(5, labels, generator=torch.Generator().manual_seed(2))
    z[4, 7] = -80.0  # and its derivative is not lost
    for loss, start in itertools.product(("cross_entropy", "squared_hinge"), (0, 128)):
        mine, losses = z[:, start:].clone(), kernels.new_losses(z)
        by_group = positives.by_group(kernels.COLUMNS, -(-labels // kernels.COLUMNS))
        kernels.loss_in_place(mine, start, labels, by_group, loss, weight, losses)
        right = z[:, start:].double()
        total = gradient_in_place(right, positives.within(start, labels), loss, weight[start:].double())
        assert float(losses.sum()) == pytest.approx(float(total), rel=1e-6)
        torch.testing.assert_close(mine.double(), right, rtol=2e-6, atol=0)


if __name__ == "__main__":
    family = sys.argv[1]
    cases = cases_of(family)
    for one in cases:
        check(family, *one)
    if "group_shared" in family:
        check_pointwise()
    print(f"{len(cases)} cases")
