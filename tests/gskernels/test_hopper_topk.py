"""The topk for Hopper: plans are pure functions, every variant compiles, and on a GPU it is that of the logits, exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels import oracle
from gskernels.cuda import jit
from gskernels.group_shared import hopper_topk
from gskernels.group_shared.portable import Machine
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.ranking import topk
from gskernels.shape import Shape
from gskernels.table import find
from gskernels.topology import GroupTopology
from tests.gskernels.streams import beside_and_captured
from tests.gskernels.test_implementations import DTYPES, make_layer
from tests.gskernels.test_step import draw_x

H200 = Machine(processors=132, shared_bytes=227 * 1024)
DEFAULT = Problem(256, 768, 655_360, 64, 32, torch.bfloat16)
TAKEN = [
    DEFAULT,
    *(replace(DEFAULT, group_size=g) for g in (16, 48, 64, 96, 128, 256)),
    *(replace(DEFAULT, fan_in=k) for k in (128, 192, 256)),
    *(replace(DEFAULT, fan_in=128, group_size=g) for g in (16, 64)),
    *(replace(DEFAULT, batch=b) for b in (1, 33, 64, 100, 257, 1000, 20_000)),
    *(replace(DEFAULT, dim=d) for d in (64, 384, 1024, 1536)),
    *(replace(DEFAULT, labels=n) for n in (1, 65, 5003, 8_388_608)),
    replace(DEFAULT, dtype=torch.float16),
    Problem(64, 384, 670_091, 64, 16, torch.bfloat16),
    Problem(128, 768, 2_812_281, 128, 64, torch.bfloat16),
    Problem(128, 384, 8_623_847, 64, 32, torch.bfloat16),
]
FEW, MANY = 5, 100  # a k without hints, and one with
IMPLEMENTATION = find("group_shared/cuda")


def made(problem: Problem, k: int, bias: bool = False) -> hopper_topk.Plan:
    plan = hopper_topk.plan_of(problem, k, bias, H200)
    assert plan is not None
    return plan


@pytest.mark.parametrize("problem", TAKEN, ids=str)
@pytest.mark.parametrize("k", [1, FEW, MANY, 128])
def test_a_plan_fits_the_gpu(problem: Problem, k: int) -> None:
    plan = made(problem, k)
    assert plan.shared_bytes <= H200.shared_bytes - hopper_topk.RESERVED
    assert plan.choose_bytes + hopper_topk.CHOOSE_STATIC <= H200.shared_bytes
    assert 1 <= plan.blocks <= max(H200.processors, plan.slices)
    assert plan.blocks % plan.slices == 0
    assert plan.slices * 64 >= problem.batch
    # Windows of tiles stay within a row, whose pieces begin on 16 bytes; and no block has no tile.
    assert plan.stride % hopper_topk.WINDOW == 0
    assert plan.stride * 64 >= problem.labels
    assert (plan.blocks // plan.slices - 1) * int(plan.macros["WARPGROUPS"]) * hopper_topk.QUAD * 64 < problem.labels
    if problem.dim <= 768:
        assert 2 * (plan.choose_bytes + hopper_topk.CHOOSE_STATIC + 1024) <= 228 * 1024  # two blocks a multiprocessor


@pytest.mark.parametrize("k", [FEW, 128])
@pytest.mark.parametrize("problem", [DEFAULT, *TAKEN[-3:]], ids=str)
def test_what_is_kept_is_a_small_part_of_the_logits(problem: Problem, k: int) -> None:
    plan = made(problem, k)
    kept = problem.batch * plan.stride * (4 + 4 // hopper_topk.QUAD + plan.hints)
    assert kept <= 0.05 * problem.batch * problem.labels * 2
    shape = Shape(problem.batch, problem.dim, problem.labels, problem.fan_in, problem.group_size)
    assert kept <= IMPLEMENTATION.temporaries(shape, "topk", 2) <= 0.05 * problem.batch * problem.labels * 2


@pytest.mark.parametrize(
    "change",
    [{"batch": 0}, {"fan_in": 32}, {"fan_in": 320}, {"dim": 100}, {"dim": 2048}, {"group_size": 8}, {"group_size": 40},
     {"dtype": torch.float32}],
    ids=str,
)  # fmt: skip
def test_what_it_leaves_to_others(change: dict[str, object]) -> None:
    assert hopper_topk.plan_of(replace(DEFAULT, **change), FEW, False, H200) is None  # type: ignore[arg-type]


def variants() -> list[tuple[dict[str, int | str], int]]:
    """(macros, threads) of each problem's plans, once."""
    plans = [made(problem, k, bias) for problem in TAKEN for k, bias in ((FEW, False), (MANY, True))]
    plans += [made(DEFAULT, k, bias) for k, bias in ((FEW, True), (MANY, False))]
    found = {tuple(sorted(plan.macros.items())): plan.threads for plan in plans}
    return [(dict(macros), threads) for macros, threads in found.items()]


@pytest.mark.parametrize(("macros", "threads"), variants(), ids=str)
def test_what_plans_ask_for_compiles_and_spills_nothing(macros: dict[str, int | str], threads: int) -> None:
    needs = jit.compile(hopper_topk.SOURCE, "sm_90a", macros).kernels["hopper_topk_maxima"]
    assert not needs.spills
    assert not needs.stack
    assert needs.registers * threads <= 65_536
    assert needs.shared_bytes <= hopper_topk.RESERVED


def test_two_blocks_that_choose_share_a_multiprocessor() -> None:
    needs = jit.compile(hopper_topk.CHOOSE, "sm_90a", made(DEFAULT, MANY).choose_macros).kernels["topk_choose"]
    assert needs.registers * hopper_topk.CHOOSE_THREADS * 2 <= 65_536
    assert needs.shared_bytes <= hopper_topk.CHOOSE_STATIC


# B, D, L, K, G: units of 16, 32, 64 labels, lists that end within a tile, ragged groups and tiles, one row to many slices.
SHAPES = {
    "even": Shape(256, 768, 8192, 64, 32),
    "ragged": Shape(100, 384, 5003, 64, 32),
    "units of 16": Shape(33, 256, 1999, 64, 16),
    "lists end within tiles": Shape(64, 384, 2931, 64, 48),
    "units of 64": Shape(1000, 128, 777, 64, 64),
    "long lists": Shape(100, 768, 4099, 128, 128),
    "one row": Shape(1, 768, 70_001, 64, 32),
    "fewer labels than a tile": Shape(65, 128, 33, 64, 16),
    "wide inputs": Shape(40, 1024, 3000, 256, 32),
}
KS = (1, 5, 100, 128)


def takes(shape: Shape, layer: Layer, k: int) -> bool:
    """Whether it is this file's kernels that run: on Hopper they must."""
    plan = hopper_topk.plan_for(Problem.of(shape.batch, layer), k, layer.bias is not None, torch.device("cuda"))
    return plan is not None or torch.cuda.get_device_capability() != (9, 0)


def whole_numbers(shape: Shape, dtype: str, largest: int = 1) -> tuple[Tensor, Layer]:
    """Logits that are exact in every order of sums; many are equal."""
    layer, generator = make_layer(IMPLEMENTATION, shape, dtype, "cuda"), torch.Generator().manual_seed(2)
    x = torch.randint(-largest, largest + 1, (shape.batch, shape.dim), generator=generator).to("cuda", DTYPES[dtype])
    assert layer.bias is not None
    for tensor in (layer.weight, layer.bias):
        tensor.copy_(torch.randint(-largest, largest + 1, tensor.shape, generator=generator))
    return x, layer


def assert_exact(x: Tensor, layer: Layer, k: int) -> None:
    values, labels = topk(x, layer, k, implementation=IMPLEMENTATION.name)
    right_values, right_labels = oracle.topk(x, layer, k)
    assert torch.equal(values.double(), right_values)
    assert torch.equal(labels, right_labels)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_whole_numbers_with_ties(name: str, dtype: str) -> None:
    shape = SHAPES[name]
    for largest in (1, 4):
        x, layer = whole_numbers(shape, dtype, largest)
        for k in {min(k, shape.labels) for k in KS}:
            assert takes(shape, layer, k)
            assert_exact(x, layer, k)
        assert_exact(x, replace(layer, bias=None), min(MANY, shape.labels))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_it_is_that_of_the_logits(name: str, dtype: str) -> None:
    shape = SHAPES[name]
    x, layer = draw_x(shape, dtype, "cuda"), make_layer(IMPLEMENTATION, shape, dtype, "cuda")
    truth = oracle.outputs("forward", x, x, layer)[0]
    for k in {min(k, shape.labels) for k in KS}:
        values, labels = topk(x, layer, k, implementation=IMPLEMENTATION.name)
        tolerance = 2e-5 * float(truth.abs().max())
        torch.testing.assert_close(values.double(), truth.gather(1, labels), rtol=0, atol=tolerance)
        torch.testing.assert_close(values.double(), truth.topk(k, 1).values, rtol=0, atol=tolerance)
        assert bool((values[:, 1:] <= values[:, :-1]).all())
        assert all(len(set(row)) == k for row in labels.tolist())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["even", "units of 16", "long lists", "wide inputs"])
def test_both_kernels_round_alike(name: str) -> None:
    """Else near ties between tiles could be decided by the sums of one and ordered by those of the other."""
    shape = SHAPES[name]
    x, layer = draw_x(shape, "bf16", "cuda"), make_layer(IMPLEMENTATION, shape, "bf16", "cuda")
    problem = Problem.of(shape.batch, layer)
    plan = hopper_topk.plan_for(problem, 128, True, x.device)
    if plan is None:
        pytest.skip("needs a Hopper GPU")
    largest, quads, hints = hopper_topk.maxima(x, layer, problem, plan)
    values, labels = hopper_topk.choose(x, layer, 128, problem, plan, largest, quads, hints)
    none = torch.full_like(largest[:, : -(-shape.labels // 64)], -math.inf)
    of_tiles = none.scatter_reduce(1, labels // 64, values, "amax")
    seen = of_tiles > -math.inf
    assert torch.equal(of_tiles[seen], largest[:, : of_tiles.shape[1]][seen])


@pytest.mark.gpu
@pytest.mark.parametrize("k", [FEW, MANY])
def test_equal_logits_go_by_label(k: int) -> None:
    """All logits of a row are the same, so that its list overflows and digits have to be counted; then twins."""
    shape = Shape(70, 128, 200_000, 64, 32)
    layer = make_layer(IMPLEMENTATION, shape, "bf16", "cuda")
    x = draw_x(shape, "bf16", "cuda")
    x[::2] = 0
    assert layer.bias is not None
    layer.bias.zero_()
    assert takes(shape, layer, k)
    values, labels = topk(x, layer, k, implementation=IMPLEMENTATION.name)
    assert torch.equal(labels[::2], torch.arange(k, device="cuda").expand(35, k))
    assert bool((values[::2] == 0).all())
    # Twins: the same lists and weights again, tiles away.
    indices, half = layer.sparse.indices, shape.labels // 2
    indices[half // 32 :] = indices[: half // 32].clone()
    layer.weight[half:] = layer.weight[:half].clone()
    values, labels = topk(x[1::2], layer, min(2 * k, 128), implementation=IMPLEMENTATION.name)
    assert torch.equal(labels[:, 1::2] - labels[:, ::2], torch.full_like(labels[:, ::2], half))
    assert torch.equal(values[:, ::2], values[:, 1::2])


@pytest.mark.gpu
@pytest.mark.parametrize("falling", [True, False])
def test_logits_in_order(falling: bool) -> None:
    """The best tiles lie beside each other, at either end."""
    shape = Shape(40, 128, 64 * 3001 + 5, 64, 64)
    layer = make_layer(IMPLEMENTATION, shape, "fp16", "cuda")
    layer.weight.zero_()
    assert layer.bias is not None
    layer.bias.copy_(torch.arange(shape.labels) // 128 * (-1 if falling else 1))
    x = draw_x(shape, "fp16", "cuda")
    for k in (FEW, MANY):
        assert_exact(x, layer, k)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [FEW, MANY])
def test_what_is_not_finite(k: int) -> None:
    shape = SHAPES["ragged"]
    x, layer = whole_numbers(shape, "bf16")
    clean = topk(x, layer, k, implementation=IMPLEMENTATION.name)
    x[3] = math.nan
    values, labels = topk(x, layer, k, implementation=IMPLEMENTATION.name)
    assert bool(values[3].isnan().all())
    assert labels[3].tolist() == list(range(k))
    others = [row for row in range(shape.batch) if row != 3]
    assert torch.equal(values[others], clean[0][others])
    assert torch.equal(labels[others], clean[1][others])
    # One label of NaN comes first, one of inf after it; fewer finite logits than k leave places without a label.
    x, layer = whole_numbers(shape, "bf16")
    assert layer.bias is not None
    layer.bias.fill_(-math.inf)
    layer.bias[[7, 4000, 5002]] = torch.tensor([0, math.nan, math.inf], dtype=torch.bfloat16, device="cuda")
    values, labels = topk(x, layer, k, implementation=IMPLEMENTATION.name)
    assert labels[:, :4].tolist() == [[4000, 5002, 7, -1]] * shape.batch
    assert bool((values[:, 3:] == -math.inf).all())
    assert bool((labels[:, 3:] == -1).all())


@pytest.mark.gpu
def test_operands_that_begin_anywhere() -> None:
    shape = SHAPES["ragged"]
    x, layer = whole_numbers(shape, "bf16")

    def shifted(tensor: Tensor) -> Tensor:
        return tensor.new_empty(tensor.numel() + 1)[1:].view_as(tensor).copy_(tensor)

    assert_exact(shifted(x), replace(layer, weight=shifted(layer.weight)), MANY)


@pytest.mark.gpu
def test_in_a_graph_and_on_a_side_stream() -> None:
    shape = SHAPES["ragged"]
    x, layer = draw_x(shape, "bf16", "cuda"), make_layer(IMPLEMENTATION, shape, "bf16", "cuda")

    def call() -> tuple[Tensor, Tensor]:
        return topk(x, layer, MANY, implementation=IMPLEMENTATION.name)

    plain = call()
    for other in beside_and_captured(call):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(other, plain, strict=True))


@pytest.mark.gpu
def test_eight_million_labels() -> None:
    """Tiles past what one row's list or registers hold; offsets past 2^31."""
    labels, generator = 8_400_000, torch.Generator("cuda").manual_seed(0)
    weight = torch.randint(-1, 2, (labels, 64), generator=generator, device="cuda", dtype=torch.int8).bfloat16()
    layer = Layer(weight, GroupTopology.uniform(labels, 128, 64, 32, device="cuda"))
    x = torch.randint(-4, 5, (260, 128), generator=generator, device="cuda").bfloat16()
    values, found = topk(x, layer, MANY, implementation=IMPLEMENTATION.name)
    some = [0, 100, 259]
    right_values, right = oracle.topk(x[some], layer, MANY)
    assert torch.equal(values[some].double(), right_values)
    assert torch.equal(found[some], right)
