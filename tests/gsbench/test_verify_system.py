"""The gate for head-tail layers and rules of rewiring: right results pass, in one chunk and in many; wrong ones do not."""

from __future__ import annotations

import pytest
import torch

from gsbench.case import Point
from gsbench.measure import verify
from gsbench.measure.operands import Operands, bind
from gsbench.passes import DROPPED
from gskernels.shape import Shape
from gskernels.table import IMPLEMENTATIONS, find

SHAPE = Shape(16, 64, 500, 8, 16, head_share=0.1)  # 450 labels of the tail: a ragged last group
CPU = torch.device("cpu")
RULES = [(i.name, i.passes[0]) for i in IMPLEMENTATIONS if i.layout == "rules"]
HEADED = [("head_tail/torch", pass_) for pass_ in ("forward", "backward", "step", "step_gradients", "topk")]


def made(name, pass_, dtype="fp32"):
    operands = Operands(Point(SHAPE, "uniform", dtype), CPU, seed=0)
    return operands, bind(find(name), pass_, operands)()


def verdicts(name, pass_, operands, outputs):
    assert verify.shapes_as_expected(pass_, operands, operands.layer(find(name)), outputs) is None
    return verify.check(pass_, operands, find(name), {name: outputs})[name]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "pass_"), [*RULES, *HEADED, ("head_tail/torch", "step_stochastic")])
def test_a_right_result_passes_in_one_chunk_and_in_many(name, pass_, dtype, monkeypatch):
    if pass_ == "step_stochastic" and dtype != "bf16":
        pytest.skip("bf16 only")
    operands, outputs = made(name, pass_, dtype)
    whole = verdicts(name, pass_, operands, outputs)
    monkeypatch.setitem(verify._CHUNK_BYTES, "cpu", 100_000)
    chunked = verdicts(name, pass_, operands, outputs)
    assert [str(v) for v in whole + chunked if not v.passed] == []
    assert [v.error for v in whole] == pytest.approx([v.error for v in chunked], rel=1e-3, abs=1e-3)


def first_kept(operands):
    return (~operands.dropped).nonzero()[0].tolist()


def read_again(operands, indices):
    """An input that was just dropped, in its old slot."""
    group, slot = operands.dropped.nonzero()[0].tolist()
    indices[group, slot] = operands.layer(find("grow/random")).sparse.indices[group, slot]


def the_smallest(operands, indices):
    """Every dropped slot takes the first inputs that are free, whatever the draw or the gradient says."""
    before = operands.layer(find("grow/random")).sparse.indices
    for group in range(len(indices)):
        free = [i for i in range(SHAPE.dim) if i not in before[group].tolist()]
        slots = operands.dropped[group].nonzero()[:, 0]
        indices[group, slots] = torch.tensor(free[: len(slots)], dtype=indices.dtype)


@pytest.mark.parametrize(
    ("rule", "spoil", "output"),
    [
        pytest.param("random", lambda o, i: i[3, 1].copy_(i[3, 0]), "indices", id="an input twice"),
        pytest.param("random", lambda o, i: i[2, 0].fill_(SHAPE.dim), "indices", id="no input of the layer"),
        pytest.param("random", lambda o, i: i[2, 0].fill_(-1), "indices", id="never written"),
        pytest.param("random", lambda o, i: i[tuple(first_kept(o))].add_(1), "indices", id="a kept slot changed"),
        pytest.param("random", read_again, "indices", id="back where it was"),
        pytest.param("random", the_smallest, "drawn", id="not at random"),
        pytest.param("gradient", the_smallest, "gain", id="not by gradient"),
        pytest.param("banked_random", the_smallest, "indices", id="residues lost"),
    ],
)
def test_wrong_lists_are_refused(rule, spoil, output):
    operands, (indices,) = made(f"grow/{rule}", "grow")
    indices = indices.clone()
    spoil(operands, indices)
    failed = [
        v.output for v in verify.check("grow", operands, find(f"grow/{rule}"), {"it": (indices,)})["it"] if not v.passed
    ]
    assert output in failed


@pytest.mark.parametrize("rule", ["mean_weight", "max_weight", "weight_gradient"])
def test_a_wrong_score_is_refused(rule):
    operands, (score,) = made(f"score/{rule}", "score", "bf16")
    score[-1] *= 1.01  # the ragged group alone
    assert not verdicts(f"score/{rule}", "score", operands, (score,))[0].passed


@pytest.mark.parametrize(
    ("pass_", "spoil", "output"),
    [
        pytest.param("forward", lambda o: o[0][:, 50].zero_(), "y", id="the first label of the tail"),
        pytest.param("backward", lambda o: o[2][49].zero_(), "d_head", id="the last label of the head"),
        pytest.param("backward", lambda o: o[1].copy_(o[1].roll(1, 0)), "dw", id="the tail shifted by one"),
        pytest.param("step", lambda o: o[3].mul_(0.9), "head", id="another update of the head"),
        pytest.param("step", lambda o: o[0].mul_(0.99), "loss", id="a loss without some labels"),
    ],
)
def test_a_wrong_head_or_tail_is_refused(pass_, spoil, output):
    operands, outputs = made("head_tail/torch", pass_)
    outputs = tuple(t.clone() for t in outputs)
    spoil(outputs)
    assert output in [v.output for v in verdicts("head_tail/torch", pass_, operands, outputs) if not v.passed]


def test_slots_to_drop_are_a_share_of_every_group_and_change_with_the_seed():
    operands, _ = made("grow/random", "grow")
    before = operands.dropped
    assert before.sum(1).unique().tolist() == [round(DROPPED * SHAPE.fan_in)]
    operands.refill(1)
    assert not torch.equal(operands.dropped, before)


def test_a_layer_is_cut_where_its_head_ends():
    operands = Operands(Point(SHAPE, "uniform", "fp32"), CPU, seed=0)
    layer = operands.layer(find("head_tail/torch"))
    assert (layer.labels, layer.head_labels) == (500, 50)
    assert layer.rows(0, 50).topology is None
    assert layer.rows(66, 500).sparse.labels == 434
    with pytest.raises(ValueError, match=r"\[40, 60\) must end or begin where the head ends, at 50"):
        layer.rows(40, 60)
