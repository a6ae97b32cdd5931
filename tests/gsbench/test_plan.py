"""Plans: what is in a grid, what is refused, and the costs that hang on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsbench import costs, plan
from gsbench.case import Case, Point
from gsbench.errors import NothingMeasured, UserError
from gsbench.suite import load_suite, validate
from gskernels.shape import Shape
from gskernels.table import IMPLEMENTATIONS, find


def suite(**changes):
    data = {
        "title": "t", "passes": ["forward", "backward"], "dtypes": ["fp32"],
        "axes": {"batch": [8, 1], "dim": [64], "labels": [256, 512, 1024], "fan_in": [8], "group_size": [4, 2]},
    }  # fmt: skip
    return validate(data | changes, "test")


def test_star_varies_one_axis_at_a_time():
    shapes = {c.point.shape for c in plan.build(suite(), "cpu", IMPLEMENTATIONS).cases}
    assert shapes == {
        Shape(8, 64, 256, 8, 4), Shape(1, 64, 256, 8, 4), Shape(8, 64, 512, 8, 4), Shape(8, 64, 1024, 8, 4),
        Shape(8, 64, 256, 8, 2),
    }  # fmt: skip


def test_cross_takes_every_combination_and_the_count_is_right():
    chosen = suite(grid="cross")
    built = plan.build(chosen, "cpu", IMPLEMENTATIONS, ["dense/torch"])
    assert len(built.cases) == chosen.grid_size() * 2 == 24


def test_a_huge_grid_is_refused_with_its_count_before_it_is_listed():
    axes = {axis: list(range(1, 26)) for axis in ("batch", "labels", "fan_in", "group_size")} | {"dim": list(range(25, 50))}
    axes["labels"] = list(range(100, 125))
    with pytest.raises(UserError, match=r"has 9,765,625 cases, over the limit of 20,000"):
        plan.build(suite(axes=axes, grid="cross", passes=["forward"]), "cpu", IMPLEMENTATIONS, ["dense/torch"])


def test_unsupported_cases_are_kept_with_the_reason():
    built = plan.build(suite(modes=["cold", "graph"]), "cpu", IMPLEMENTATIONS)
    reasons = {(c.implementation, c.mode): r for c, r in built.unsupported}
    assert reasons["group_shared/triton", "cold"] == "group_shared/triton runs on cuda, not on cpu"
    assert reasons["dense/torch", "graph"] == "CUDA graphs need a CUDA device"
    assert not any(c.mode == "graph" for c in built.cases)


def test_nothing_supported_exits_3_with_the_reasons():
    with pytest.raises(NothingMeasured, match="group_shared/triton runs on cuda, not on cpu") as e:
        plan.build(suite(), "cpu", IMPLEMENTATIONS, ["group_shared/triton"])
    assert e.value.exit_code == 3


@pytest.mark.parametrize("pattern", ["nothing/*", "group_shared"])
def test_an_unknown_implementation_lists_the_known_ones(pattern):
    with pytest.raises(UserError, match=rf"no implementation matches '{pattern.replace('*', '.')}'; known: dense/torch"):
        plan.build(suite(), "cpu", IMPLEMENTATIONS, [pattern])


def test_blocks_keep_a_point_together_in_an_order_that_does_not_change():
    built = plan.build(suite(), "cpu", IMPLEMENTATIONS)
    blocks = built.blocks()
    assert all(len({c.point for c in block}) == 1 for block in blocks)
    assert sum(len(b) for b in blocks) == len(built.cases)
    assert [b[0].point for b in blocks] == [b[0].point for b in built.blocks()]


def test_a_share_of_labels_in_the_head_is_an_axis():
    axes = {"batch": [8], "dim": [64], "labels": [256], "fan_in": [8], "group_size": [4], "head_share": [0.1, 0.25]}
    given = suite(axes=axes)
    assert given.grid_size() == 2
    built = plan.build(given, "cpu", IMPLEMENTATIONS, ["head_tail/torch", "dense/torch"])
    assert {(c.implementation, c.point.shape.head) for c in built.cases} == {
        (name, head) for name in ("head_tail/torch", "dense/torch") for head in (26, 64)
    }  # fmt: skip
    assert "H=64 " in str(built.cases[-1].point)


def test_what_makes_no_sense_is_left_out_and_said_where_nothing_else_is_there():
    """No head, no head-tail layer; no rule has a forward, and no layer a score."""
    both = suite(passes=["forward", "score"])
    built = plan.build(both, "cpu", IMPLEMENTATIONS)
    every = [*built.cases, *(case for case, _ in built.unsupported)]
    assert not any(c.implementation.startswith("head_tail/") for c in every)
    assert {c.implementation.partition("/")[0] in ("score", "grow") for c in every if c.pass_ == "forward"} == {False}
    assert {c.implementation for c in every if c.pass_ == "score"} == {
        "score/mean_weight", "score/max_weight", "score/weight_gradient"
    }  # fmt: skip
    with pytest.raises(NothingMeasured, match="needs labels in head and tail, but head_share=0 gives the head 0 of 256"):
        plan.build(suite(), "cpu", IMPLEMENTATIONS, ["head_tail/torch"])
    with pytest.raises(NothingMeasured, match=r"grow/random has no forward pass \(it has grow\)"):
        plan.build(suite(passes=["forward"]), "cpu", IMPLEMENTATIONS, ["grow/random"])


def test_groups_larger_than_the_tail_are_unsupported():
    shape = Shape(8, 64, 20, 8, 16, head_share=0.5)
    reason = find("head_tail/torch").unsupported(shape, "step", "fp32", "cpu")
    assert reason == "group_size=16 exceeds the 10 labels of the tail"


def test_nothing_can_be_grown_where_everything_is_read():
    reasons = [find("grow/random").unsupported(Shape(8, 64, 20, k, 4), "grow", "fp32", "cpu") for k in (63, 64)]
    assert reasons == [None, "every group reads every input, so none can be grown"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("name", "implementations"),
    [
        ("head_tail", {"dense/torch", "bottleneck/torch", "head_tail/torch"}),
        ("rewire", {i.name for i in IMPLEMENTATIONS if i.layout == "rules"}),
        ("train_step", {"dense/torch", "dense/chunked", "bottleneck/torch", "fixed_fan_in/densify", "head_tail/torch"}),
    ],
)
def test_the_suites_of_the_system_plan(name, implementations, device):
    chosen, _ = load_suite(name, device)
    built = plan.build(chosen, device, IMPLEMENTATIONS)
    assert implementations <= {c.implementation for c in built.cases}
    assert all(cost.min_bytes > 0 and cost.extra_bytes > 0 for _, cost in plan.costs(built, IMPLEMENTATIONS))


@pytest.mark.parametrize("name", ["backward", "paper"])
def test_the_shipped_suites_plan_on_a_gpu(name):
    chosen, _ = load_suite(name, "cuda")
    built = plan.build(chosen, "cuda", IMPLEMENTATIONS)
    planned = {c.implementation for c in built.cases}
    assert {"bottleneck/torch", "fixed_fan_in/triton", "group_shared/triton"} <= planned
    assert len(built.cases) > 20


# ---- costs ------------------------------------------------------------------------------------------------------


def test_costs_of_the_default_point_by_hand():
    """KERNELS' figures for B=256 D=768 L=655,360 K=64 G=32 bf16: logits 336 MB, weights 84 MB, indices 2.6 MB."""
    r1 = Shape(256, 768, 655_360, 64, 32)
    forward = costs.cost(find("group_shared/triton"), "forward", r1, "bf16")
    assert forward.useful_flops == 2 * 256 * 655_360 * 64
    assert forward.writes == 335_544_320
    assert forward.layer_bytes == 83_886_080 + 20_480 * 64 * 2
    assert forward.reads == forward.layer_bytes + 256 * 768 * 2
    per_label = costs.cost(find("fixed_fan_in/triton"), "forward", r1, "bf16")
    assert per_label.layer_bytes == 2 * 83_886_080
    both = costs.cost(find("group_shared/triton"), "backward", r1, "bf16")
    assert both.useful_flops == 2 * forward.useful_flops
    assert both.reads == 335_544_320 + 256 * 768 * 2 + both.layer_bytes
    assert r1.bottleneck_rank == 64
    floor = costs.floor_ms(forward, bandwidth_gbps=4250, matmul_tflops=791, cache_bytes=0)
    assert floor == pytest.approx((forward.reads + forward.writes) / 4.25e9)


def test_costs_of_a_head_by_hand():
    """R1 with a head of a tenth: 65,536 labels of 768 inputs, 589,824 of 64."""
    r1 = Shape(256, 768, 655_360, 64, 32, head_share=0.1)
    weights = 65_536 * 768 + 589_824 * 64
    both = costs.cost(find("head_tail/triton"), "backward", r1, "bf16")
    assert both.useful_flops == 2 * 2 * 256 * weights
    assert both.layer_bytes == 2 * weights + 18_432 * 64 * 2
    step = costs.cost(find("head_tail/triton"), "step", r1, "bf16")
    assert step.extra_bytes < 256 * 655_360 * 2  # no logits of all labels
    stored = costs.cost(find("dense/torch"), "step", r1, "bf16")
    assert stored.extra_bytes == (256 + 768) * 655_360 * 2 + 256 * 768 * 2  # logits, and gradients until the update; dx
    assert r1.bottleneck_rank == Shape(256, 768, 655_360, 64, 32).bottleneck_rank


def test_costs_of_a_rewiring_by_hand():
    shape = Shape(256, 768, 655_360, 64, 32)
    weights, slots = 655_360 * 64 * 2, 20_480 * 64
    rules = ("max_weight", "weight_gradient")
    by_size, by_both = (costs.cost(find(f"score/{rule}"), "score", shape, "bf16") for rule in rules)
    assert (by_size.reads, by_size.writes, by_size.useful_flops) == (weights, 4 * slots, 0)
    assert by_both.reads == 2 * weights
    random, gradient = (costs.cost(find(f"grow/{rule}"), "grow", shape, "bf16") for rule in ("random", "gradient"))
    assert (random.reads, random.writes) == (3 * slots, 2 * slots)  # indices and a byte a slot
    assert gradient.reads == random.reads + 256 * (768 + 655_360) * 2
    assert gradient.useful_flops == 2 * 256 * 768 * 655_360
    assert gradient.extra_bytes < 1 << 28  # never L x D at once


def test_the_floor_is_arithmetic_where_that_is_the_larger():
    c = costs.cost(find("dense/torch"), "forward", Shape(4096, 4096, 4096, 64, 32), "bf16")
    assert costs.floor_ms(c, bandwidth_gbps=4000, matmul_tflops=1, cache_bytes=0) == pytest.approx(2 * 4096**3 / 1e9)


@given(st.integers(1, 2048), st.integers(1, 8192), st.integers(1, 10**7), st.data())
def test_costs_grow_with_every_axis(batch, dim, labels, data):
    fan_in, group = data.draw(st.integers(1, dim)), data.draw(st.integers(1, labels))
    shape = Shape(batch, dim, labels, fan_in, group)
    assert shape.bottleneck_rank % 8 == 0
    larger = Shape(batch + 1, dim, labels, fan_in, group)
    for implementation in IMPLEMENTATIONS:
        a, b = (costs.cost(implementation, "forward", s, "fp32") for s in (shape, larger))
        assert 0 < a.min_bytes < b.min_bytes
        assert 0 < a.useful_flops < b.useful_flops
        assert a.resident_bytes >= a.layer_bytes


def test_a_case_survives_its_dictionary_and_its_key_is_its_content():
    case = Case("dense/torch", "forward", Point(Shape(1, 2, 3, 1, 1), "uniform", "fp32"), "cold", "cpu")
    assert Case.from_dict(case.to_dict()) == case
    other = Case("dense/torch", "forward", Point(Shape(2, 2, 3, 1, 1), "uniform", "fp32"), "cold", "cpu")
    assert case.key != other.key
    headed = Case("head_tail/torch", "forward", Point(Shape(1, 2, 3, 1, 1, 0.3), "uniform", "fp32"), "cold", "cpu")
    assert Case.from_dict(json.loads(json.dumps(headed.to_dict()))) == headed
    assert len(case.key) == 16


def test_keys_of_recorded_cases_stay():
    """A head that is not there leaves no trace: baselines of older versions are found."""
    line = (Path(__file__).parents[2] / "results/baselines/cpu/width-768/records.jsonl").read_text().splitlines()[0]
    recorded = json.loads(line)
    assert Case.from_dict(recorded["case"]).key == recorded["key"]
