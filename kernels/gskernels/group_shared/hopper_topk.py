"""The topk of group_shared/cuda on Hopper: two kernels, and of the logits no more in memory than the largest of each tile.

A row's k best labels lie in the k tiles of 64 labels whose largest logits are the largest, where equal ones are ordered
by tile: each of these tiles holds a label that comes before every label of another tile. So `hopper_topk.cu` makes the
products of a forward and keeps each tile's largest logit, and that of each quad of tiles, so that few have to be looked at.
`topk_choose.cu` chooses the k tiles a row, or hardly more, computes the logits of these again, and takes the k best. For
a large k it computes fewer: with the largest logit, a bit says of each 8 labels of a tile whether theirs are less by a
quarter of it, and what must lie below the k-th tile's largest is left out.

What is exact is the order of the second kernel's fp32 sums. Both kernels add the same products of 16 inputs at a time on
tensor cores, the first by wgmma, the second by mma.sync; if a GPU rounded these sums differently, logits that differ by
less than the rounding of such a sum could be mistaken for each other when tiles are chosen, and only then.

A plan is a pure function of the problem, k and what the GPU offers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gskernels.cuda.launch import kernel
from gskernels.group_shared import hopper
from gskernels.group_shared.hopper import LEAST_BATCH, RESERVED, TILE
from gskernels.group_shared.portable import Machine
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.ranking import Best
from gskernels.tune import cdiv

SOURCE, CHOOSE = "group_shared/hopper_topk.cu", "group_shared/topk_choose.cu"
CHOOSE_THREADS = 512
CHOOSE_STATIC = 2048  # bytes of shared memory of fixed size
CHOOSE_LISTS = 16 * 2048 + 1024 * 8 + 128 * 16 * 4  # bytes of weights on their way, of lists of labels and of pieces
HINTS_FROM = 17  # the k from which computing fewer logits again is worth more than knowing which
WINDOW, QUAD = 8, 4  # tiles whose numbers a warpgroup stores at once, and whose largest it stores too
# Warpgroups and stages: the first that fits. Accumulators and operands of more than MOST_WARPGROUPS would spill.
CHOICES = ((4, 4), (4, 3), (4, 2), (3, 4), (3, 3), (3, 2), (2, 4), (2, 3), (2, 2), (4, 1), (3, 1), (2, 1))
MOST_WARPGROUPS = {64: 4, 128: 3, 192: 2, 256: 2}  # by fan-in


@dataclass(frozen=True)
class Plan:
    """macros, threads, shared_bytes, blocks, slices: of the first kernel, as in `hopper.Plan`. stride: of its numbers.

    choose_macros, choose_bytes: macros and shared memory of the second, which has a block for each row.
    """

    macros: Mapping[str, int | str]
    threads: int
    shared_bytes: int
    slices: int
    blocks: int
    stride: int
    choose_macros: Mapping[str, int | str]
    choose_bytes: int

    @property
    def hints(self) -> bool:
        return bool(self.macros["HINTS"])


def plan_of(problem: Problem, k: int, bias: bool, gpu: Machine) -> Plan | None:
    """None for what the kernels do not take."""
    unit = next((unit for unit in (TILE, 32, 16) if problem.group_size % unit == 0), 0)
    if not unit or problem.batch < 1 or problem.fan_in not in MOST_WARPGROUPS:
        return None
    common = hopper.common_macros(replace(problem, batch=max(problem.batch, LEAST_BATCH), group_size=unit), TILE)
    stage = TILE * problem.fan_in * 2 + TILE // unit * problem.fan_in * 2
    room = gpu.shared_bytes - RESERVED - problem.dim * 128
    fitting = [c for c in CHOICES if c[0] <= MOST_WARPGROUPS[problem.fan_in] and c[0] * c[1] * stage <= room]
    tiles, slices = cdiv(problem.labels, TILE), cdiv(problem.batch, 64)
    choose_bytes = CHOOSE_LISTS + problem.dim * 2
    if common is None or not fitting or choose_bytes + CHOOSE_STATIC > gpu.shared_bytes:
        return None
    warpgroups, stages = fitting[0]
    parts = max(1, min(gpu.processors // slices, cdiv(cdiv(tiles, QUAD), warpgroups)))
    both: dict[str, int | str] = {
        "ELEMENT": common["ELEMENT"], "K": problem.fan_in, "LIST": problem.group_size, "BIAS": int(bias),
        "HINTS": int(k >= HINTS_FROM),
    }  # fmt: skip
    macros = common | both | {"WARPGROUPS": warpgroups, "STAGES": stages}
    return Plan(
        macros, warpgroups * 160, problem.dim * 128 + warpgroups * stages * stage, slices, slices * parts,
        cdiv(tiles, WINDOW) * WINDOW, both, choose_bytes,
    )  # fmt: skip


def plan_for(problem: Problem, k: int, bias: bool, device: torch.device) -> Plan | None:
    """A plan for a call on this device, or None where another implementation has to take it."""
    gpu = hopper.machine_of(device)
    return None if gpu is None else plan_of(problem, k, bias, gpu)


def maxima(x: Tensor, layer: Layer, problem: Problem, plan: Plan) -> tuple[Tensor, Tensor, Tensor | None]:
    """The largest logits, fp32: [B, stride] of each 64 labels, [B, stride / 4] of each four of these; then hints or None.

    What `topk.cuh` says of parts are hints. What lies beyond the last tile is undefined. Operands are contiguous and begin
    on 16 bytes.
    """
    largest = x.new_empty(problem.batch, plan.stride, dtype=torch.float32)
    quads = x.new_empty(problem.batch, plan.stride // QUAD, dtype=torch.float32)
    pairs = cdiv(problem.batch, 16) * 8  # of rows
    hints = x.new_empty(pairs, plan.stride // WINDOW, 4, dtype=torch.int32) if plan.hints else None
    args = (hopper.weight_map(layer, problem, TILE), hopper.row_map(x), hopper.lists(layer), layer.bias, largest, quads,
            hints, problem.batch, problem.dim, problem.labels, plan.stride)  # fmt: skip
    launcher = kernel(SOURCE, "hopper_topk_maxima", plan.macros, x.get_device())
    launcher.launch((plan.slices, plan.blocks // plan.slices), plan.threads, args, plan.shared_bytes)
    return largest, quads, hints


def choose(
    x: Tensor, layer: Layer, k: int, problem: Problem, plan: Plan, largest: Tensor, quads: Tensor, hints: Tensor | None
) -> Best:  # fmt: skip
    """(values [B, k] fp32, labels [B, k] int64) from what `maxima` returned."""
    values = x.new_empty(problem.batch, k, dtype=torch.float32)
    labels = torch.empty_like(values, dtype=torch.int64)
    args = (quads, largest, hints, x, layer.weight, hopper.lists(layer), layer.bias, values, labels,
            problem.dim, problem.labels, plan.stride, k)  # fmt: skip
    launcher = kernel(CHOOSE, "topk_choose", plan.choose_macros, x.get_device())
    launcher.launch(problem.batch, CHOOSE_THREADS, args, plan.choose_bytes, early=True)
    return values, labels


def topk(x: Tensor, layer: Layer, k: int, problem: Problem, plan: Plan) -> Best:
    """x [B, D] -> values, labels. Operands are contiguous and begin on 16 bytes."""
    return choose(x, layer, k, problem, plan, *maxima(x, layer, problem, plan))
