"""One rewiring of one layer, by a schedule, with what it did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gskernels.rewire.growth import CHUNK, GROWTHS, GradOut, grow
from gskernels.rewire.schedule import Schedule
from gskernels.rewire.slots import DROPS, SCORES, drop_below, drop_global, drop_per_group, score_slots
from gskernels.rewire.state import reorder_slots, reset_slots, resettable_state
from gskernels.topology import GroupTopology

_PAIRS = 1024  # pairs of groups whose overlap is looked at


class Rewirable(Protocol):
    """A layer that can be rewired: any module with these three."""

    @property
    def weight(self) -> Tensor: ...  # [L, K]

    @property
    def topology(self) -> GroupTopology: ...

    def set_topology(self, topology: GroupTopology) -> Any: ...


@dataclass(frozen=True)
class Telemetry:
    """What one rewiring did.

    - fraction: the share that the schedule asked for
    - churn: the share of a group's inputs that it did not read before, on average
    - regrown: slots that start afresh; churn is below regrown / slots only where a dropped input came back
    - dead: slots whose weights were all zero before the rewiring, such as regrown ones that never learned
    - coverage: the share of the inputs that some group reads, after it
    - overlap: the share of inputs that two groups have in common, after it: mean of up to 1024 random pairs, 0 for a
      single group; K/D is what independent uniform groups have
    - seconds: wall-clock time of the rewiring, the device waited for
    """

    step: int
    fraction: float
    churn: float
    regrown: int
    dead: int
    coverage: float
    overlap: float
    seconds: float


class Rewirer:
    """Rewires `layer` when its schedule says so.

    Regrown weights start at zero: the layer's output does not change by growing, so the loss does not jump, and a zero
    weight still learns, for its gradient dY^T X does not depend on it. Their optimizer state and their gradient, which
    belong to the input that was there before, are reset too.

    Draws depend on `seed` and the step alone, so a resumed run draws what an uninterrupted one would have drawn. Replicas
    of a data-parallel layer stay equal where they rewire by the same seed and, for rules that look at gradients, by the
    same gradients: gather `x` and `grad_out` first.

    Args:
        layer: a module with `weight` [L, K], `topology` and `set_topology(topology)`.
        optimizer: the torch.optim optimizer that holds `layer.weight`.
        schedule: when, and which fraction.
        score: one of `SCORES`. "weight_gradient" reads `layer.weight.grad`: rewire before zero_grad().
        drop: one of `DROPS`: "group" drops the schedule's fraction of every group; "global" the same share of all
            slots, the weakest anywhere; "threshold" those that score below `threshold`, at most the schedule's
            fraction of a group.
        grow: one of `GROWTHS`. The gradient rules need `x` and `grad_out` in `apply`.
        seed: of growth, initial values and the telemetry's sample.
        threshold: for drop "threshold" only.
        max_share: the most of a group that may fall at once, for "global" and "threshold".
        init_std: regrown weights are drawn from N(0, init_std^2) instead of zero.
        chunk: elements of the dense gradient held at once by the gradient rules.
        order: put the lists of shared groups in bank-aware order again (`GroupTopology.bank_ordered`), which kernels gain
            by; slots then change places, with their weights, gradient and optimizer state. Sums do not change.

    Raises ValueError for an unknown rule, a weight that does not fit the topology, a threshold without its rule or the
    reverse, and an optimizer whose state cannot be reset (`resettable_state`).
    """

    def __init__(
        self,
        layer: Rewirable,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        score: str = "mean_weight",
        drop: str = "group",
        grow: str = "random",
        seed: int = 0,
        threshold: float | None = None,
        max_share: float = 0.5,
        init_std: float = 0.0,
        chunk: int = CHUNK,
        order: bool = True,
    ) -> None:
        for name, value, allowed in (("score", score, SCORES), ("drop", drop, DROPS), ("grow", grow, GROWTHS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if (drop == "threshold") != (threshold is not None):
            raise ValueError(f"drop 'threshold' and a threshold go together, got drop={drop!r}, threshold={threshold}")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share must lie in (0, 1], got {max_share}")
        if init_std < 0:
            raise ValueError(f"init_std must not be negative, got {init_std}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        expected = [layer.topology.labels, layer.topology.fan_in]
        if list(layer.weight.shape) != expected:
            raise ValueError(f"the layer's weight must be {expected} for its topology, got {list(layer.weight.shape)}")
        resettable_state(optimizer, layer.weight)  # refuse now, not at the first rewiring
        self.layer, self.optimizer, self.schedule = layer, optimizer, schedule
        self.score, self.drop, self.grow, self.seed = score, drop, grow, seed
        self.threshold, self.max_share, self.init_std, self.chunk = threshold, max_share, init_std, chunk
        self.order = order

    def due(self, step: int) -> bool:
        return self.schedule.due(step)

    @torch.no_grad()
    def apply(self, step: int, x: Tensor | None = None, grad_out: GradOut | None = None) -> Telemetry:
        """Rewire by the fraction of `step`: between backward() and zero_grad(), before or after the optimizer's step.

        x [B, D] and grad_out [B, L] (or a function that returns its columns) as in `gradient_norms`, for the gradient
        rules. Raises ValueError before anything is changed, where a rule lacks what it needs, a score is not finite or
        the optimizer's state cannot be reset.
        """
        layer, weight, before = self.layer, self.layer.weight, self.layer.topology
        _wait_for(weight.device)
        began = time.perf_counter()
        fraction, seed = self.schedule.fraction(step), _mixed(self.seed, step)
        state = resettable_state(self.optimizer, weight)
        score = score_slots(weight, before, self.score, weight.grad)
        size = score if self.score != "weight_gradient" else score_slots(weight, before, "max_weight")
        dead = int((size == 0).sum())
        dropped = self._dropped(score, fraction)
        after = grow(before, dropped, self.grow, seed=seed, x=x, grad_out=grad_out, chunk=self.chunk)
        churn = _churn(before, after)  # `before` may be a view of what set_topology writes to

        by_slot = [(weight, 0.0), *([] if weight.grad is None else [(weight.grad, 0.0)]), *state]
        for tensor, value in by_slot:
            reset_slots(tensor, before, dropped, value)
        if self.init_std > 0:
            _add_noise(weight, before, dropped, self.init_std, _mixed(~self.seed, step))  # not growth's draws
        if self.order and after.group_size > 1:
            drawn, after = after, after.bank_ordered()
            order = after.order_from(drawn)
            for tensor, _ in by_slot:
                reorder_slots(tensor, after, order)
        layer.set_topology(after)

        coverage, overlap = _coverage(after), _overlap(after, seed)
        _wait_for(weight.device)
        seconds = time.perf_counter() - began
        return Telemetry(step, fraction, churn, int(dropped.sum()), dead, coverage, overlap, seconds)

    def _dropped(self, score: Tensor, fraction: float) -> Tensor:
        if self.drop == "group":
            return drop_per_group(score, fraction)
        if self.drop == "global" or self.threshold is None:
            return drop_global(score, fraction, self.max_share)
        return drop_below(score, self.threshold, min(self.max_share, fraction))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the layer's and the optimizer's own state."""
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned. Raises ValueError for anything else."""
        if set(state) != {"seed"} or not isinstance(state["seed"], int):
            raise ValueError(f"a rewirer's state is {{'seed': int}}, got {state}")
        self.seed = state["seed"]


def _mixed(seed: int, step: int) -> int:
    """One generator seed for each (seed, step), by odd multipliers as of splitmix64, so that neighbours are unrelated."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**63


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _add_noise(weight: Tensor, topology: GroupTopology, slots: Tensor, std: float, seed: int) -> None:
    generator = torch.Generator(weight.device).manual_seed(seed)
    size = topology.group_size
    for start, stop in topology.chunks(max(1, CHUNK // topology.fan_in)):
        mask = slots[start // size : -(-stop // size)].repeat_interleave(size, 0)[: stop - start]
        noise = torch.randn(mask.shape, generator=generator, device=weight.device) * std
        weight[start:stop] += (noise * mask).to(weight.dtype)


def _reads(topology: GroupTopology) -> Iterator[tuple[slice, Tensor]]:
    """(rows, [rows, D] bool of what they read), in chunks."""
    step = max(1, CHUNK // topology.dim)
    for first in range(0, topology.groups, step):
        rows = slice(first, min(first + step, topology.groups))
        yield rows, _read(topology.indices[rows], topology.dim)


def _read(indices: Tensor, dim: int) -> Tensor:
    return torch.zeros(indices.shape[0], dim, dtype=torch.bool, device=indices.device).scatter_(1, indices.long(), True)


def _churn(before: GroupTopology, after: GroupTopology) -> float:
    stayed = sum(int(read.gather(1, after.indices[rows].long()).sum()) for rows, read in _reads(before))
    return 1 - stayed / after.indices.numel()


def _coverage(topology: GroupTopology) -> float:
    covered = torch.zeros(topology.dim, dtype=torch.bool, device=topology.device)
    for _, read in _reads(topology):
        covered |= read.any(0)
    return int(covered.sum()) / topology.dim


def _overlap(topology: GroupTopology, seed: int) -> float:
    if topology.groups < 2:
        return 0.0
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(topology.groups, (_PAIRS,), generator=generator)
    other = (one + torch.randint(1, topology.groups, (_PAIRS,), generator=generator)) % topology.groups
    mine, theirs = topology.indices[one.to(topology.device)], topology.indices[other.to(topology.device)]
    common = _read(mine, topology.dim).gather(1, theirs.long())
    return int(common.sum()) / common.numel()
