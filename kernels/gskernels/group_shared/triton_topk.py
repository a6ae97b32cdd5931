"""The topk of group_shared/triton: two kernels, of which the first keeps one number a tile of labels and row. weight [L, K].

A row's k best labels lie in the k tiles whose largest logits are the largest, where equal ones are ordered by tile: each
of these tiles holds a label that comes before every label of another tile. So the first kernel computes all logits
and keeps each tile's largest, torch.topk chooses k tiles a row, and the second kernel computes the logits of these tiles
again, from which the k best are taken.

It goes in chunks of tiles whose numbers hold CHUNK_BYTES. What is exact is the order of the second kernel's fp32 sums;
logits that differ by less than the rounding of such a sum may be mistaken for each other when tiles are chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gskernels import tune
from gskernels.group_shared.triton_problem import Problem, distinct, transpose
from gskernels.group_shared.triton_step import inputs
from gskernels.group_shared.triton_step_kernels import best_of_tiles_kernel, candidates_kernel
from gskernels.layer import Layer
from gskernels.positives import Positives
from gskernels.ranking import Best, best_of
from gskernels.tune import Config

CHUNK_BYTES = 64 << 20  # of the first kernel's numbers, 8 bytes each


def candidates(problem: Problem) -> list[Config]:
    most_b = min(256, max(16, tune.power_of_two(problem.batch)))
    if problem.dtype == torch.float32:  # multiplies without tensor cores
        options = [(16, 4, 1)]
    elif inputs(problem) * problem.block_g <= 4096:
        options = [(64, 4, 1), (64, 4, 2), (128, 4, 1), (128, 8, 1), (32, 4, 2)]
    else:
        options = [(32, 8, 1), (64, 8, 1), (16, 8, 1)]
    return distinct({"BLOCK_B": min(b, most_b), "num_warps": w, "num_stages": s} for b, w, s in options)


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None, problem: Problem) -> Best:
    """The pass `topk`, as `gskernels.ranking` describes it, of a problem that the step takes and that has rows.

    x is contiguous.
    """
    with tune.device_of(x):
        call = TopK(x, layer, k, exclude, problem)
        config = tune.choose(
            "group_shared.topk", problem.shape_class, candidates(problem), call.run, x,
            legal=lambda c: c in candidates(problem),
        )  # fmt: skip
        return call.run(config)


class TopK:
    """One call."""

    def __init__(self, x: Tensor, layer: Layer, k: int, exclude: Positives | None, problem: Problem) -> None:
        self.x, self.k, self.problem = x, k, problem
        self.weight, self.indices = layer.weight.contiguous(), layer.sparse.indices.contiguous()
        self.bias = self.weight if layer.bias is None else layer.bias.contiguous()
        self.lists = (self.indices,) * 3 if exclude is None else exclude.by_group(problem.group_size, problem.groups)
        constants = problem.constants()
        self.wide = constants.pop("WIDE")
        self.constants = {**constants, "HAS_BIAS": layer.bias is not None, "EXCLUDE": exclude is not None}

    def run(self, config: Config) -> Best:
        """Chunk by chunk of tiles; at least k labels and k tiles in all but the last one."""
        problem, parts = self.problem, []
        xt = transpose(self.x, self.x.dtype, problem.stride)
        step = max(self.k, CHUNK_BYTES // (8 * problem.batch))
        for start in range(0, problem.tiles, step):
            parts.append(self._chunk(xt, start, min(start + step, problem.tiles) - start, config))
        if len(parts) == 1:
            return parts[0]
        values, labels = (torch.cat(one, 1) for one in zip(*parts, strict=True))
        return best_of(values, labels, self.k)

    def _chunk(self, xt: Tensor, start: int, tiles: int, config: Config) -> Best:
        """The best of tiles start .. start + tiles - 1, k of them or all labels if these are fewer."""
        problem = self.problem
        keys = torch.empty(tiles, problem.batch, dtype=torch.int64, device=xt.device)
        layer = (self.weight, self.indices, self.bias, *self.lists)
        tune.launch(best_of_tiles_kernel, (tiles,),
                    (xt, *layer, keys, problem.batch, problem.stride, problem.labels, start, tiles), config,
                    BLOCK_K=inputs(problem), WIDE=self.wide, **self.constants)  # fmt: skip
        count = min(self.k, tiles)
        best = keys.t().contiguous().topk(count, dim=1, sorted=False).values
        chosen = 2**31 - 1 - (best & 0xFFFFFFFF)
        values = xt.new_empty(problem.batch, count * problem.block_g, dtype=torch.float32)
        numbers = torch.empty(values.shape, dtype=torch.int64, device=xt.device)
        block = max(16, min(tune.power_of_two(problem.fan_in), 4096 // problem.block_g))
        tune.launch(candidates_kernel, (problem.batch, count),
                    (self.x, *layer, chosen, values, numbers, problem.dim, problem.labels, start), {"num_warps": 4},
                    BLOCK_K=block, **self.constants)  # fmt: skip
        return best_of(values, numbers, min(self.k, values.shape[1]))
