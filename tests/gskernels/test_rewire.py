"""Invariants of sparse training: fan-in constant, inputs distinct, kept slots untouched, regrown slots afresh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gskernels import rewire
from gskernels.nn import GroupSharedLinear
from gskernels.rewire import Schedule
from gskernels.topology import BANKS, GroupTopology

SHAPES = [  # labels, dim, fan_in, group_size
    (24, 32, 8, 4),
    (10, 17, 5, 3),  # ragged last group, dim no multiple of the banks
    (7, 40, 24, 7),  # one group; more dropped than some residues have unread inputs
    (5, 12, 12, 2),  # reads everything: nothing else to grow
    (9, 16, 3, 1),  # per label
]
# Every optimizer of torch.optim that keeps its state per weight. Adafactor and LBFGS do not, and are refused.
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adagrad filled": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.25),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}
FRESH = {("Adagrad filled", "sum"): 0.25, ("Rprop", "step_size"): 0.1}  # all others are zero
SCHEDULE = Schedule(interval=10, initial=0.5, end=100)
Rewirer = partial(rewire.Rewirer, order=False)  # slots stay where they are, so that they can be compared


class Layer(torch.nn.Module):
    def __init__(self, topology: GroupTopology, seed: int = 0) -> None:
        super().__init__()
        noise = torch.randn(topology.labels, topology.fan_in, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter(noise + noise.sign() / 10)  # no zeros
        self.topology = replace(topology, indices=topology.indices.clone())

    def set_topology(self, topology: GroupTopology) -> None:
        self.topology.indices.copy_(topology.indices)  # in place, as a module with a buffer does it


def trained(topology: GroupTopology, optimizer: str = "SGD momentum", steps: int = 2) -> tuple[Layer, torch.optim.Optimizer]:
    layer = Layer(topology)
    chosen = OPTIMIZERS[optimizer]([torch.nn.Parameter(torch.zeros(3)), layer.weight])
    for step in range(steps):
        layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(step)) + 3
        chosen.step()
    return layer, chosen


def activations(topology: GroupTopology, batch: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, topology.dim, generator=generator)
    return x, torch.randn(batch, topology.labels, generator=generator)


def per_label(slots: Tensor, topology: GroupTopology) -> Tensor:
    return slots.repeat_interleave(topology.group_size, 0)[: topology.labels]


def assert_sets(topology: GroupTopology, like: GroupTopology) -> None:
    assert topology.indices.shape == like.indices.shape
    assert topology.indices.dtype == like.indices.dtype
    arguments = {"labels": like.labels, "dim": like.dim, "group_size": like.group_size}
    GroupTopology.of(topology.indices, **arguments)  # in range and distinct


@st.composite
def topologies(draw: st.DrawFn) -> GroupTopology:
    labels, dim = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    shape = labels, dim, draw(st.integers(1, dim)), draw(st.integers(1, labels))
    return GroupTopology.uniform(*shape, seed=draw(st.integers(0, 99)))


# ---- the whole rewiring -------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    topology=topologies(),
    score=st.sampled_from(rewire.SCORES),
    drop=st.sampled_from(rewire.DROPS),
    growth=st.sampled_from(rewire.GROWTHS),
    step=st.integers(0, 110),
    seed=st.integers(0, 2**40),
)
def test_invariants(topology: GroupTopology, score: str, drop: str, growth: str, step: int, seed: int) -> None:
    layer, optimizer = trained(topology)
    weight = layer.weight.detach().clone()
    momentum = optimizer.state[layer.weight]["momentum_buffer"].clone()
    threshold = 2.0 if drop == "threshold" else None
    rules = {"score": score, "drop": drop, "grow": growth, "threshold": threshold}
    told = Rewirer(layer, optimizer, SCHEDULE, **rules, seed=seed, chunk=64).apply(step, *activations(topology))

    assert_sets(layer.topology, topology)
    regrown = per_label(layer.weight.detach() == 0, GroupTopology(topology.indices, topology.labels, topology.dim, 1))
    slots = regrown[:: topology.group_size]
    assert torch.equal(per_label(slots, topology), regrown)  # a whole group at a time
    assert told.regrown == int(slots.sum())
    assert torch.equal(layer.topology.indices[~slots], topology.indices[~slots])
    assert torch.equal(layer.weight.detach()[~regrown], weight[~regrown])
    assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"], momentum.masked_fill(regrown, 0))
    assert bool((layer.weight.grad[regrown] == 0).all())  # type: ignore[index]
    for old, new, gone in zip(topology.indices, layer.topology.indices, slots, strict=True):
        back = len(set(old[gone].tolist()) & set(new[gone].tolist()))
        if not growth.startswith("banked"):
            assert back == max(0, int(gone.sum()) - (topology.dim - topology.fan_in))
    if growth.startswith("banked"):
        assert torch.equal(layer.topology.indices % BANKS, topology.indices % BANKS)
    if drop == "group":
        assert slots.sum(1).tolist() == [math.floor(told.fraction * topology.fan_in + 0.5)] * topology.groups
    elif drop == "threshold":
        assert int(slots.sum(1).max()) <= told.fraction * topology.fan_in + 1e-6
    else:
        assert int(slots.sum(1).max()) <= topology.fan_in / 2
    if step >= 100:
        assert told.regrown == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_of_regrown_slots_starts_afresh(name: str, shape: tuple[int, int, int, int]) -> None:
    layer, optimizer = trained(GroupTopology.uniform(*shape), name)
    topology, before = layer.topology, {}
    for key, value in optimizer.state[layer.weight].items():
        before[key] = value.clone() if isinstance(value, Tensor) else value
    told = Rewirer(layer, optimizer, SCHEDULE).apply(0)
    regrown = layer.weight.detach() == 0
    assert told.regrown > 0
    assert int(regrown.sum()) > 0
    assert name == "SGD" or any(isinstance(v, Tensor) and v.shape == regrown.shape for v in before.values())
    for key, value in optimizer.state[layer.weight].items():
        if isinstance(value, Tensor) and value.shape == regrown.shape:
            assert bool((before[key][regrown] != FRESH.get((name, key), 0.0)).any())  # there was something to reset
            assert torch.equal(value, before[key].masked_fill(regrown, FRESH.get((name, key), 0.0)))
        else:
            assert value == before[key]
    assert_sets(layer.topology, topology)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert bool((layer.weight.detach()[regrown] != 0).all())  # a regrown weight learns at the next step


@pytest.mark.parametrize("growth", rewire.GROWTHS)
def test_a_layer_of_the_library_trains_on(growth: str) -> None:
    layer = GroupSharedLinear(64, 203, 16, 16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    rewirer = Rewirer(layer, optimizer, Schedule(interval=5, initial=0.3, end=40), grow=growth)
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    told, losses = [], []
    for step in range(60):
        optimizer.zero_grad()
        y = layer(x)
        y.retain_grad()
        loss = (y - x[:, :1] - x[:, 63:]).square().mean()  # two inputs matter, and few groups start with both
        loss.backward()
        optimizer.step()
        if rewirer.due(step):
            told.append(rewirer.apply(step, x, y.grad))
        losses.append(loss.item())
    assert [t.step for t in told] == [5, 10, 15, 20, 25, 30, 35]
    assert told[0].churn == told[0].regrown / layer.indices.numel() > 0.25
    GroupTopology.of(layer.indices, labels=203, dim=64, group_size=16)
    if growth == "gradient":
        assert bool((layer.indices == 0).any(1).all() and (layer.indices == 63).any(1).all())
        assert losses[-1] < 0.05 * losses[0]


def test_momentum_does_not_leak_into_the_new_input() -> None:
    layer, optimizer = trained(GroupTopology.uniform(24, 32, 8, 4), "SGD momentum", steps=5)
    Rewirer(layer, optimizer, SCHEDULE).apply(10)
    regrown = layer.weight.detach() == 0
    optimizer.step()  # the gradient was taken before the rewiring: it is that of the old input
    assert bool((layer.weight.detach()[regrown] == 0).all())


def test_an_optimizer_that_has_not_stepped() -> None:
    layer, optimizer = trained(GroupTopology.uniform(24, 32, 8, 4), "Adam", steps=0)
    assert Rewirer(layer, optimizer, SCHEDULE).apply(0).regrown == 24
    assert layer.weight not in optimizer.state  # looking did not make an entry


def test_initial_values_as_asked() -> None:
    topology = GroupTopology.uniform(2000, 64, 16, 3)
    layer, optimizer = trained(topology)
    weight = layer.weight.detach().clone()
    Rewirer(layer, optimizer, SCHEDULE, init_std=0.01).apply(0)
    regrown = per_label(layer.topology.indices != topology.indices, topology)
    assert torch.equal(layer.weight.detach()[~regrown], weight[~regrown])
    assert 0.0095 < float(layer.weight.detach()[regrown].std()) < 0.0105


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    topology = GroupTopology.uniform(10, 17, 5, 3)
    layer = Layer(topology).to(dtype)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9)
    optimizer.step()
    x, grad_out = activations(topology)
    rewirer = Rewirer(layer, optimizer, SCHEDULE, score="weight_gradient", grow="gradient", init_std=0.1)
    assert rewirer.apply(0, x.to(dtype), grad_out.to(dtype)).regrown == 4 * 3
    assert layer.weight.dtype == dtype
    assert_sets(layer.topology, topology)


# ---- schedule, seeds, telemetry -----------------------------------------------------------------------------------


def test_schedule() -> None:
    schedule = Schedule(interval=25, initial=0.3, end=100)
    assert [step for step in range(300) if schedule.due(step)] == [25, 50, 75]
    assert schedule.fraction(0) == pytest.approx(0.3)
    assert schedule.fraction(50) == pytest.approx(0.15)
    assert schedule.fraction(99) == pytest.approx(0.3 / 2 * (1 + math.cos(0.99 * math.pi)))
    assert [schedule.fraction(step) for step in (100, 101, 10**9)] == [0.0] * 3
    shares = [schedule.fraction(step) for step in range(101)]
    assert shares == sorted(shares, reverse=True)


def test_the_fraction_that_decays_is_the_one_that_is_used() -> None:
    regrown = []
    for step in (0, 50, 99, 100):
        layer, optimizer = trained(GroupTopology.uniform(24, 200, 100, 4))
        told = Rewirer(layer, optimizer, SCHEDULE).apply(step)
        assert told.fraction == SCHEDULE.fraction(step)
        regrown.append(told.regrown / 600)
    assert regrown == [0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("growth", rewire.GROWTHS)
def test_draws_depend_on_seed_and_step_alone(growth: str) -> None:
    def run(steps: list[int], seed: int, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        layer, optimizer = trained(GroupTopology.banked(24, 64, 16, 4))
        rewirer = Rewirer(layer, optimizer, SCHEDULE, grow=growth, seed=seed, init_std=0.1)
        if state is not None:
            rewirer.load_state_dict(state)
        x, grad_out = activations(layer.topology)
        for step in steps:
            rewirer.apply(step, x * (torch.arange(64) % 16 == 0), grad_out)  # most inputs have no gradient: drawn
        return torch.cat([layer.topology.indices.flatten().float(), layer.weight.detach().flatten()]), rewirer.state_dict()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, state = run([10, 20], 5)
    assert torch.equal(torch.rand(3), expected)  # the global generator is left alone
    assert torch.equal(run([10, 20], 5)[0], first)
    assert torch.equal(run([10, 20], 6, state)[0], first)
    assert not torch.equal(run([10, 20], 6)[0], first)
    lists = 24 // 4 * 16  # what growth drew; the initial weights come after
    assert not torch.equal(run([10], 5)[0][:lists], run([11], 5)[0][:lists])  # the same slots fall at both steps
    assert not torch.equal(run([10], 5)[0][lists:], run([11], 5)[0][lists:])


@pytest.mark.gpu
@pytest.mark.parametrize("growth", rewire.GROWTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu(shape: tuple[int, int, int, int], growth: str) -> None:
    topology, results = GroupTopology.uniform(*shape), []
    for device in ("cpu", "cuda", "cuda"):
        layer, x_and_grad_out = Layer(topology), activations(topology)
        layer.to(device).topology = layer.topology.to(device)
        optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9)
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        told = Rewirer(layer, optimizer, SCHEDULE, grow=growth).apply(0, *(t.to(device) for t in x_and_grad_out))
        assert_sets(layer.topology, topology)
        momentum = optimizer.state[layer.weight]["momentum_buffer"]
        assert torch.equal(momentum == 0, layer.weight.detach() == 0)
        results.append((layer.topology.indices.cpu(), told.regrown))
    assert results[0][1] == results[1][1] == results[2][1] > 0
    assert torch.equal(results[1][0], results[2][0])
    if growth.endswith("gradient"):  # nothing is drawn where every input has a gradient
        assert torch.equal(results[0][0], results[1][0])


def test_telemetry() -> None:
    topology = GroupTopology.of(torch.tensor([[0, 1], [0, 2], [0, 1]]), labels=5, dim=8, group_size=2)
    layer, optimizer = trained(topology)
    with torch.no_grad():
        layer.weight[2:4, 1] = 0  # one dead slot, in the second group
        layer.weight[4, 0] = 0  # another, in the ragged one
        layer.weight[0, 0] = 0  # the group's other label still uses it
    told = Rewirer(layer, optimizer, Schedule(1, 0.5, 10)).apply(0)
    assert (told.step, told.fraction, told.regrown, told.dead, told.churn) == (0, 0.5, 3, 2, 0.5)
    lists = [set(row) for row in layer.topology.indices.tolist()]
    assert told.coverage == len(set.union(*lists)) / 8
    assert told.seconds > 0
    again = Rewirer(layer, optimizer, Schedule(1, 0.5, 10)).apply(10)
    assert (again.regrown, again.churn, again.dead) == (0, 0.0, 3)


def test_overlap() -> None:
    def overlap(topology: GroupTopology) -> float:
        layer, optimizer = trained(topology)
        return Rewirer(layer, optimizer, SCHEDULE).apply(100).overlap

    assert overlap(GroupTopology.of(torch.tensor([[0, 1], [2, 3]]), labels=2, dim=8, group_size=1)) == 0.0
    assert overlap(GroupTopology.of(torch.tensor([[0, 1], [1, 0]]), labels=2, dim=8, group_size=1)) == 1.0
    assert overlap(GroupTopology.uniform(4, 8, 2, 4)) == 0.0  # a single group
    assert 0.22 < overlap(GroupTopology.uniform(2000, 64, 16, 2)) < 0.28  # K/D


def test_reading_everything_churns_nothing() -> None:
    layer, optimizer = trained(GroupTopology.uniform(5, 12, 12, 2))
    told = Rewirer(layer, optimizer, SCHEDULE).apply(0)
    assert (told.regrown, told.churn, told.coverage) == (18, 0.0, 1.0)


# ---- order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["SGD momentum", "AdamW amsgrad"])
@pytest.mark.parametrize("shape", [(70, 96, 24, 16), (10, 17, 5, 3)])
def test_ordering_moves_slots_with_all_that_is_kept_of_them(optimizer: str, shape: tuple[int, int, int, int]) -> None:
    """Rewired alike with and without: the same sets; each input's weights, gradient and state are where the input is."""
    topology = GroupTopology.ordered(*shape)
    plain, ordered = trained(topology, optimizer), trained(topology, optimizer)
    for (layer, held), order in ((plain, False), (ordered, True)):
        rewire.Rewirer(layer, held, SCHEDULE, init_std=0.1, order=order).apply(0)
    order = ordered[0].topology.order_from(plain[0].topology).repeat_interleave(shape[3], 0)[: shape[0]]

    def kept(layer: Layer, held: torch.optim.Optimizer) -> list[Tensor]:
        state = [v for v in held.state[layer.weight].values() if isinstance(v, Tensor) and v.shape == layer.weight.shape]
        assert layer.weight.grad is not None
        return [layer.weight.detach(), layer.weight.grad, *state]

    assert len(kept(*plain)) > 2
    for mine, theirs in zip(kept(*ordered), kept(*plain), strict=True):
        assert torch.equal(mine, theirs.gather(1, order))
    assert int(ordered[0].topology.wavefronts().sum()) <= int(plain[0].topology.wavefronts().sum())
    assert torch.equal(ordered[0].topology.bank_ordered().wavefronts(), ordered[0].topology.wavefronts())
