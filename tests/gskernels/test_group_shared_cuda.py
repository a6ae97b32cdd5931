"""group_shared/cuda: plans that fit every GPU and spill nothing, and the kernels over the whole grid of shapes.

What all implementations share is tested in test_implementations.py and test_ops.py; here is what only this one does.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_implementations import DTYPES, TOLERANCE, assert_right, make_layer
from torch import Tensor

from gskernels import oracle
from gskernels.layer import Layer
from gskernels.shape import Shape
from gskernels.table import FLOATS, LINEAR_PASSES, find
from gskernels.topology import GroupTopology, index_dtype

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels.cuda import jit
from gskernels.group_shared import cuda, hopper_backward, portable
from gskernels.group_shared.problem import Problem

CUDA, ORDERED = find("group_shared/cuda"), find("group_shared/cuda_deterministic")
CALLS = [(i, pass_) for i in (CUDA, ORDERED) for pass_ in LINEAR_PASSES if pass_ in i.passes]
GPUS = {"A100": portable.Machine(108, 163 << 10), "H200": portable.Machine(132, 227 << 10),
        "RTX 4090": portable.Machine(128, 99 << 10)}  # fmt: skip
GROUP_SIZES, FAN_INS = (1, 4, 7, 8, 16, 24, 32, 48, 64, 128, 256), (1, 8, 16, 33, 64, 100, 128, 256, "D")
DIMS, BATCHES = (64, 100, 384, 768, 1024, 4096, 8192), (1, 3, 16, 64, 100, 256, 1000, 4096)


def covering() -> list[tuple[Shape, str]]:
    """Every pair of group size and fan-in, every pair of width and batch, every value with every dtype.

    Labels: two whole groups and a half, rounded to 16-byte rows for every other shape. Fan-ins wider than the layer
    become its width.
    """
    wide = list(product(DIMS, BATCHES))
    cases = []
    for number, (group_size, fan_in) in enumerate(product(GROUP_SIZES, FAN_INS)):
        dim, batch = wide[number * 5 % len(wide)]
        kept = dim if fan_in == "D" else min(int(fan_in), dim)
        labels = max(group_size * 5 // 2, 11)
        labels = labels if number % 2 else -(-labels // 8) * 8
        dtype = FLOATS[(number // 2 + number // len(FAN_INS)) % 3]
        cases.append((Shape(batch, dim, labels, kept, group_size), dtype))
    return cases


COVERING = covering()


def problem_of(shape: Shape, dtype: str) -> Problem:
    return Problem(shape.batch, shape.dim, shape.labels, shape.fan_in, shape.group_size, DTYPES[dtype])


def name_of(value: object) -> str | None:
    if isinstance(value, Shape):
        return f"B{value.batch}-D{value.dim}-L{value.labels}-K{value.fan_in}-G{value.group_size}"
    return None


# ---- plans: no GPU needed ---------------------------------------------------------------------------------------


def test_the_grid_is_covered() -> None:
    shapes = [shape for shape, _ in COVERING]
    assert {(s.dim, s.batch) for s in shapes} == set(product(DIMS, BATCHES))
    assert {s.group_size for s in shapes} == set(GROUP_SIZES)
    for axis in ("group_size", "dim", "batch"):
        values = {(getattr(shape, axis), dtype) for shape, dtype in COVERING}
        assert len(values) == 3 * len({value for value, _ in values})
    assert {(f, dtype) for f in FAN_INS if f != "D" for dtype in FLOATS} <= {(s.fan_in, dtype) for s, dtype in COVERING}


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
@pytest.mark.parametrize(("shape", "dtype"), COVERING, ids=name_of)
def test_plans_fit(shape: Shape, dtype: str, gpu: portable.Machine) -> None:
    problem, index = problem_of(shape, dtype), index_dtype(shape.dim)
    plans = [portable.forward_plan(problem, index, gpu), portable.ordered_plan(problem, index, gpu)]
    plans += [portable.gradients_plan(problem, index, *wanted) for wanted in ((True, True), (True, False), (False, True))]
    assert all(0 < plan.shared_bytes <= gpu.shared_bytes for plan in plans)
    assert all(plan.rows in (16, 32, 64) for plan in plans)
    threads = plans[0]["WARPS"] * 32
    assert threads <= 1024
    assert threads % (plans[0]["TEAM"] * 32) == 0


PARTS = [(1, 16, 1), (16, 16, 1), (17, 32, 1), (32, 32, 1), (48, 16, 3), (100, 16, 7), (256, 32, 8)]


@pytest.mark.parametrize(("group_size", "part", "parts"), PARTS)
def test_parts_leave_few_places_empty(group_size: int, part: int, parts: int) -> None:
    problem = Problem(8, 64, 1000, 16, group_size, torch.bfloat16)
    assert portable.part_size(group_size) == part
    assert portable.parts_of_group(problem) == parts


# Where registers are scarcest: whole and ragged rows, wide and narrow slices, resident and gathered, shared or not.
SCARCE = [
    (Shape(256, 768, 4096, 64, 32), "bf16", "H200"), (Shape(256, 768, 4097, 64, 64), "fp16", "A100"),
    (Shape(256, 8192, 4097, 33, 32), "bf16", "H200"), (Shape(256, 768, 4097, 100, 48), "bf16", "H200"),
    (Shape(8, 768, 4096, 64, 128), "bf16", "RTX 4090"), (Shape(256, 768, 4097, 33, 128), "fp32", "H200"),
    (Shape(3, 40_000, 4096, 64, 16), "fp32", "A100"), (Shape(256, 768, 4097, 33, 32), "bf16", "H200"),
]  # fmt: skip
ARCHS = {"A100": ("sm_80",), "H200": ("sm_90a", "sm_100"), "RTX 4090": ("sm_89",)}


@pytest.mark.parametrize(("shape", "dtype", "gpu"), SCARCE, ids=name_of)
def test_plans_spill_nothing(shape: Shape, dtype: str, gpu: str) -> None:
    problem, index = problem_of(shape, dtype), index_dtype(shape.dim)
    launches = {
        "forward": portable.forward_plan(problem, index, GPUS[gpu]),
        "ordered": portable.ordered_plan(problem, index, GPUS[gpu]),
        "gradients": portable.gradients_plan(problem, index, True, True),
    }
    for arch, (name, plan) in product(ARCHS[gpu], launches.items()):
        for kernel, needs in jit.compile(f"group_shared/portable_{name}.cu", arch, plan.macros).kernels.items():
            assert (needs.spills, needs.stack) == (0, 0), f"{kernel} for {arch}: {plan.macros}"


def test_tensors_on_the_cpu_are_refused() -> None:
    layer = Layer(torch.randn(10, 4), GroupTopology.uniform(10, 8, 4, 2))
    x, dy = torch.randn(3, 8), torch.randn(3, 10)
    for call in (lambda: cuda.forward(x, layer), lambda: cuda.grad_input(dy, layer), lambda: cuda.grad_weight(dy, x, layer),
                 lambda: cuda.backward(dy, x, layer)):  # fmt: skip
        with pytest.raises(ValueError, match="group_shared/cuda runs on cuda, not on cpu"):
            call()


# ---- on a GPU ---------------------------------------------------------------------------------------------------


@pytest.fixture
def portable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gskernels.group_shared.hopper.machine_of", lambda *_: None)


def activations(shape: Shape, dtype: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    sizes = ((shape.batch, shape.dim), (shape.batch, shape.labels))
    x, dy = (torch.randn(*size, generator=generator, device="cuda").to(DTYPES[dtype]) for size in sizes)
    return x, dy


@pytest.mark.gpu
@pytest.mark.usefixtures("portable_only")
@pytest.mark.parametrize(("shape", "dtype"), COVERING, ids=name_of)
def test_portable_kernels_against_oracle(shape: Shape, dtype: str) -> None:
    x, dy = activations(shape, dtype)
    layer = make_layer(CUDA, shape, dtype, "cuda")
    for implementation, pass_ in CALLS:
        assert_right(implementation, pass_, x, dy, layer)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dtype"), COVERING[::4], ids=name_of)
def test_what_is_dispatched_against_oracle(shape: Shape, dtype: str) -> None:
    x, dy = activations(shape, dtype)
    layer = make_layer(CUDA, shape, dtype, "cuda")
    for pass_ in LINEAR_PASSES:
        assert_right(CUDA, pass_, x, dy, layer)


@pytest.mark.gpu
@pytest.mark.usefixtures("portable_only")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_wide_indices(dtype: str) -> None:
    shape = Shape(40, 40_000, 100, 24, 16)
    layer = make_layer(CUDA, shape, dtype, "cuda")
    assert layer.sparse.indices.dtype == torch.int32
    for implementation, pass_ in CALLS:
        assert_right(implementation, pass_, *activations(shape, dtype), layer)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_strides_and_any_address(dtype: str) -> None:
    """Transposed operands, and operands that begin between two 16-byte boundaries."""
    shape = Shape(33, 72, 130, 24, 16)
    layer, (x, dy) = make_layer(CUDA, shape, dtype, "cuda"), activations(shape, dtype)

    def moved(t: Tensor) -> Tensor:
        return torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape)

    turned = Layer(layer.weight.t().contiguous().t(), layer.topology, bias=layer.bias)
    shifted = Layer(moved(layer.weight), layer.topology, bias=layer.bias)
    for implementation, pass_ in CALLS:
        assert_right(implementation, pass_, x.t().contiguous().t(), dy.t().contiguous().t(), turned)
        assert_right(implementation, pass_, moved(x), moved(dy), shifted)


@pytest.mark.gpu
@pytest.mark.usefixtures("portable_only")
@pytest.mark.parametrize("group_size", [16, 32, 128])
def test_ordered_sums_repeat(group_size: int) -> None:
    shape = Shape(100, 256, 50_000, 64, group_size)
    layer, (x, dy) = make_layer(CUDA, shape, "bf16", "cuda"), activations(shape, "bf16")
    first = cuda.backward(dy, x, layer, deterministic=True)
    for _ in range(3):
        assert all(map(torch.equal, first, cuda.backward(dy, x, layer, deterministic=True)))


@pytest.mark.gpu
@pytest.mark.parametrize(("batch", "group_size"), [(64, 32), (200, 16), (256, 32), (256, 64)])
def test_both_gradients_of_one_launch_repeat(batch: int, group_size: int) -> None:
    shape = Shape(batch, 768, 50_008, 64, group_size)
    layer, (x, dy) = make_layer(CUDA, shape, "bf16", "cuda"), activations(shape, "bf16")
    if hopper_backward.plan_for(Problem.of(batch, layer), x.device) is None:
        pytest.skip("needs a Hopper GPU")
    first = cuda.backward(dy, x, layer)
    for _ in range(5):
        assert all(map(torch.equal, first, cuda.backward(dy, x, layer)))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [64, 256, 1000])
def test_blocks_that_hold_each_other_for_nothing_do_so_for_a_while_only(batch: int) -> None:
    shape = Shape(batch, 256, 50_048, 64, 32)
    layer, (x, dy) = make_layer(CUDA, shape, "bf16", "cuda"), activations(shape, "bf16")
    problem = problem_of(shape, "bf16")
    plan = hopper_backward.plan_for(problem, x.device)
    if plan is None:
        pytest.skip("needs a Hopper GPU")
    right = hopper_backward.backward(dy, x, layer, problem, plan)
    for lead, lag in ((0, 0), (0, -4096), (-4096, 0), (-4096, -4096)):
        made = hopper_backward.backward(dy, x, layer, problem, replace(plan, lead=lead, lag=lag))
        assert all(map(torch.equal, right, made))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [64, 200, 256])
def test_inf_and_nan_of_one_part_of_dx_reach_its_sum(batch: int) -> None:
    shape = Shape(batch, 256, 50_048, 64, 32)
    layer, (x, dy) = make_layer(CUDA, shape, "bf16", "cuda"), activations(shape, "bf16")
    layer.weight.fill_(1)
    dy[3, 5], dy[7, 40_000], dy[8, 70] = torch.inf, torch.nan, -torch.inf
    rows = layer.sparse.indices.long()
    for dx in (cuda.backward(dy, x, layer)[0], cuda.grad_input(dy, layer)):
        for row, label, odd in ((3, 5, torch.isposinf), (7, 40_000, torch.isnan), (8, 70, torch.isneginf)):
            expected = torch.zeros(256, dtype=torch.bool, device="cuda")
            expected[rows[label // 32]] = True
            assert torch.equal(odd(dx[row]), expected)
            assert torch.equal(~dx[row].isfinite(), expected)
        dx[[3, 7, 8]] = 0
        assert bool(dx.isfinite().all())


@pytest.mark.gpu
@pytest.mark.parametrize("group_size", [32, 64])
def test_blocks_that_take_many_units_each(group_size: int) -> None:
    """Stages of weights are refilled only once they have been read; where weights come to registers, so are those of dY."""
    shape = Shape(256, 768, 4104, 192, group_size)
    layer = make_layer(CUDA, shape, "bf16", "cuda")
    plan = hopper_backward.plan_for(problem_of(shape, "bf16"), torch.device("cuda"))
    if plan is None:
        pytest.skip("needs a Hopper GPU")
    few = replace(plan, row_blocks=2 * plan.slices, label_blocks=2)
    for _ in range(20):
        x, dy = torch.randn(256, 768, device="cuda").bfloat16(), torch.randn(256, 4104, device="cuda").bfloat16()
        right = oracle.outputs("backward", x, dy, layer)
        for mine, exact in zip(hopper_backward.backward(dy, x, layer, problem_of(shape, "bf16"), few), right, strict=True):
            assert float((mine.double() - exact).norm() / exact.norm()) < 2.2e-3


@pytest.mark.gpu
def test_inputs_that_no_group_reads_do_not_matter() -> None:
    """NaN in an input that a group does not read stays out of its outputs, in padded places too."""
    topology = GroupTopology.of(torch.arange(1, 34).repeat(3, 1), labels=37, dim=40, group_size=13).to("cuda")
    x = torch.randn(5, 40, device="cuda", dtype=torch.bfloat16)
    x[:, 0] = x[:, 34:] = torch.nan
    layer = Layer(torch.randn(37, 33, device="cuda", dtype=torch.bfloat16), topology)
    assert bool(cuda.forward(x, layer).isfinite().all())
    assert bool(cuda.grad_weight(torch.randn(5, 37, device="cuda", dtype=torch.bfloat16), x, layer).isfinite().all())


@pytest.mark.gpu
@pytest.mark.usefixtures("portable_only")
def test_more_outputs_than_32_bits_count() -> None:
    """L * B past 2^32: 64-bit offsets into Y, dY, W. The last group against the oracle."""
    shape = Shape(512, 64, 2**23 + 2**10, 8, 32)
    if torch.cuda.mem_get_info()[0] < 3 * 2 * shape.batch * shape.labels:
        pytest.skip("needs 27 GB of free GPU memory")
    topology = GroupTopology.uniform(shape.labels, shape.dim, shape.fan_in, shape.group_size, device="cuda")
    x = torch.randn(shape.batch, shape.dim, device="cuda", dtype=torch.bfloat16)
    layer = Layer(torch.randn(shape.labels, shape.fan_in, device="cuda", dtype=torch.bfloat16), topology)
    y = cuda.forward(x, layer)
    last = slice(shape.labels - shape.group_size, shape.labels)
    part = layer.rows(last.start, last.stop)

    def close(mine: Tensor, right: Tensor) -> None:
        assert float((mine.double() - right).abs().max()) <= 4 * TOLERANCE["bf16"] * float(right.abs().max())

    close(y[:, last], oracle.outputs("forward", x, x, part)[0])
    y.zero_()[:, last] = 1  # now dY: only the last labels count
    right = oracle.outputs("backward", x, y[:, last], part)
    for deterministic in (False, True):
        dx, dw = cuda.backward(y, x, layer, deterministic=deterministic)
        close(dx, right[0])
        close(dw[last], right[1])
        assert not dw[: last.start].any()
