"""Constructors, views and orders of GroupTopology."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gskernels.layer import Layer
from gskernels.oracle import outputs
from gskernels.topology import BANKS, PATTERNS, GroupTopology, index_dtype

# labels, dim, fan_in, group_size
SHAPES = [
    (24, 32, 8, 4),
    (10, 17, 5, 3),  # ragged last group, dim no multiple of the banks
    (7, 40, 40, 7),  # one group that reads everything
    (5, 1, 1, 1),
    (9, 16, 3, 1),  # per label
]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    labels, dim = draw(st.integers(1, 40)), draw(st.integers(1, 48))
    return labels, dim, draw(st.integers(1, dim)), draw(st.integers(1, labels))


def assert_valid(topology: GroupTopology, labels: int, dim: int, fan_in: int, group_size: int) -> None:
    indices = topology.indices
    assert list(indices.shape) == [math.ceil(labels / group_size), fan_in]
    assert indices.dtype == index_dtype(dim)
    assert indices.is_contiguous()
    assert 0 <= int(indices.min()) <= int(indices.max()) < dim
    assert all(len(set(row)) == fan_in for row in indices.tolist())
    GroupTopology.of(indices, labels=labels, dim=dim, group_size=group_size)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_constructors(pattern: str, shape: tuple[int, int, int, int]) -> None:
    topology = PATTERNS[pattern](*shape, seed=3)
    assert_valid(topology, *shape)
    if pattern not in ("banked", "ordered"):  # bank order is no sorted order
        assert torch.equal(topology.indices, topology.indices.sort(1).values)


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), pattern=st.sampled_from(sorted(PATTERNS)), seed=st.integers(0, 2**31))
def test_constructors_over_shapes(shape: tuple[int, int, int, int], pattern: str, seed: int) -> None:
    topology = PATTERNS[pattern](*shape, seed=seed)
    assert_valid(topology, *shape)
    values = torch.arange(1, shape[0] * shape[2] + 1).float().view(shape[0], shape[2])
    dense = topology.to_dense(values)
    assert torch.equal(dense.gather(1, topology.label_indices()), values)
    assert torch.equal(dense != 0, topology.mask())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_seeded(pattern: str) -> None:
    first, again, other = (PATTERNS[pattern](64, 48, 8, 4, seed=seed).indices for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_does_not_touch_the_global_generator(pattern: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = PATTERNS[pattern](64, 40, 16, 4, seed=1).indices
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(PATTERNS[pattern](64, 40, 16, 4, seed=1).indices, first)


def test_uniform_is_uniform() -> None:
    count = torch.bincount(GroupTopology.uniform(20_000, 16, 4).indices.flatten().long(), minlength=16)
    assert float((count / 20_000 - 4 / 16).abs().max()) < 0.02  # 6 standard deviations


def test_zipf_is_skewed() -> None:
    count = torch.bincount(GroupTopology.zipf(20_000, 64, 4).indices.flatten().long(), minlength=64).sort().values
    assert int(count[-1]) > 5 * int(count[32])


def test_clustered_is_local() -> None:
    indices = GroupTopology.clustered(2000, 512, 16).indices.long()
    gap = (indices.roll(-1, 1) - indices) % 512  # cyclic: the largest gap is what lies outside of the window
    assert float((gap.amax(1) > 512 // 4).float().mean()) > 0.5
    spread = GroupTopology.uniform(2000, 512, 16).indices.long()
    assert float((((spread.roll(-1, 1) - spread) % 512).amax(1) > 512 // 4).float().mean()) < 0.3


@pytest.mark.parametrize(("dim", "fan_in"), [(64, 16), (768, 64), (40, 40), (8, 8), (128, 72)])
def test_banked_is_conflict_free(dim: int, fan_in: int) -> None:
    topology = GroupTopology.banked(40, dim, fan_in, 4)
    assert topology.wavefronts().tolist() == [fan_in // BANKS] * 10


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 1000))
def test_bank_order_is_only_an_order(shape: tuple[int, int, int, int], seed: int) -> None:
    drawn = GroupTopology.uniform(*shape, seed=seed)
    ordered = drawn.bank_ordered()
    assert torch.equal(ordered.indices.sort(1).values, drawn.indices)
    assert bool((ordered.wavefronts() <= drawn.wavefronts()).all())
    labels, dim, fan_in, group_size = shape
    weight = torch.randn(labels, fan_in)
    order = ordered.order_from(drawn).repeat_interleave(group_size, 0)[:labels]
    moved = weight.gather(1, order)
    assert torch.equal(ordered.to_dense(moved), drawn.to_dense(weight))
    x = torch.randn(2, dim)
    mine = outputs("forward", x, x, Layer(moved, ordered))[0]
    torch.testing.assert_close(mine, outputs("forward", x, x, Layer(weight, drawn))[0])


def test_order_from_needs_the_same_sets() -> None:
    with pytest.raises(ValueError, match="the same index sets"):
        GroupTopology.uniform(24, 32, 8, 4, seed=0).order_from(GroupTopology.uniform(24, 32, 8, 4, seed=1))


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 1000))
def test_dense_round_trip(shape: tuple[int, int, int, int], seed: int) -> None:
    labels, _, fan_in, group_size = shape
    topology = GroupTopology.uniform(*shape, seed=seed)
    weight = torch.rand(labels, fan_in) + 0.5
    for given_fan_in in (None, fan_in):
        again, values = GroupTopology.from_dense(topology.to_dense(weight), group_size, given_fan_in)
        assert torch.equal(again.indices, topology.indices)
        assert torch.equal(values, weight)


def test_from_dense_keeps_the_strongest() -> None:
    weight = torch.tensor([[0.0, 3.0, 1.0, 0.0], [0.0, 0.0, 1.0, 2.0]])
    topology, values = GroupTopology.from_dense(weight, 2, fan_in=2)
    assert topology.indices.tolist() == [[1, 3]]
    assert values.tolist() == [[3.0, 0.0], [0.0, 2.0]]
    with pytest.raises(ValueError, match="between 1 and 2 inputs; give fan_in"):
        GroupTopology.from_dense(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))


ERRORS = {
    "labels": (torch.zeros(1, 1).int(), 0, 4, 1, "labels and dim must be at least 1, got labels=0"),
    "group_size": (torch.zeros(1, 1).int(), 3, 4, 4, "group_size must lie in 1..labels=3, got 4"),
    "dtype": (torch.zeros(3, 1), 3, 4, 1, "2-d integer tensor, got torch.float32"),
    "bool": (torch.zeros(3, 1).bool(), 3, 4, 1, "2-d integer tensor, got torch.bool"),
    "dimensions": (torch.zeros(3).int(), 3, 4, 1, r"2-d integer tensor, got torch.int32 of shape \[3\]"),
    "rows": (torch.zeros(2, 1).int(), 5, 4, 2, "5 labels in groups of 2 need 3 index rows, got 2"),
    "fan_in": (torch.arange(5)[None], 1, 4, 1, r"fan_in must lie in 1..dim=4, got 5"),
    "above": (torch.tensor([[0, 1], [3, 4]]), 2, 4, 1, r"index outside 0..3 in row 1: \[3, 4\]"),
    "below": (torch.tensor([[-1, 1], [2, 3]]), 2, 4, 1, "index outside 0..3 in row 0"),
    "twice": (torch.tensor([[0, 1], [2, 2]]), 2, 4, 1, r"an input appears twice in row 1: \[2, 2\]"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_of_says_what_is_wrong(name: str) -> None:
    indices, labels, dim, group_size, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        GroupTopology.of(indices, labels=labels, dim=dim, group_size=group_size)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_constructors_say_what_is_wrong(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"fan_in must lie in 1\.\.dim=4, got 5"):
        PATTERNS[pattern](8, 4, 5)
    with pytest.raises(ValueError, match=r"group_size must lie in 1\.\.labels=8, got 9"):
        PATTERNS[pattern](8, 4, 2, 9)


def test_views() -> None:
    topology = GroupTopology.uniform(10, 16, 4, 3)
    assert (topology.groups, topology.fan_in, topology.device.type) == (4, 4, "cpu")
    assert list(topology.chunks(7)) == [(0, 6), (6, 10)]
    part = topology.rows(6, 10)
    assert torch.equal(part.label_indices(), topology.label_indices()[6:10])
    with pytest.raises(ValueError, match="must begin a group of 3"):
        topology.rows(4, 10)
    with pytest.raises(ValueError, match=r"values must be \[10, 4\]"):
        topology.to_dense(torch.zeros(10, 5))


def test_memo_builds_once() -> None:
    topology, built = GroupTopology.uniform(4, 8, 2), []
    for _ in range(2):
        assert topology.memo("key", lambda: built.append(1) or 7) == 7  # type: ignore[func-returns-value]
    assert built == [1]


def test_wide_inputs_take_int32() -> None:
    assert GroupTopology.uniform(2, 2**15, 3).indices.dtype == torch.int16
    assert GroupTopology.uniform(2, 2**15 + 1, 3).indices.dtype == torch.int32
