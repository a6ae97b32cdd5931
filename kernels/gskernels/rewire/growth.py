"""Which inputs take the place of the dropped ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gskernels.topology import BANKS, GroupTopology

GROWTHS = ("random", "gradient", "banked_random", "banked_gradient")
CHUNK = 1 << 24  # elements of the dense gradient (or of random keys) held at once: 64 MiB in fp32
GradOut = Tensor | Callable[[int, int], Tensor]


def gradient_norms(x: Tensor, grad_out: GradOut, topology: GroupTopology,
                   chunk: int = CHUNK) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """RigL's growth score for groups: over a group's labels, the 2-norm of each column of the dense gradient dY^T X.

    Yields (first group, norms [groups of the chunk, D] fp32), in order. At most max(`chunk`, G * D) elements of the
    dense gradient exist at once.

    Args:
        x: [B, D], any float dtype; the product is taken in fp32.
        grad_out: [B, L], the gradient of the loss with respect to the layer's output; or, where that is never whole
            in memory, a function of (start, stop) that returns its columns [B, stop - start].
        topology: its L, D and G.

    Raises ValueError for shapes that do not fit or norms that are not finite.
    """
    if x.dim() != 2 or x.shape[1] != topology.dim:
        raise ValueError(f"x must be [B, {topology.dim}] for this topology, got {list(x.shape)}")
    if isinstance(grad_out, Tensor) and list(grad_out.shape) != [x.shape[0], topology.labels]:
        raise ValueError(f"grad_out must be {[x.shape[0], topology.labels]}, got {list(grad_out.shape)}")
    x, size = x.detach().float(), topology.group_size
    for start, stop in topology.chunks(max(1, chunk // topology.dim)):
        part = grad_out[:, start:stop] if isinstance(grad_out, Tensor) else grad_out(start, stop)
        if list(part.shape) != [x.shape[0], stop - start]:
            raise ValueError(f"grad_out({start}, {stop}) must be {[x.shape[0], stop - start]}, got {list(part.shape)}")
        dense = part.detach().float().t() @ x  # [labels of the chunk, D]
        groups = math.ceil((stop - start) / size)
        if groups * size > stop - start:
            dense = torch.nn.functional.pad(dense, (0, 0, 0, groups * size - (stop - start)))
        norm = torch.linalg.vector_norm(dense.view(groups, size, topology.dim), dim=1)
        del part, dense  # before the next ones are made
        if not bool(norm.isfinite().all()):
            raise ValueError(f"the gradient of labels {start}..{stop - 1} is not finite: x or grad_out is NaN or infinite")
        yield start // size, norm


def grow(
    topology: GroupTopology,
    dropped: Tensor,  # [groups, K] bool
    rule: str = "random",
    *,
    seed: int = 0,
    x: Tensor | None = None,  # [B, D]
    grad_out: GradOut | None = None,  # [B, L]
    chunk: int = CHUNK,
) -> GroupTopology:
    """The topology with another input in every dropped slot. Kept slots stay where they are.

    - ``random``: every input the group does not read is equally likely (SET)
    - ``gradient``: the inputs of largest `gradient_norms` (RigL); those without gradient come last, in random order
    - ``banked_random``, ``banked_gradient``: the same, each slot taking an input of the residue mod 8 that it had, so
      that the balance and the bank-aware order of the list (`GroupTopology.banked`) hold

    The inputs of a group stay distinct. An input that was just dropped comes back only where nothing else is left to
    choose: fewer than that many inputs unread by the group (for a banked rule: unread inputs of that residue; so the
    residues are kept without exception).

    x and grad_out as in `gradient_norms`, for gradient rules only. Seeded; the draw also depends on the type of device,
    on torch's version and on `chunk`. Raises ValueError for another rule, a mask of another shape, or missing
    activations.
    """
    if rule not in GROWTHS:
        raise ValueError(f"grow must be one of {', '.join(GROWTHS)}, got {rule!r}")
    shape = [topology.groups, topology.fan_in]
    if dropped.dtype != torch.bool or list(dropped.shape) != shape:
        raise ValueError(f"dropped must be a bool tensor of shape {shape}, got {dropped.dtype} {list(dropped.shape)}")
    if rule.endswith("gradient") and (x is None or grad_out is None):
        raise ValueError(f"grow {rule!r} needs x and grad_out")
    if not bool(dropped.any()):
        return topology
    replace = _replace_within_residues if rule.startswith("banked_") else _replace
    generator = torch.Generator(topology.device).manual_seed(seed)
    indices = topology.indices.clone()
    for first, key in _keys(topology, rule, x, grad_out, chunk, generator):
        rows = slice(first, first + key.shape[0])
        before, gone = topology.indices[rows].long(), dropped[rows]
        back = -2 - 1 / (1 + key.gather(1, before).clamp_(min=0))  # in [-3, -2): below every unread input
        key.scatter_(1, before, torch.where(gone, back, -math.inf))
        indices[rows] = replace(before, gone, key).to(indices.dtype)
    return GroupTopology(indices, topology.labels, topology.dim, topology.group_size)


def _keys(topology: GroupTopology, rule: str, x: Tensor | None, grad_out: GradOut | None, chunk: int,
          generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:  # fmt: skip
    """(first group, keys [groups of the chunk, D] > -2): the larger, the rather an input is grown."""
    if rule.endswith("gradient") and x is not None and grad_out is not None:
        for first, norm in gradient_norms(x, grad_out, topology, chunk):
            noise = torch.rand(norm.shape, generator=generator, device=norm.device)
            yield first, torch.where(norm > 0, norm, -noise)
        return
    rows = max(1, chunk // topology.dim)
    for first in range(0, topology.groups, rows):
        count = min(rows, topology.groups - first)
        yield first, torch.rand(count, topology.dim, generator=generator, device=topology.device)


def _replace(before: Tensor, gone: Tensor, key: Tensor) -> Tensor:
    """[rows, K] int64: the j-th dropped slot of a row takes the input of its j-th largest key."""
    place = gone.long().cumsum(1) - 1
    chosen = key.topk(max(1, int(place.max()) + 1), dim=1).indices
    return torch.where(gone, chosen.gather(1, place.clamp_(min=0)), before)


def _replace_within_residues(before: Tensor, gone: Tensor, key: Tensor) -> Tensor:
    """[rows, K] int64: the j-th dropped slot of residue r takes the input of the j-th largest key of that residue."""
    residue = before % BANKS
    place = torch.zeros_like(before)
    for bank in range(BANKS):
        mine = gone & (residue == bank)
        place += mine * (mine.long().cumsum(1) - 1)
    octets = math.ceil(key.shape[1] / BANKS)
    padded = torch.nn.functional.pad(key, (0, octets * BANKS - key.shape[1]), value=-math.inf)
    chosen = padded.view(-1, octets, BANKS).topk(int(place.max()) + 1, dim=1).indices  # [rows, most, BANKS]
    flat = chosen.flatten(1).gather(1, place * BANKS + residue)
    return torch.where(gone, flat * BANKS + residue, before)
