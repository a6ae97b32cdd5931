"""Which problems the Hopper kernels take, and with what: pure functions, and the kernels of every plan compile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels.cuda import jit
from gskernels.group_shared import hopper, hopper_backward
from gskernels.group_shared.problem import Problem
from gskernels.shape import Shape
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT, find

H200 = hopper.Machine(processors=132, shared_bytes=227 * 1024)
DEFAULT = Problem(256, 768, 655_360, 64, 32, torch.bfloat16)
# The suites' shapes and the published ones, and the ends of what fits.
PROBLEMS = [
    DEFAULT,
    *(replace(DEFAULT, group_size=g) for g in (16, 64, 128, 256, 96)),
    *(replace(DEFAULT, fan_in=k) for k in (128, 192, 256, 512)),
    *(replace(DEFAULT, batch=b) for b in (33, 64, 100, 128, 129, 1024, 100_000)),
    *(replace(DEFAULT, dim=d) for d in (64, 384, 1024, 1536)),
    replace(DEFAULT, dtype=torch.float16),
    replace(DEFAULT, labels=8),
    Problem(64, 384, 670_091, 64, 16, torch.bfloat16),
    Problem(128, 768, 2_812_281, 128, 64, torch.bfloat16),
    Problem(128, 384, 8_623_847, 64, 32, torch.bfloat16),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("pass_", [FORWARD, GRAD_INPUT, GRAD_WEIGHT])
def test_a_plan_fits_the_gpu_and_its_kernel_spills_nothing(problem: Problem, pass_: str) -> None:
    plan = hopper.plan_of(problem, pass_, H200)
    if plan is None:
        return
    assert plan.shared_bytes <= H200.shared_bytes - hopper.RESERVED
    assert plan.blocks >= 1
    assert plan.blocks % plan.slices == 0
    assert plan.blocks <= max(H200.processors, plan.slices)
    binary = jit.compile(f"group_shared/hopper_{pass_}.cu", "sm_90a", plan.macros)
    assert not any(needs.spills or needs.stack for needs in binary.kernels.values())
    needs = binary.kernels[f"hopper_{pass_}"]
    assert needs.shared_bytes <= hopper.RESERVED
    assert needs.registers * plan.threads <= 65_536


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_rings_of_grad_input_are_powers_of_two_and_fill_the_room(problem: Problem) -> None:
    plan = hopper.grad_input_plan(problem, H200)
    if plan is None:
        return
    tiles, stages = int(plan.macros["RING_Y"]), int(plan.macros["RING_W"])
    assert tiles in (1, 2, 4)
    assert stages in (1, 2, 4, 8, 16)
    stage = hopper.stage_bytes(int(plan.macros["G"]))
    assert plan.shared_bytes == hopper.BARRIERS + problem.dim * 256 + tiles * 64 * 128 + stages * stage
    left = H200.shared_bytes - hopper.RESERVED - plan.shared_bytes
    if problem.group_size % 64:  # W comes to shared memory too
        assert left < stages * stage or stages == 16
    else:
        assert stage == 0
        assert left < tiles * 64 * 128 or tiles == 4


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, {FORWARD, GRAD_INPUT, BACKWARD}),
        ({"batch": 128}, {FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD}),
        ({"batch": 128, "labels": 655_361}, {GRAD_WEIGHT}),  # rows of Y on any byte: not by the copy engine
        ({"batch": 128, "group_size": 96}, {GRAD_WEIGHT}),  # tiles of 64 labels would mix groups, of 32 they do not
        ({"batch": 128, "group_size": 16}, {FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD}),
        ({"batch": 128, "group_size": 256}, {FORWARD, GRAD_INPUT, GRAD_WEIGHT}),  # both gradients by one kernel instead
        ({"batch": 128, "group_size": 8}, set()),
        ({"batch": 128, "group_size": 24}, set()),
        ({"batch": 128, "fan_in": 100}, set()),
        ({"batch": 128, "dim": 100}, set()),
        ({"batch": 64, "dim": 1024}, {FORWARD, GRAD_WEIGHT}),  # the sums of 64 rows are larger than shared memory
        ({"batch": 128, "dim": 2048}, set()),  # X^T of 64 rows is
        ({"batch": 128, "dtype": torch.float32}, set()),
        ({"batch": 32}, set()),
    ],
)
def test_what_is_taken(change: dict[str, object], taken: set[str]) -> None:
    problem = replace(DEFAULT, **change)  # type: ignore[arg-type]
    passes = (FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD)
    assert {pass_ for pass_ in passes if hopper.plan_of(problem, pass_, H200) is not None} == taken


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_memory_model_knows_the_sums_of_grad_input(problem: Problem) -> None:
    plan = hopper.grad_input_plan(problem, H200)
    if plan is None or problem.group_size == 96:
        return
    shape = Shape(problem.batch, problem.dim, problem.labels, problem.fan_in, problem.group_size)
    modelled = find("group_shared/cuda").workspace(shape, GRAD_INPUT, 2)
    assert hopper.PART_BYTES * problem.dim * 64 * plan.blocks == pytest.approx(modelled, rel=0.04) or problem.labels < 10_000


def test_every_candidate_of_the_forward_fits_and_spills_nothing() -> None:
    problem = replace(DEFAULT, dim=384, fan_in=128, group_size=16)
    shape, configs, plans = hopper.tuned_forward(problem, H200, False)
    assert plans[0] == hopper.forward_plan(problem, H200)
    assert configs == [{name: plan.macros[name] for name in ("WARPGROUPS", "STAGES")} for plan in plans]
    assert len(configs) == len({tuple(config.values()) for config in configs}) > 1
    assert f" {len(plans)}plans " in shape
    for plan in plans:
        assert plan.shared_bytes <= H200.shared_bytes - hopper.RESERVED
        needs = jit.compile("group_shared/hopper_forward.cu", "sm_90a", plan.macros).kernels["hopper_forward"]
        assert needs.spills == needs.stack == 0
        assert needs.registers * plan.threads <= 65_536


def test_the_default_point_fills_the_gpu() -> None:
    plan = hopper.forward_plan(DEFAULT, H200)
    assert plan is not None
    assert (plan.blocks, plan.slices, plan.macros["WARPGROUPS"], plan.macros["STAGES"]) == (132, 4, 4, 2)


@pytest.mark.parametrize(("labels", "wide"), [(655_360, 2), (655_424, 2), (655_368, 1)])
def test_tiles_leave_in_pairs_where_the_map_sees_whole_ones(labels: int, wide: int) -> None:
    plan = hopper.forward_plan(replace(DEFAULT, labels=labels), H200)
    assert plan is not None
    assert plan.macros["WIDE"] == wide


# ---- both gradients from one launch ------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_plan_for_both_gradients_fits_and_spills_nothing(problem: Problem) -> None:
    plan = hopper_backward.plan_of(problem, H200)
    if plan is None:
        return
    macros = {name: value for name, value in plan.macros.items() if isinstance(value, int)}
    assert plan.shared_bytes <= H200.shared_bytes - hopper.RESERVED
    assert plan.row_blocks >= plan.slices == -(-problem.batch // 64)
    assert plan.row_blocks % plan.slices == 0
    assert plan.label_blocks >= 1
    assert plan.row_blocks + plan.label_blocks <= H200.processors
    tiles = {1: 4, 2: 2}.get(hopper.TILE // min(macros["G"], hopper.TILE) * (problem.fan_in // 64), 1)
    assert macros["RING"] % tiles == 0
    assert 2 * tiles <= macros["RING"] <= hopper_backward.MOST_RING
    pieces = 2 * 4 * min(hopper_backward.PIECE, macros["G"]) * 128
    stage = hopper_backward.slices_of_stage(plan.slices) * hopper_backward.TILE_BYTES
    rings = macros["RING"] * stage + macros["DEEP"] * hopper_backward.SLOT_BYTES
    assert hopper.BARRIERS + pieces + rings <= plan.shared_bytes
    needs = jit.compile(hopper_backward.SOURCE, "sm_90a", plan.macros).kernels["hopper_backward"]
    assert needs.spills == needs.stack == 0
    assert needs.registers * hopper.GRAD_INPUT_THREADS <= 65_536


@pytest.mark.parametrize(
    ("change", "ring", "deep", "row_blocks"),
    [
        ({}, 6, 3, 92), ({"labels": 131_072}, 6, 3, 92), ({"group_size": 64}, 8, 2, 96), ({"group_size": 128}, 8, 2, 92),
        ({"group_size": 16}, 7, 3, 92), ({"fan_in": 128}, 6, 3, 92), ({"batch": 64}, 12, 3, 83), ({"batch": 1024}, 6, 3, 96),
        ({"batch": 64, "labels": 1 << 23}, 12, 3, 83), ({"dim": 384}, 6, 3, 92), ({"batch": 64, "dim": 384}, 12, 3, 73),
        ({"dim": 512}, 6, 3, 92), ({"batch": 64, "group_size": 16}, 14, 3, 76), ({"batch": 128, "group_size": 16}, 7, 3, 88),
    ],
)  # fmt: skip
def test_plans_for_both_gradients_are_those_that_were_measured_as_fastest(
    change: dict[str, int], ring: int, deep: int, row_blocks: int
) -> None:
    plan = hopper_backward.plan_of(replace(DEFAULT, **change), H200)  # type: ignore[arg-type]
    assert plan is not None
    assert (plan.macros["RING"], plan.macros["DEEP"], plan.row_blocks) == (ring, deep, row_blocks)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True), ({"batch": 33}, True), ({"batch": 320}, True), ({"batch": 1024}, True), ({"batch": 1152}, False),
        ({"group_size": 16}, True), ({"group_size": 256}, True),
        ({"dim": 832}, True), ({"fan_in": 192}, True), ({"labels": 655_368}, True), ({"labels": 8}, True),
        ({"labels": 655_364}, False), ({"group_size": 96}, False), ({"group_size": 8}, False), ({"dim": 896}, False),
        ({"dim": 100}, False), ({"fan_in": 100}, False), ({"batch": 32}, False), ({"batch": 100_000}, False),
        ({"dtype": torch.float32}, False),
    ],
)  # fmt: skip
def test_which_problems_have_both_gradients_from_one_launch(change: dict[str, object], taken: bool) -> None:
    problem = replace(DEFAULT, **change)  # type: ignore[arg-type]
    assert (hopper_backward.plan_of(problem, H200) is not None) == taken
