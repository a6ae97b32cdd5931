"""The correctness gate: outputs against the float64 oracle, judged beside a same-dtype reference's own error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsbench.measure import growth, truth
from gsbench.measure.errors import LOSS_TOLERANCE, TOLERANCE, Draws, Error, Verdict
from gsbench.measure.operands import Operands, Outputs
from gsbench.passes import LABEL_AXIS, PASSES, Pass
from gskernels import oracle
from gskernels.layer import Layer
from gskernels.table import FORWARD, GROW, TOPK, Implementation
from gskernels.topology import index_dtype

_CHUNK_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # float64 dense weights built at once


class PoisonedAllocations(TorchDispatchMode):
    """Every uninitialised floating-point tensor made inside starts as NaN, so that an unwritten output shows."""

    _OPS = ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in self._OPS and out.is_floating_point():
            out.fill_(math.nan)
        return out


def poisoned() -> AbstractContextManager[Any]:
    mode: AbstractContextManager[Any] = PoisonedAllocations()  # type: ignore[no-untyped-call]
    return mode


def check(
    pass_: str, operands: Operands, implementation: Implementation, outputs: Mapping[str, Outputs]
) -> dict[str, list[Verdict]]:
    """Verdicts a name for outputs of implementations of one kind (that of `implementation`), computed for `pass_`.

    The oracle runs once for all of them, in chunks of labels, so the check needs about a gigabyte whatever L is.
    An oracle that is all zeros passes nothing (its relative error is NaN). A stochastic rounding has a verdict of its
    own, on its distribution.
    """
    one = PASSES[pass_]
    if one.runs == TOPK:
        return _check_best(one, operands, implementation, outputs)
    if one.runs == GROW:
        return growth.check(operands, implementation, outputs, _chunks(operands.layer(implementation), operands))
    layer = operands.layer(implementation)
    names = _names(one, layer)
    errors = {who: [Error() for _ in names] for who in outputs}
    reference_errors = [Error() for _ in names]
    draws = {who: Draws() for who in outputs} if one.rounding == "stochastic" and operands.updating else {}
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for start, stop in _chunks(layer, operands):
        right = truth.chunk(one, operands, implementation, start, stop, torch.float64)
        reference = truth.chunk(one, operands, implementation, start, stop, operands.x.dtype)
        for i, name in enumerate(names):
            if name in LABEL_AXIS and name in right:
                reference_errors[i].add(reference[name], right[name])
                for who, outs in outputs.items():
                    mine = outs[i].narrow(LABEL_AXIS[name], *_span(name, layer, start, stop))
                    errors[who][i].add(mine, right[name])
                    if draws and name in ("weight", "head"):
                        draws[who].add(mine, right[name])
            elif name not in LABEL_AXIS:
                exact, rounded = sums.get(name, (0.0, 0.0))
                sums[name] = (exact + right[name], rounded + reference[name].float())
    for i, name in enumerate(names):
        if name in sums:
            exact, rounded = (truth.total(name, one, operands, layer, part) for part in sums[name])
            dtype = next(iter(outputs.values()))[i].dtype
            reference_errors[i].add(rounded.to(dtype), exact)
            for who, outs in outputs.items():
                errors[who][i].add(outs[i], exact)
    verdicts = {who: _verdicts(names, mine, reference_errors, operands) for who, mine in errors.items()}
    for who, drawn in draws.items():
        verdicts[who].append(drawn.verdict())
    return verdicts


def _verdicts(names: Sequence[str], mine: Sequence[Error], references: Sequence[Error], operands: Operands) -> list[Verdict]:
    def tolerance(name: str) -> float:
        if name == "score":
            return TOLERANCE[torch.float32]
        return (LOSS_TOLERANCE if name == "loss" else TOLERANCE)[operands.x.dtype]

    return [e.verdict(name, r, tolerance(name)) for name, e, r in zip(names, mine, references, strict=True)]


def _check_best(
    one: Pass, operands: Operands, implementation: Implementation, outputs: Mapping[str, Outputs]
) -> dict[str, list[Verdict]]:
    """values against the true logits of the labels they come with; these against the k largest there are, in order.

    So labels whose logits are closer than a rounding may be exchanged, and no others. Labels that are no labels of the
    layer, or appear twice, pass nothing.
    """
    layer, batch, dtype = operands.layer(implementation), len(operands.x), operands.x.dtype
    best, reference = (truth.Best(batch, one.k, operands.device) for _ in range(2))
    found = {who: torch.full((batch, one.k), math.nan, dtype=torch.float64, device=operands.device) for who in outputs}
    for start, stop in _chunks(layer, operands):
        part = layer.rows(start, stop)
        z = oracle.outputs(FORWARD, operands.x, operands.x, part)[0]
        best.add(z, z)
        reference.add(oracle.outputs(FORWARD, operands.x, operands.x, part, dtype=dtype)[0], z)
        for who, (_, labels) in outputs.items():
            inside = (labels >= start) & (labels < stop)
            at = z.gather(1, (labels - start).clamp(0, stop - start - 1))
            found[who] = torch.where(inside, at, found[who])
    verdicts = {}
    for who, (values, labels) in outputs.items():
        ordered = labels.sort(1).values
        found[who][(ordered[:, 1:] == ordered[:, :-1]).any(1)] = math.nan
        mine, references = [Error(), Error()], [Error(), Error()]
        mine[0].add(values, found[who])
        references[0].add(reference.values, reference.truth)
        mine[1].add(found[who], best.truth)
        references[1].add(reference.truth, best.truth)
        verdicts[who] = _verdicts(one.outputs, mine, references, operands)
    return verdicts


def shapes_as_expected(pass_: str, operands: Operands, layer: Layer, outputs: Outputs) -> str | None:
    """What is wrong with the outputs' shapes, dtypes or layout, or None."""
    s = operands.point.shape
    one, weight = PASSES[pass_], tuple(layer.weight.shape)
    lists = () if layer.topology is None else tuple(layer.topology.indices.shape)
    expected = {
        "y": (s.batch, s.labels), "dx": (s.batch, s.dim), "dw": weight, "weight": weight, "loss": (),
        "values": (s.batch, one.k), "labels": (s.batch, one.k), "score": lists, "indices": lists,
    }  # fmt: skip
    for name, parameter in (("down", layer.down), ("head", layer.head)):
        if parameter is not None:
            expected["d_" + name] = expected[name] = tuple(parameter.shape)
    dtypes = {"loss": torch.float32, "values": torch.float32, "labels": torch.int64, "score": torch.float32}
    dtypes["indices"] = index_dtype(s.dim)
    names = _names(one, layer)
    if len(outputs) != len(names):
        return f"{len(outputs)} outputs, expected {', '.join(names)}"
    for name, out in zip(names, outputs, strict=True):
        dtype = dtypes.get(name, operands.x.dtype)
        if tuple(out.shape) != expected[name] or out.dtype != dtype or not out.is_contiguous():
            return (
                f"{name} is {out.dtype} {list(out.shape)}{'' if out.is_contiguous() else ' not contiguous'}, "
                f"expected contiguous {dtype} {list(expected[name])}"
            )
    return None


def _names(one: Pass, layer: Layer) -> list[str]:
    """The outputs of a pass that a layer has."""
    absent = [name for name in ("down", "head") if getattr(layer, name) is None]
    return [name for name in one.outputs if name.removeprefix("d_") not in absent]


def _span(name: str, layer: Layer, start: int, stop: int) -> tuple[int, int]:
    """(first, count) of labels [start, stop) in an output: a tail's weights count from its start, scores by group."""
    if name == "score":
        size = layer.sparse.group_size
        return start // size, -(-stop // size) - start // size
    return start - (layer.head_labels if name in ("dw", "weight") else 0), stop - start


def _chunks(layer: Layer, operands: Operands) -> list[tuple[int, int]]:
    shape = operands.point.shape
    per_label = 8 * (shape.dim + 2 * shape.batch)
    labels = max(1, _CHUNK_BYTES[operands.device.type] // per_label)
    group = 1 if layer.topology is None else layer.topology.group_size
    step = max(1, labels // group) * group
    parts = ((0, layer.head_labels), (layer.head_labels, layer.labels))
    return [(start, min(start + step, stop)) for first, stop in parts for start in range(first, stop, step)]
