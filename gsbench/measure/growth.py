"""What must hold of the inputs that a growth rule chose, for a chunk of groups at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gsbench.measure.errors import TOLERANCE, Draws, Error, Verdict
from gsbench.measure.operands import Operands, Outputs
from gskernels import oracle
from gskernels.table import Implementation

BANKS = 8  # a banked rule keeps the residue of every slot


@dataclass(frozen=True)
class Growth:
    """before, after: [n, K] int64, the lists of n groups; dropped: [n, K] bool; dim: D; banked: whether residues stay."""

    before: Tensor
    after: Tensor
    dropped: Tensor
    dim: int
    banked: bool

    @cached_property
    def unread(self) -> Tensor:
        """[n, D] bool: inputs that the group did not read."""
        read = torch.zeros(len(self.before), self.dim, dtype=torch.bool, device=self.before.device)
        return ~read.scatter_(1, self.before, True)

    def classes(self) -> list[tuple[Tensor, Tensor]]:
        """(slots [n, K] to fill, inputs [n, D] to fill them from): one for all, or one a residue."""
        if not self.banked:
            return [(self.dropped, self.unread)]
        inputs = torch.arange(self.dim, device=self.before.device) % BANKS
        return [
            (self.dropped & (self.before % BANKS == residue), self.unread & (inputs == residue)) for residue in range(BANKS)
        ]

    @cached_property
    def free(self) -> Tensor:
        """[n, K] bool: dropped slots for which an unread input is left; the others may take back a dropped one."""
        free = torch.zeros_like(self.dropped)
        for slots, pool in self.classes():
            free |= slots & (slots.cumsum(1) <= pool.sum(1, keepdim=True))
        return free

    def best(self, key: Tensor) -> Tensor:
        """[n, K] int64: the input of each free slot where the j-th one takes that of the j-th largest key [n, D]."""
        chosen = self.before.clone()
        for slots, pool in self.classes():
            order = key.masked_fill(~pool, -torch.inf).sort(1, descending=True).indices
            place = (slots.cumsum(1) - 1).clamp(0, self.dim - 1)
            chosen = torch.where(slots, order.gather(1, place), chosen)
        return chosen

    def broken(self) -> int:
        """Groups with an input twice or out of range, a kept slot changed, a residue lost, or a needless way back."""
        ordered = self.after.sort(1).values
        wrong = (ordered[:, 1:] == ordered[:, :-1]).any(1) | (ordered[:, 0] < 0) | (ordered[:, -1] >= self.dim)
        wrong |= ((self.after != self.before) & ~self.dropped).any(1)
        if self.banked:
            wrong |= (self.after % BANKS != self.before % BANKS).any(1)
        new = self.unread.gather(1, self.after.clamp(0, self.dim - 1))
        return int((wrong | (self.free & ~new).any(1)).sum())

    def places(self) -> tuple[Tensor, Tensor]:
        """Of every free slot: where its input stands among those it could have, in (0, 1), and how many these are."""
        place, count = torch.zeros(self.before.shape, device=self.before.device), torch.ones_like(self.before)
        for slots, pool in self.classes():
            before = pool.cumsum(1).gather(1, self.after.clamp(0, self.dim - 1))
            many = pool.sum(1, keepdim=True).clamp(min=1).expand_as(count)
            place, count = torch.where(slots, (before - 0.5) / many, place), torch.where(slots, many, count)
        return place[self.free], count[self.free]


def check(
    operands: Operands, implementation: Implementation, outputs: Mapping[str, Outputs], chunks: Sequence[tuple[int, int]]
) -> dict[str, list[Verdict]]:  # fmt: skip
    """Verdicts on the new lists of implementations of one rule, in chunks of labels that begin groups.

    indices: lists that keep what they must. gain: norms of the true gradient at grown inputs against the largest there are,
    in order, for rules that go by it. drawn: whether the others chose each input they could equally often.
    """
    layer, dropped, rule = operands.layer(implementation), operands.dropped, implementation.options["rule"]
    verdicts, fine = {}, TOLERANCE[torch.float32]
    by_gradient, size = "y" in implementation.needs, layer.sparse.group_size
    for who, (indices,) in outputs.items():
        broken, gain, reference, drawn = 0, Error(), Error(), Draws(spread=1 / 12)
        for start, stop in chunks:
            groups = slice(start // size, -(-stop // size))
            before, after = layer.sparse.indices[groups].long(), indices[groups].long()
            one = Growth(before, after, dropped[groups], layer.sparse.dim, rule.startswith("banked_"))
            broken += one.broken()
            if broken:
                break
            if not by_gradient:
                place, count = one.places()
                drawn.take((place - 0.5) * (1 - count.double() ** -2).rsqrt().clamp(max=1e3))  # of variance 1/12
                continue
            true, rounded = (
                oracle.gradient_norms(operands.x.to(d), operands.grad_out[:, start:stop].to(d), size)
                for d in (torch.float64, torch.float32)
            )
            best, own = (true.gather(1, one.best(norms))[one.free] for norms in (true, rounded))
            gain.add(true.gather(1, after)[one.free], best)
            reference.add(own, best)
        wrong = math.nan if broken else 0.0
        verdicts[who] = [Verdict("indices", wrong, 0.0, wrong, 0.0, fine)]
        verdicts[who].append(gain.verdict("gain", reference, fine) if by_gradient else drawn.verdict("drawn"))
    return verdicts
