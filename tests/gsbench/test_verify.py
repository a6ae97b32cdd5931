"""The correctness gate must refuse what is wrong, and accept what is merely rounded."""

from __future__ import annotations

import pytest
import torch

from gsbench.case import Point
from gsbench.measure import verify
from gsbench.measure.operands import Operands, bind
from gsbench.passes import PASSES
from gskernels.shape import Shape
from gskernels.table import find

SHAPE = Shape(16, 64, 1000, 8, 16)
CPU = torch.device("cpu")


def operands(dtype="fp32"):
    return Operands(Point(SHAPE, "uniform", dtype), CPU, seed=0)


def verdicts(pass_, ops, name, outputs):
    return verify.check(pass_, ops, find(name), {name: outputs})[name]


def right(pass_, ops, name="group_shared/torch"):
    return bind(find(name), pass_, ops)()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("pass_", PASSES)
def test_a_right_result_passes_in_one_chunk_and_in_many(pass_, dtype, monkeypatch):
    ops = operands(dtype)
    if PASSES[pass_].unsupported(find("group_shared/torch"), SHAPE, dtype, "cpu"):
        pytest.skip("bf16 only")
    outputs = right(pass_, ops)
    whole = verdicts(pass_, ops, "group_shared/torch", outputs)
    monkeypatch.setitem(verify._CHUNK_BYTES, "cpu", 100_000)
    chunked = verdicts(pass_, ops, "group_shared/torch", outputs)
    assert all(v.passed for v in whole + chunked)
    assert [v.error for v in whole] == pytest.approx([v.error for v in chunked], rel=1e-3, abs=1e-3)


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


@pytest.mark.parametrize(
    ("pass_", "spoil", "output"),
    [
        pytest.param("step", lambda o: o[0].mul_(1.01), "loss", id="a loss 1 % off"),
        pytest.param("step", lambda o: o[2].copy_(ORIGINAL(o)), "weight", id="weights not updated"),
        pytest.param("step_stochastic", lambda o: o[2].copy_(ORIGINAL(o)), "weight", id="bf16 weights not updated"),
        pytest.param("step_gradients", lambda o: o[2][3].zero_(), "dw", id="a label without gradient"),
        pytest.param("topk", lambda o: o[1][:, 4].add_(1), "values", id="a label beside the best"),
        pytest.param("topk", lambda o: [t[:, 4].copy_(t[:, 3]) for t in o], "values", id="a label twice"),
        pytest.param("topk", lambda o: o[1][0, 0].fill_(1000), "values", id="no label of the layer"),
        pytest.param("topk_100", lambda o: [t.copy_(t.roll(1, 1)) for t in o], "labels", id="not in order"),
    ],
)  # fmt: skip
def test_a_wrong_step_or_choice_is_refused(pass_, spoil, output):
    ops = operands("bf16" if pass_ == "step_stochastic" else "fp32")
    outputs = right(pass_, ops)
    ORIGINAL.layer = ops.layer(find("group_shared/torch"))
    spoil(outputs)
    failed = [v.output for v in verdicts(pass_, ops, "group_shared/torch", outputs) if not v.passed]
    assert output in failed


class _Original:
    """The weights before the step."""

    def __call__(self, outputs):
        return self.layer.weight


ORIGINAL = _Original()


def test_rounding_to_nearest_is_no_stochastic_rounding():
    ops = operands("bf16")
    nearest = right("step", ops)
    failed = [v.output for v in verdicts("step_stochastic", ops, "group_shared/torch", nearest) if not v.passed]
    assert failed == ["rounding"]


def test_timing_a_step_changes_no_weight_and_verifying_it_works_on_copies():
    ops = operands("bf16")
    layer = ops.layer(find("group_shared/torch"))
    before = layer.weight.clone()
    for updating in (True, False):
        ops.updating = updating
        for pass_ in ("step", "step_stochastic"):
            outputs = right(pass_, ops)
            assert torch.equal(layer.weight, before)
            assert torch.equal(outputs[2], before) is not updating
            assert all(v.passed for v in verdicts(pass_, ops, "group_shared/torch", outputs))


def test_no_pass_makes_what_it_does_not_read():
    ops = operands()
    for pass_ in ("forward", "step", "topk"):
        right(pass_, ops)
    assert ops._grad_out is None
