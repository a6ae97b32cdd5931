"""Limits and modelled temporaries of head-tail layers and of the rules of a rewiring: pure functions of the shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from gskernels.shape import Shape, Workspace

PIECE = 32 << 20  # bytes of labels that go at once, as `gskernels.head_tail.PIECE_BYTES`
CHUNK = 1 << 24  # numbers that a rule looks at in one go, as `gskernels.rewire.growth.CHUNK`


def head_limit(shape: Shape, pass_: str, dtype: str, device: str) -> str | None:
    if not 0 < shape.head < shape.labels:
        given = f"head_share={shape.head_share:g} gives the head {shape.head} of {shape.labels}"
        return f"a head-tail layer needs labels in head and tail, but {given}"
    if shape.group_size > shape.tail.labels:
        return f"group_size={shape.group_size} exceeds the {shape.tail.labels} labels of the tail"
    return None


def growth_limit(shape: Shape, pass_: str, dtype: str, device: str) -> str | None:
    return "every group reads every input, so none can be grown" if shape.fan_in == shape.dim else None


def beside_head(of_head: Workspace, of_tail: Workspace) -> Workspace:
    """Forward and backward: a piece of labels, dX in fp32 and what the tail needs. Else dX twice and the larger layer's."""

    def workspace(shape: Shape, pass_: str, item: int) -> int:
        dx, tail = 4 * shape.batch * shape.dim, of_tail(shape.tail, pass_, item)
        if pass_ in ("forward", "backward"):
            return min(PIECE, shape.labels * (shape.batch * (item + 4) + shape.dim * item)) + dx + tail
        return max(of_head(replace(shape, labels=shape.head, head_share=0.0), pass_, item), tail) + 2 * dx

    return workspace


def score(shape: Shape, pass_: str, item: int) -> int:
    """Three copies of a chunk of weights, in fp32."""
    return 12 * min(CHUNK, shape.labels * shape.fan_in)


def growth(needs: tuple[str, ...]) -> Callable[[Shape, str, int], int]:
    """Keys of a chunk of groups in fp32, three times, and lists in int64; by gradient X, dY and dY^T X in fp32 as well."""

    def workspace(shape: Shape, pass_: str, item: int) -> int:
        labels = max(1, CHUNK // shape.dim) * (1 if needs else shape.group_size)
        labels = min(shape.labels, max(labels, shape.group_size))
        keys = math.ceil(labels / shape.group_size) * (12 * shape.dim + 40 * shape.fan_in)
        return keys + (4 * (labels * (shape.dim + shape.batch) + shape.batch * shape.dim) if needs else 0)

    return workspace
