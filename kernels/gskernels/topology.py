"""Which inputs each group of labels reads: one validated index tensor, and the ways to make one.

A topology of `group_size` 1 is a per-label topology (every label has an index list of its own).
Draws are seeded; the same seed gives the same topology on the same type of device and torch version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

BANKS = 8  # 16-byte pieces in the 128 bytes that one shared-memory access can serve
_CHUNK = 1 << 26  # numbers drawn at once
_ORDERED = 1 << 22  # indices put in order at once, which takes some hundred bytes each
T = TypeVar("T")


def index_dtype(dim: int) -> torch.dtype:
    """int16 while it can name every input, else int32."""
    return torch.int16 if dim <= 2**15 else torch.int32


@dataclass(frozen=True, eq=False)
class GroupTopology:
    """Index lists of ceil(labels / group_size) groups.

    indices: [ceil(L/G), K], int16 for D <= 32768 else int32, distinct within a row, each in [0, D).
    The last group is ragged where G does not divide L: its list serves the labels that are left.
    """

    indices: Tensor
    labels: int
    dim: int
    group_size: int
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, indices: Tensor, *, labels: int, dim: int, group_size: int) -> GroupTopology:
        """Validate and store. Raises ValueError that names what is wrong and where."""
        if labels < 1 or dim < 1:
            raise ValueError(f"labels and dim must be at least 1, got labels={labels}, dim={dim}")
        if not 1 <= group_size <= labels:
            raise ValueError(f"group_size must lie in 1..labels={labels}, got {group_size}")
        if indices.dim() != 2 or indices.is_floating_point() or indices.dtype == torch.bool:
            shape = list(indices.shape)
            raise ValueError(f"indices must be a 2-d integer tensor, got {indices.dtype} of shape {shape}")
        groups, fan_in = indices.shape
        rows = math.ceil(labels / group_size)
        if groups != rows:
            raise ValueError(f"{labels} labels in groups of {group_size} need {rows} index rows, got {groups}")
        if not 1 <= fan_in <= dim:
            raise ValueError(f"fan_in must lie in 1..dim={dim}, got {fan_in}")
        if int(indices.min()) < 0 or int(indices.max()) >= dim:
            bad = int(((indices < 0) | (indices >= dim)).any(1).nonzero()[0])
            raise ValueError(f"index outside 0..{dim - 1} in row {bad}: {indices[bad].tolist()}")
        for start in range(0, groups, max(1, _CHUNK // fan_in)):
            ordered = indices[start : start + max(1, _CHUNK // fan_in)].sort(1).values
            twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
            if bool(twice.any()):
                row = start + int(twice.nonzero()[0])
                raise ValueError(f"an input appears twice in row {row}: {sorted(indices[row].tolist())}")
        return cls(indices.to(index_dtype(dim)).contiguous(), labels, dim, group_size)

    # ---- constructors -------------------------------------------------------------------------------------------

    @classmethod
    def uniform(cls, labels: int, dim: int, fan_in: int, group_size: int = 1, *, seed: int = 0,
                device: torch.device | str = "cpu") -> GroupTopology:  # fmt: skip
        """Every K-subset of the inputs is equally likely."""
        return cls._drawn(labels, dim, fan_in, group_size, seed, device, lambda rows, generator: None)

    @classmethod
    def ordered(cls, labels: int, dim: int, fan_in: int, group_size: int = 1, *, seed: int = 0,
                device: torch.device | str = "cpu") -> GroupTopology:  # fmt: skip
        """The sets of `uniform` in bank-aware order: what a kernel that gathers rows gains by the order alone."""
        return cls.uniform(labels, dim, fan_in, group_size, seed=seed, device=device).bank_ordered()

    @classmethod
    def zipf(cls, labels: int, dim: int, fan_in: int, group_size: int = 1, *, seed: int = 0, exponent: float = 1.0,
             device: torch.device | str = "cpu") -> GroupTopology:  # fmt: skip
        """Popular inputs: the input of rank r has weight 1 / (r + 1)^exponent; ranks are a seeded permutation."""

        def log_weight(rows: int, generator: torch.Generator) -> Tensor:
            ranks = torch.randperm(dim, generator=torch.Generator(device).manual_seed(seed), device=device)
            return -exponent * torch.log1p(ranks.float())[None]

        return cls._drawn(labels, dim, fan_in, group_size, seed, device, log_weight)

    @classmethod
    def clustered(cls, labels: int, dim: int, fan_in: int, group_size: int = 1, *, seed: int = 0, focus: float = 20.0,
                  device: torch.device | str = "cpu") -> GroupTopology:  # fmt: skip
        """Neighbouring inputs: `focus` times the weight in a window of 2K inputs (cyclic), whose place is random."""

        def log_weight(rows: int, generator: torch.Generator) -> Tensor:
            start = torch.randint(dim, (rows, 1), generator=generator, device=device)
            offset = (torch.arange(dim, device=device)[None] - start) % dim
            return (offset < 2 * fan_in).float() * math.log(focus)

        return cls._drawn(labels, dim, fan_in, group_size, seed, device, log_weight)

    @classmethod
    def banked(cls, labels: int, dim: int, fan_in: int, group_size: int = 1, *, seed: int = 0,
               device: torch.device | str = "cpu") -> GroupTopology:  # fmt: skip
        """Uniform within each residue class mod 8, the classes balanced to within one, in bank-aware order.

        Each eight neighbouring indices fall into eight different shared-memory banks (while K/8 <= D/8 allows it).
        """
        width = math.ceil(dim / BANKS) * BANKS

        def rank_in_residue(noise: Tensor, generator: torch.Generator) -> Tensor:
            padded = torch.nn.functional.pad(noise, (0, width - dim), value=-math.inf).view(-1, width // BANKS, BANKS)
            rank = padded.argsort(1, descending=True).argsort(1).view(-1, width)[:, :dim]
            return -(rank + torch.rand(noise.shape, generator=generator, device=device) * 0.5)

        drawn = cls._drawn(labels, dim, fan_in, group_size, seed, device, lambda rows, generator: None, rank_in_residue)
        return drawn.bank_ordered()

    @classmethod
    def _drawn(cls, labels: int, dim: int, fan_in: int, group_size: int, seed: int, device: torch.device | str,
               log_weight: Callable[[int, torch.Generator], Tensor | None],
               transform: Callable[[Tensor, torch.Generator], Tensor] | None = None) -> GroupTopology:  # fmt: skip
        """Weighted draws without replacement by the Gumbel-top-k trick (Kool et al. 2019), in chunks of rows."""
        if not 1 <= fan_in <= dim:
            raise ValueError(f"fan_in must lie in 1..dim={dim}, got {fan_in}")
        if not 1 <= group_size <= labels:
            raise ValueError(f"group_size must lie in 1..labels={labels}, got {group_size}")
        generator = torch.Generator(device).manual_seed(seed)
        groups = math.ceil(labels / group_size)
        rows = max(1, _CHUNK // dim)
        out = torch.empty(groups, fan_in, dtype=index_dtype(dim), device=device)
        for start in range(0, groups, rows):
            count = min(rows, groups - start)
            keys = torch.rand(count, dim, generator=generator, device=device)
            weight = log_weight(count, generator)
            if weight is not None:
                keys = weight - torch.log(-torch.log(keys.clamp_(1e-20, 1 - 1e-7)))
            if transform is not None:
                keys = transform(keys, generator)
            chosen = keys.topk(fan_in, dim=1, sorted=False).indices
            out[start : start + count] = chosen.sort(1).values.to(out.dtype)
        return cls(out, labels, dim, group_size)

    @classmethod
    def from_dense(cls, weight: Tensor, group_size: int = 1, fan_in: int | None = None) -> tuple[GroupTopology, Tensor]:
        """The `fan_in` inputs of largest group norm, and the weights [L, K] at them.

        weight: [L, D]. Without `fan_in`, every group must use the same number of inputs (nonzero columns).
        Raises ValueError where they differ. Nonzeros outside the kept inputs are dropped.
        """
        labels, dim = weight.shape
        groups = math.ceil(labels / group_size)
        padded = torch.nn.functional.pad(weight, (0, 0, 0, groups * group_size - labels)).view(groups, group_size, dim)
        norm = padded.float().square().sum(1)
        if fan_in is None:
            used = (norm > 0).sum(1)
            fewest, fan_in = int(used.min()), int(used.max())
            if fewest != fan_in or fan_in == 0:
                raise ValueError(
                    f"groups use between {fewest} and {fan_in} inputs; give fan_in to keep the strongest"
                )
        indices = norm.topk(fan_in, dim=1).indices.sort(1).values
        topology = cls.of(indices, labels=labels, dim=dim, group_size=group_size)
        return topology, weight.gather(1, topology.label_indices())

    # ---- views --------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> int:
        return self.indices.shape[0]

    @property
    def fan_in(self) -> int:
        return self.indices.shape[1]

    @property
    def device(self) -> torch.device:
        return self.indices.device

    def label_indices(self) -> Tensor:
        """[L, K] int64: the inputs of every label."""
        return self.indices.long().repeat_interleave(self.group_size, 0)[: self.labels]

    def to_dense(self, values: Tensor) -> Tensor:
        """[L, D] with values [L, K] at their inputs and zeros elsewhere."""
        if values.shape != (self.labels, self.fan_in):
            raise ValueError(f"values must be [{self.labels}, {self.fan_in}], got {list(values.shape)}")
        dense = torch.zeros(self.labels, self.dim, dtype=values.dtype, device=values.device)
        return dense.scatter_(1, self.label_indices(), values)

    def mask(self) -> Tensor:
        """[L, D] bool: which inputs each label reads."""
        mask = torch.zeros(self.groups, self.dim, dtype=torch.bool, device=self.device)
        mask.scatter_(1, self.indices.long(), True)
        return mask.repeat_interleave(self.group_size, 0)[: self.labels]

    def rows(self, start: int, stop: int) -> GroupTopology:
        """The topology of labels [start, stop). `start` must begin a group."""
        if start % self.group_size or not 0 <= start < stop <= self.labels:
            raise ValueError(f"[{start}, {stop}) must begin a group of {self.group_size} within {self.labels} labels")
        first, last = start // self.group_size, math.ceil(stop / self.group_size)
        return GroupTopology(self.indices[first:last], stop - start, self.dim, self.group_size)

    def chunks(self, labels: int) -> Iterator[tuple[int, int]]:
        """[start, stop) label ranges of about `labels`, each beginning a group."""
        step = max(1, labels // self.group_size) * self.group_size
        for start in range(0, self.labels, step):
            yield start, min(start + step, self.labels)

    def to(self, device: torch.device | str) -> GroupTopology:
        return GroupTopology(self.indices.to(device), self.labels, self.dim, self.group_size)

    def memo(self, key: str, build: Callable[[], T]) -> T:
        """Something derived from the indices alone (a transposed index, int64 offsets), built once a topology."""
        if key not in self._memo:
            self._memo[key] = build()
        value: T = self._memo[key]
        return value

    def bank_ordered(self) -> GroupTopology:
        """The same sets in an order that spreads each eight neighbours over the banks (index mod 8).

        Greedy: an octet takes the residue it has used least so far, among equals the one with most left. Within 6 % of
        the fewest possible wavefronts for uniform sets of 20 and more; a row that it would make worse keeps its order.
        Sums over a group commute, so nothing but the order changes; weights must be reordered alike (`order_from`).
        """
        rows = max(1, _ORDERED // self.fan_in)
        parts = [self._bank_ordered(self.indices[start : start + rows]) for start in range(0, self.groups, rows)]
        return GroupTopology(torch.cat(parts), self.labels, self.dim, self.group_size)

    def _bank_ordered(self, rows: Tensor) -> Tensor:
        """Of some rows of the indices."""
        indices = rows.long()
        residue = indices % BANKS
        by_residue = (residue * self.dim + indices).argsort(1)
        count = torch.zeros(len(rows), BANKS, dtype=torch.long, device=self.device)
        count.scatter_add_(1, residue, torch.ones_like(residue))
        first = count.cumsum(1) - count
        left, used = count.clone(), torch.zeros_like(count)
        slots = []
        for position in range(self.fan_in):
            if position % BANKS == 0:
                used.zero_()
            preference = left - used * (self.fan_in + 1)
            bank = preference.masked_fill(left == 0, -(10**9)).argmax(1, keepdim=True)
            slots.append((first + count - left).gather(1, bank))
            left.scatter_add_(1, bank, torch.full_like(bank, -1))
            used.scatter_add_(1, bank, torch.ones_like(bank))
        ordered = rows.gather(1, by_residue.gather(1, torch.cat(slots, 1)))
        return torch.where((_wavefronts(ordered) > _wavefronts(rows))[:, None], rows, ordered)

    def order_from(self, other: GroupTopology) -> Tensor:
        """[groups, K]: the positions of this topology's indices within `other`'s rows (the same sets).

        ``weight_other.gather(1, order.repeat_interleave(G, 0)[:L])`` are the weights in this order.
        Raises ValueError where the sets differ.
        """
        mine, theirs = self.indices.long().argsort(1), other.indices.long().argsort(1)
        if not torch.equal(self.indices.gather(1, mine), other.indices.gather(1, theirs)):
            raise ValueError("the two topologies do not hold the same index sets")
        return torch.empty_like(mine).scatter_(1, mine, theirs)

    def wavefronts(self) -> Tensor:
        """[groups]: shared-memory passes to read a group's rows, eight at a time (K/8 when free of conflicts)."""
        rows = max(1, _ORDERED // self.fan_in)
        return torch.cat([_wavefronts(self.indices[start : start + rows]) for start in range(0, self.groups, rows)])


def _wavefronts(indices: Tensor) -> Tensor:
    """As `GroupTopology.wavefronts`, of rows of indices [groups, K]."""
    groups, fan_in = indices.shape
    octets = math.ceil(fan_in / BANKS)
    slot = torch.arange(fan_in, device=indices.device) // BANKS * BANKS + indices.long() % BANKS
    reads = torch.zeros(groups, octets * BANKS, dtype=torch.long, device=indices.device)
    reads.scatter_add_(1, slot, torch.ones_like(slot))
    return reads.view(groups, octets, BANKS).amax(2).sum(1)


PATTERNS: dict[str, Callable[..., GroupTopology]] = {
    "uniform": GroupTopology.uniform,
    "ordered": GroupTopology.ordered,
    "zipf": GroupTopology.zipf,
    "clustered": GroupTopology.clustered,
    "banked": GroupTopology.banked,
}
