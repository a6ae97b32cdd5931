"""The rules of rewiring one by one: what a slot is worth, which ones fall, which inputs are grown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gskernels import rewire
from gskernels.rewire import drop_below, drop_global, drop_per_group, gradient_norms, grow, score_slots
from gskernels.topology import BANKS, GroupTopology
from tests.allocations import allocations


@st.composite
def topologies(draw: st.DrawFn) -> GroupTopology:
    labels, dim = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    shape = labels, dim, draw(st.integers(1, dim)), draw(st.integers(1, labels))
    return GroupTopology.uniform(*shape, seed=draw(st.integers(0, 99)))


def activations(topology: GroupTopology, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, topology.dim, generator=generator)
    return x, torch.randn(6, topology.labels, generator=generator)


def random_mask(topology: GroupTopology, seed: int, share: float = 0.4) -> Tensor:
    return torch.rand(topology.indices.shape, generator=torch.Generator().manual_seed(seed)) < share


def assert_sets(topology: GroupTopology, like: GroupTopology) -> None:
    assert topology.indices.shape == like.indices.shape
    assert topology.indices.dtype == like.indices.dtype
    GroupTopology.of(topology.indices, labels=like.labels, dim=like.dim, group_size=like.group_size)


# ---- score and drop -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(topology=topologies())
@pytest.mark.parametrize("rule", rewire.SCORES)
def test_scores_count_real_labels_only(rule: str, topology: GroupTopology) -> None:
    weight, grad = torch.randn(2, topology.labels, topology.fan_in)
    score = score_slots(weight, topology, rule, grad)
    for group in range(topology.groups):
        mine = slice(group * topology.group_size, min((group + 1) * topology.group_size, topology.labels))
        value = (weight[mine] * grad[mine] if rule == "weight_gradient" else weight[mine]).abs()
        expected = value.amax(0) if rule == "max_weight" else value.mean(0)
        torch.testing.assert_close(score[group], expected)


def test_scores_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = GroupTopology.uniform(23, 32, 8, 4)
    weight = torch.randn(23, 8)
    whole = [score_slots(weight, topology, rule, weight) for rule in rewire.SCORES]
    masked = weight.clone()
    rewire.reset_slots(masked, topology, random_mask(topology, 0))
    monkeypatch.setattr("gskernels.rewire.slots._CHUNK", 64)
    monkeypatch.setattr("gskernels.rewire.state._CHUNK", 64)
    for rule, expected in zip(rewire.SCORES, whole, strict=True):
        assert torch.equal(score_slots(weight, topology, rule, weight), expected)
    rewire.reset_slots(weight, topology, random_mask(topology, 0))
    assert torch.equal(weight, masked)


def test_drop_rules() -> None:
    score = torch.tensor([[0.1, 0.2, 0.3, 0.4], [5.0, 6.0, 0.35, 7.0], [9.0, 9.0, 9.0, 8.0]])
    assert drop_per_group(score, 0.5).tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], drop_per_group(score, 0.5)[2].tolist()]
    assert drop_per_group(score, 0.3).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert drop_global(score, 0.25, 1.0).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert drop_global(score, 0.25, 0.5).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert drop_global(score, 1.0, 0.25).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert drop_below(score, 0.38, 1.0).tolist() == [[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert drop_below(score, 0.38, 0.5).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert not bool(drop_per_group(score, 0.0).any())
    assert not bool(drop_global(score, 0.0).any() | drop_global(score, 1.0, 0.0).any() | drop_below(score, 0.0).any())
    assert bool(drop_per_group(score, 1.0).all())


@settings(max_examples=60, deadline=None)
@given(groups=st.integers(1, 9), fan_in=st.integers(1, 9), fraction=st.floats(0, 1), share=st.floats(0, 1))
def test_global_drop_takes_the_weakest(groups: int, fan_in: int, fraction: float, share: float) -> None:
    score = torch.rand(groups, fan_in, generator=torch.Generator().manual_seed(groups * fan_in))
    dropped, cap = drop_global(score, fraction, share), math.floor(share * fan_in + 1e-9)
    assert int(dropped.sum()) == min(math.floor(fraction * groups * fan_in + 0.5), groups * cap)
    assert int(dropped.sum(1).max()) <= cap
    for row, gone in zip(score, dropped, strict=True):  # a kept slot is stronger than any dropped one, or its group is full
        if bool(gone.any()) and not bool(gone.all()):
            assert float(row[gone].max()) <= float(row[~gone].min())
        if int(gone.sum()) < cap and bool(dropped.any()):
            assert float(row[~gone].min()) >= float(score[dropped].max())


# ---- growth -------------------------------------------------------------------------------------------------------


def dense_norms(x: Tensor, grad_out: Tensor, topology: GroupTopology) -> Tensor:
    dense = grad_out.double().t() @ x.double()  # [L, D]
    return torch.stack([part.square().sum(0).sqrt() for part in dense.split(topology.group_size)])


@settings(max_examples=60, deadline=None)
@given(topology=topologies(), seed=st.integers(0, 999), chunk=st.sampled_from([1, 100, 1 << 24]))
def test_gradient_growth_takes_the_largest_norms(topology: GroupTopology, seed: int, chunk: int) -> None:
    x, grad_out = activations(topology, seed=seed)
    expected = dense_norms(x, grad_out, topology)
    norms = list(gradient_norms(x, grad_out, topology, chunk))
    assert [first for first, _ in norms] == [0, *torch.tensor([len(n) for _, n in norms]).cumsum(0).tolist()[:-1]]
    torch.testing.assert_close(torch.cat([norm for _, norm in norms]).double(), expected, rtol=1e-5, atol=1e-5)

    dropped = random_mask(topology, seed)
    for given_as in (grad_out, lambda start, stop: grad_out[:, start:stop]):
        after = grow(topology, dropped, "gradient", x=x, grad_out=given_as, chunk=chunk)
        for norm, old, new, gone in zip(expected, topology.indices, after.indices, dropped, strict=True):
            unread = sorted(set(range(topology.dim)) - set(old.tolist()), key=lambda d: -float(norm[d]))
            returned = sorted(old[gone].tolist(), key=lambda d: -float(norm[d]))
            best = (unread + returned)[: int(gone.sum())]
            torch.testing.assert_close(norm[new[gone].long()], norm[best], rtol=1e-6, atol=0)  # the same, but for ties


@settings(max_examples=60, deadline=None)
@given(topology=topologies(), seed=st.integers(0, 999), growth=st.sampled_from(["banked_random", "banked_gradient"]))
def test_banked_growth_keeps_residues(topology: GroupTopology, seed: int, growth: str) -> None:
    x, grad_out = activations(topology, seed=seed)
    dropped = random_mask(topology, seed)
    after = grow(topology, dropped, growth, seed=seed, x=x, grad_out=grad_out, chunk=200)
    assert_sets(after, topology)
    assert torch.equal(after.indices % BANKS, topology.indices % BANKS)  # slot by slot: the bank order holds
    assert torch.equal(after.wavefronts(), topology.wavefronts())
    norms = dense_norms(x, grad_out, topology)
    for norm, old, new, gone in zip(norms, topology.indices, after.indices, dropped, strict=True):
        assert torch.equal(new[~gone], old[~gone])
        for bank in range(BANKS):
            lost = [d for d in old[gone].tolist() if d % BANKS == bank]
            won = [d for d in new[gone].tolist() if d % BANKS == bank]
            unread = [d for d in range(bank, topology.dim, BANKS) if d not in old.tolist()]
            assert len(set(won) & set(lost)) == max(0, len(lost) - len(unread))
            if growth == "banked_gradient":
                best = sorted(unread, key=lambda d: -float(norm[d]))[: len(lost)]
                torch.testing.assert_close(norm[won[: len(unread)]], norm[best], rtol=1e-6, atol=0)


class Largest(TorchDispatchMode):
    """The most elements that any new tensor has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("growth", rewire.GROWTHS)
def test_growth_never_holds_labels_by_dim(growth: str) -> None:
    topology = GroupTopology.uniform(4098, 64, 8, 4)  # L x D = 262,272
    x, grad_out = activations(topology)
    dropped = random_mask(topology, 0)
    with Largest() as largest:
        grow(topology, dropped, growth, x=x, grad_out=grad_out, chunk=4096)
    assert largest.elements <= topology.indices.numel()


def test_one_chunk_of_the_dense_gradient_is_alive() -> None:
    topology = GroupTopology.uniform(8192, 64, 8, 4)
    x, grad_out = activations(topology)
    chunk = 1 << 18  # 4096 labels: two chunks of 1 MiB
    peak = allocations(lambda: sum(float(norm.sum()) for _, norm in gradient_norms(x, grad_out, topology, chunk))).peak
    assert peak < 1.6 * 4 * chunk  # one of them, the norms of its groups, and pointwise temporaries of these


def test_random_growth_is_uniform() -> None:
    topology = GroupTopology.of(torch.tensor([[0, 1]] * 5000), labels=5000, dim=6, group_size=1)
    dropped = torch.tensor([[True, False]] * 5000)
    count = torch.bincount(grow(topology, dropped).indices[:, 0].long(), minlength=6)
    assert count[:2].tolist() == [0, 0]
    assert float((count[2:] / 5000 - 0.25).abs().max()) < 0.04  # 6 standard deviations


def test_inputs_without_gradient_are_grown_at_random() -> None:
    topology = GroupTopology.of(torch.tensor([[0, 1]] * 500), labels=500, dim=10, group_size=1)
    x = torch.zeros(1, 10)
    x[0, 7] = 1.0
    after = grow(topology, torch.ones(500, 2, dtype=torch.bool), "gradient", x=x, grad_out=torch.ones(1, 500))
    assert after.indices[:, 0].tolist() == [7] * 500
    assert sorted(set(after.indices[:, 1].tolist())) == [2, 3, 4, 5, 6, 8, 9]


# ---- bad input ----------------------------------------------------------------------------------------------------

TOPOLOGY = GroupTopology.uniform(10, 16, 4, 3)
X, GRAD_OUT = activations(TOPOLOGY)
MASK = torch.ones(4, 4, dtype=torch.bool)
WEIGHT = torch.ones(10, 4)

ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "score rule": (lambda: score_slots(WEIGHT, TOPOLOGY, "best"), "score must be one of mean_weight"),
    "score shape": (lambda: score_slots(torch.ones(9, 4), TOPOLOGY), r"weight must be \[10, 4\] .*, got \[9, 4\]"),
    "score grad": (lambda: score_slots(WEIGHT, TOPOLOGY, "weight_gradient"), r"rewire before zero_grad\(\)"),
    "grad shape": (
        lambda: score_slots(WEIGHT, TOPOLOGY, "weight_gradient", torch.ones(4)),
        r"grad must be \[10, 4\] for this topology, got \[4\]",
    ),
    "score nan": (
        lambda: score_slots(WEIGHT.index_fill(0, torch.tensor([4]), math.nan), TOPOLOGY),
        "the mean_weight score of group 1 is not finite",
    ),
    "drop fraction": (lambda: drop_per_group(torch.ones(2, 2), 1.5), r"fraction must lie in \[0, 1\], got 1.5"),
    "drop share": (lambda: drop_global(torch.ones(2, 2), 0.5, -1), r"max_share must lie in \[0, 1\], got -1"),
    "grow rule": (lambda: grow(TOPOLOGY, MASK, "best"), "grow must be one of random"),
    "mask": (lambda: grow(TOPOLOGY, MASK.int()), r"bool tensor of shape \[4, 4\], got torch.int32 \[4, 4\]"),
    "x": (lambda: list(gradient_norms(X[:, :3], GRAD_OUT, TOPOLOGY)), r"x must be \[B, 16\] .*, got \[6, 3\]"),
    "grad_out": (lambda: list(gradient_norms(X, GRAD_OUT.t(), TOPOLOGY)), r"grad_out must be \[6, 10\], got \[10, 6\]"),
    "grad_out part": (
        lambda: list(gradient_norms(X, lambda start, stop: GRAD_OUT, TOPOLOGY, 48)),
        r"grad_out\(0, 3\) must be \[6, 3\], got \[6, 10\]",
    ),
    "gradient inf": (
        lambda: list(gradient_norms(X, GRAD_OUT.index_fill(1, torch.tensor([7]), math.inf), TOPOLOGY, 48)),
        "the gradient of labels 6..8 is not finite",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str) -> None:
    act, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        act()
