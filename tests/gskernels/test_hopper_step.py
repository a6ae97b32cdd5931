"""The fused step for Hopper: plans are pure functions, every variant compiles, and on a GPU it agrees with the oracle."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels.cuda import jit
from gskernels.group_shared import hopper_step
from gskernels.group_shared.portable import Machine
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.optim import UPDATES, Update
from gskernels.positives import Positives
from gskernels.shape import Shape
from gskernels.steps import Targets, step
from gskernels.table import find
from tests.gskernels.streams import beside_and_captured
from tests.gskernels.test_implementations import make_layer
from tests.gskernels.test_step import (
    LOSSES,
    assert_close,
    assert_updated,
    copied,
    draw_targets,
    draw_update,
    draw_x,
    state_of,
)

H200 = Machine(processors=132, shared_bytes=227 * 1024)
DEFAULT = Problem(256, 768, 655_360, 64, 32, torch.bfloat16)
TAKEN = [
    DEFAULT,
    *(replace(DEFAULT, group_size=g) for g in (16, 48, 64, 128)),
    replace(DEFAULT, fan_in=128),
    *(replace(DEFAULT, batch=b) for b in (33, 64, 100, 128, 257, 1024)),
    *(replace(DEFAULT, dim=d) for d in (128, 384)),
    replace(DEFAULT, labels=1),
    replace(DEFAULT, labels=8_388_608),
    replace(DEFAULT, dtype=torch.float16),
    Problem(64, 384, 670_091, 64, 16, torch.bfloat16),
    Problem(128, 768, 2_812_281, 128, 64, torch.bfloat16),
    Problem(128, 384, 8_623_847, 64, 32, torch.bfloat16),
]
NO_POSITIVES = Positives(torch.zeros(257, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
IMPLEMENTATION = find("group_shared/cuda")


@pytest.mark.parametrize("problem", TAKEN, ids=str)
@pytest.mark.parametrize(("bias", "factor"), [(False, False), (True, True)])
def test_a_plan_fits_the_gpu(problem: Problem, bias: bool, factor: bool) -> None:
    plan = hopper_step.plan_of(problem, H200, bias, factor)
    assert plan is not None
    assert plan.shared_bytes <= H200.shared_bytes - hopper_step.RESERVED
    assert plan.input_blocks % plan.slices == 0
    assert plan.input_blocks + plan.output_blocks == H200.processors  # all at the same time, or they wait for ever
    assert plan.slices * 64 >= problem.batch
    # A block may have filled a slot that nobody knows of yet; readers have their stages before they say what they took.
    parts = plan.input_blocks // plan.slices
    assert plan.slots >= plan.row_blocks * (plan.output_blocks + plan.input_stages * parts)
    assert plan.slot_bytes % 1024 == 0
    # Barriers tell phases apart by parity: a stage's next item must be for the warps that had the one before.
    assert plan.stages % max(2, 4 // plan.item_slices) == 0
    assert plan.input_stages % 2 == 0


@pytest.mark.parametrize("problem", [DEFAULT, TAKEN[-3], TAKEN[-2]], ids=str)
def test_the_ring_is_a_small_part_of_the_logits(problem: Problem) -> None:
    plan = hopper_step.plan_of(problem, H200, False, False)
    assert plan is not None
    kept = plan.slots * plan.slot_bytes + plan.slices * 64 * problem.dim * (4 + 2)
    assert kept <= 0.2 * problem.batch * problem.labels * 2
    if problem == DEFAULT:
        assert kept <= 0.05 * problem.batch * problem.labels * 2
        longer = hopper_step.plan_of(replace(problem, labels=1 << 23), H200, False, False)
        assert longer == plan  # what is kept does not grow with the labels


@pytest.mark.parametrize(
    "change",
    [{"batch": 32}, {"fan_in": 32}, {"fan_in": 192}, {"dim": 100}, {"dim": 1024}, {"group_size": 8}, {"batch": 20_000},
     {"dtype": torch.float32}],
    ids=str,
)  # fmt: skip
def test_what_it_leaves_to_others(change: dict[str, object]) -> None:
    assert hopper_step.plan_of(replace(DEFAULT, **change), H200, False, False) is None  # type: ignore[arg-type]


def variants() -> list[dict[str, int | str]]:
    """Of the macros: each problem's plan once, and at the default every loss, update and option."""
    found = []
    for problem in TAKEN:
        plan = hopper_step.plan_of(problem, H200, False, False)
        assert plan is not None
        found.append(hopper_step.macros_of(problem, plan, False, Targets(NO_POSITIVES), Update(0.1)))
    for bias, rounding, momentum in product((False, True), UPDATES, (0.0, 0.9)):
        plan = hopper_step.plan_of(DEFAULT, H200, bias, False)
        assert plan is not None
        update = Update(0.1, momentum, rounding=rounding)
        found.append(hopper_step.macros_of(DEFAULT, plan, bias, Targets(NO_POSITIVES), update))
    for loss, factor, problem in product(LOSSES, (None, torch.ones(1)), (DEFAULT, replace(DEFAULT, fan_in=128))):
        plan = hopper_step.plan_of(problem, H200, True, factor is not None)
        assert plan is not None
        found.append(hopper_step.macros_of(problem, plan, True, Targets(NO_POSITIVES, loss, factor), None))
    return [dict(one) for one in {tuple(sorted(macros.items())) for macros in found}]


@pytest.mark.parametrize("macros", variants(), ids=str)
def test_what_plans_ask_for_compiles_and_spills_nothing(macros: dict[str, int | str]) -> None:
    binary = jit.compile(hopper_step.SOURCE, "sm_90a", macros)
    assert not any(needs.spills or needs.stack for needs in binary.kernels.values())
    assert binary.kernels["hopper_step"].registers * hopper_step.THREADS <= 65_536
    assert binary.kernels["hopper_step"].shared_bytes <= hopper_step.RESERVED


# B, D, L, K, G: whole units and ragged ones, one slice of rows and several blocks of them, lists of more labels than a unit.
SHAPES = {
    "even": Shape(256, 768, 4096, 64, 32),
    "ragged": Shape(200, 384, 4099, 64, 32),
    "one slice, units of 16": Shape(64, 384, 1003, 64, 16),
    "two slices, long lists": Shape(100, 768, 1999, 128, 128),
    "blocks of rows": Shape(1000, 256, 777, 64, 48),
    "fewer units than blocks": Shape(257, 128, 33, 64, 32),
}


def planned(shape: Shape, layer: Layer, targets: Targets, device: str) -> bool:
    problem = Problem.of(shape.batch, layer)
    return hopper_step.plan_for(problem, layer, targets, {}, torch.device(device)) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("loss", "weighted"), [("cross_entropy", False), ("cross_entropy", True), ("squared_hinge", True)])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_gradients(name: str, loss: str, weighted: bool, dtype: str) -> None:
    from gskernels import oracle

    shape = SHAPES[name]
    x, layer = draw_x(shape, dtype, "cuda"), make_layer(IMPLEMENTATION, shape, dtype, "cuda")
    layer.weight.div_(8)
    targets = draw_targets(shape, "cuda", loss, weighted)
    if torch.cuda.get_device_capability() == (9, 0):
        assert planned(shape, layer, targets, "cuda")
    got = step(x, layer, targets, implementation=IMPLEMENTATION.name)
    truth, own = oracle.step(x, layer, targets), oracle.step(x, layer, targets, dtype=x.dtype)
    assert float(got.loss) == pytest.approx(float(truth.loss), rel=1e-5)
    for mine, right, theirs in zip(got[1:], truth[1:], own[1:], strict=True):
        assert_close(mine, right, theirs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ragged", "blocks of rows"])
@pytest.mark.parametrize("rounding", UPDATES)
def test_updates(name: str, rounding: str) -> None:
    from gskernels import oracle

    shape = SHAPES[name]
    x, layer = draw_x(shape, "bf16", "cuda"), make_layer(IMPLEMENTATION, shape, "bf16", "cuda")
    layer.weight.div_(8)
    before, targets = copied(layer), draw_targets(shape, "cuda")
    updates = {"weight": draw_update(layer.weight, rounding)}
    start = {"weight": state_of(updates["weight"])}
    got = step(x, layer, targets, updates, implementation=IMPLEMENTATION.name)
    assert got.dw is None
    truth = oracle.step(x, before, targets)
    assert_close(got.dx, truth.dx, oracle.step(x, before, targets, dtype=x.dtype).dx, "bf16")
    assert_updated(layer, before, updates, start, "bf16", {"weight": truth.dw})


@pytest.mark.gpu
def test_the_loss_of_nearly_certain_negatives_keeps_its_digits() -> None:
    """At the first step of training all logits are near -log L: 1 + e rounds to few digits, its logarithm must not."""
    shape = SHAPES["even"]
    x, layer = draw_x(shape, "bf16", "cuda"), make_layer(IMPLEMENTATION, shape, "bf16", "cuda")
    layer.weight.mul_(1e-3)
    assert layer.bias is not None
    layer.bias.fill_(-13.0)
    targets = Targets(Positives(NO_POSITIVES.pointers.cuda(), NO_POSITIVES.labels.cuda()))
    got = step(x, layer, targets, implementation=IMPLEMENTATION.name)
    from gskernels import oracle

    assert float(got.loss) == pytest.approx(float(oracle.step(x, layer, targets).loss), rel=1e-5)


@pytest.mark.gpu
def test_what_is_not_finite_shows() -> None:
    shape = SHAPES["ragged"]
    x, layer = draw_x(shape, "bf16", "cuda"), make_layer(IMPLEMENTATION, shape, "bf16", "cuda")
    x[3] = torch.nan
    assert torch.isnan(step(x, layer, draw_targets(shape, "cuda"), implementation=IMPLEMENTATION.name).loss)


@pytest.mark.gpu
def test_in_a_graph_and_on_a_side_stream() -> None:
    shape = SHAPES["ragged"]
    x, layer = draw_x(shape, "bf16", "cuda"), make_layer(IMPLEMENTATION, shape, "bf16", "cuda")
    targets = draw_targets(shape, "cuda")

    def call() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        got = step(x, layer, targets, implementation=IMPLEMENTATION.name, check=False)
        assert got.dw is not None
        return got.loss, got.dx, got.dw

    plain = call()
    for other in beside_and_captured(call):
        assert float(other[0]) == pytest.approx(float(plain[0]), rel=1e-6)
        torch.testing.assert_close(other[1], plain[1], rtol=1e-2, atol=1e-2)  # dX is added in any order, in fp32
        assert torch.equal(other[2], plain[2])
