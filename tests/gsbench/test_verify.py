"""The correctness gate must refuse what is wrong, and accept what is merely rounded."""

from __future__ import annotations

import pytest
import torch

from gsbench.case import Point
from gsbench.measure import verify
from gsbench.measure.operands import Operands, bind
from gskernels.table import Shape, find

SHAPE = Shape(16, 64, 1000, 8, 16)
CPU = torch.device("cpu")


def operands(dtype="fp32"):
    return Operands(Point(SHAPE, "uniform", dtype), CPU, seed=0)


def verdicts(pass_, ops, name, outputs):
    return verify.check(pass_, ops, find(name), {name: outputs})[name]


def right(pass_, ops, name="group_shared/torch"):
    return bind(find(name), pass_, ops)()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("pass_", ["forward", "grad_input", "grad_weight", "backward"])
def test_a_right_result_passes_in_one_chunk_and_in_many(pass_, dtype, monkeypatch):
    ops = operands(dtype)
    outputs = right(pass_, ops)
    whole = verdicts(pass_, ops, "group_shared/torch", outputs)
    monkeypatch.setitem(verify._CHUNK_BYTES, "cpu", 100_000)
    chunked = verdicts(pass_, ops, "group_shared/torch", outputs)
    assert all(v.passed for v in whole + chunked)
    assert [v.error for v in whole] == pytest.approx([v.error for v in chunked], rel=1e-3)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda y: y.zero_(), id="zeros"),
        pytest.param(lambda y: y.fill_(float("nan")), id="never written"),
        pytest.param(lambda y: y.mul_(1.05), id="5 % off"),
        pytest.param(lambda y: y[:, -8:].zero_(), id="the ragged last group left out"),
        pytest.param(lambda y: y[7, 321].add_(3.0), id="one wrong element"),
        pytest.param(lambda y: y[0, 5].fill_(float("nan")), id="one unwritten element"),
        pytest.param(lambda y: y.copy_(y.roll(1, 1)), id="labels shifted by one"),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_wrong_result_is_refused(spoil, dtype):
    ops = operands(dtype)
    (y,) = right("forward", ops)
    spoil(y)
    assert not verdicts("forward", ops, "group_shared/torch", (y,))[0].passed


def test_an_oracle_of_zeros_passes_nothing():
    ops = operands()
    ops.grad_out.zero_()
    dx = torch.zeros(SHAPE.batch, SHAPE.dim)
    assert not verdicts("grad_input", ops, "group_shared/torch", (dx,))[0].passed


def test_results_of_other_values_are_refused():
    ops = operands()
    stale = right("grad_weight", ops)
    ops.refill(1)
    assert not verdicts("grad_weight", ops, "group_shared/torch", stale)[0].passed
    assert verdicts("grad_weight", ops, "group_shared/torch", right("grad_weight", ops))[0].passed


def test_allocations_are_poisoned_only_inside():
    with verify.poisoned():
        for made in (torch.empty(4), torch.empty_like(torch.ones(3)), torch.ones(2).new_empty(5)):
            assert made.isnan().all()
        assert torch.zeros(3).sum() == 0
        assert torch.empty(3, dtype=torch.int32).dtype == torch.int32
    assert not torch.ones(4).isnan().any()


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((torch.zeros(16, 999),), "y is torch.float32 [16, 999], expected contiguous torch.float32 [16, 1000]"),
        ((torch.zeros(16, 1000, dtype=torch.float64),), "torch.float64"),
        ((torch.zeros(1000, 16).t(),), "not contiguous"),
        ((), "0 outputs, expected y"),
    ],
)
def test_wrong_shapes_dtypes_and_layouts_are_named(outputs, message):
    ops = operands()
    layer = ops.layer(find("group_shared/torch"))
    assert message in verify.shapes_as_expected("forward", ops, layer, outputs)


def test_kinds_share_operands_only_where_they_compute_the_same():
    ops = operands()
    assert ops.layer(find("group_shared/torch")) is ops.layer(find("group_shared/triton"))
    assert ops.layer(find("fixed_fan_in/gather")).topology.group_size == 1
    assert ops.layer(find("masked_dense/torch")).weight is ops.layer(find("dense/torch")).weight
    assert len({ops.kind(find(n)) for n in ("dense/torch", "bottleneck/torch", "fixed_fan_in/csr")}) == 3


def test_a_clone_has_the_same_values_elsewhere():
    ops = operands()
    layer = ops.layer(find("group_shared/torch"))
    twin = ops.clone()
    copied = twin.layer(find("group_shared/torch"))
    assert torch.equal(copied.weight, layer.weight)
    assert copied.weight.data_ptr() != layer.weight.data_ptr()
    assert torch.equal(copied.sparse.indices, layer.sparse.indices)
