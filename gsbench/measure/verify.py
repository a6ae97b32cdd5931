"""The correctness gate: outputs against the float64 oracle, judged beside a same-dtype reference's own error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsbench.measure import truth
from gsbench.measure.operands import Operands, Outputs
from gsbench.passes import LABEL_AXIS, PASSES, Pass
from gskernels import oracle
from gskernels.layer import Layer
from gskernels.table import FORWARD, TOPK, Implementation

# A result may be worse than the same-dtype torch reference by about one unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# A loss is a sum of so many numbers that their own rounding averages out.
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-3}
_DRAWN = 0.03  # what rounded gradients add to the variance of a stochastic rounding
# The largest single error, over the truth's rms, may exceed the reference's by this many tolerances: rounding of
# values several rms large, but not one wrong element of typical size.
_LARGEST = 16
_CHUNK_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # float64 dense weights built at once


@dataclass(frozen=True)
class Verdict:
    """Relative errors of one output. error, reference_error: ||out - truth|| / ||truth||; largest: max |.| / rms."""

    output: str
    error: float
    reference_error: float
    largest: float
    reference_largest: float
    tolerance: float

    @property
    def bound(self) -> float:
        return self.reference_error + self.tolerance

    @property
    def passed(self) -> bool:  # NaN compares false, so it never passes
        within = self.error <= self.bound
        return within and self.largest <= self.reference_largest + _LARGEST * self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {
            "error": _json(self.error), "reference_error": _json(self.reference_error), "bound": _json(self.bound),
            "largest": _json(self.largest), "reference_largest": _json(self.reference_largest),
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.output}: relative error {self.error:.3g} (bound {self.bound:.3g}), "
            f"largest {self.largest:.3g} rms (reference {self.reference_largest:.3g})"
        )


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


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


class _Error:
    """Running error norms of one output over label chunks."""

    def __init__(self) -> None:
        self.squared = self.truth = self.largest = 0.0
        self.count = 0

    def add(self, out: Tensor, truth: Tensor) -> None:
        difference = out.double() - truth
        self.squared += float(difference.square().sum())
        self.truth += float(truth.square().sum())
        worst = float(difference.abs().max()) if difference.numel() else 0.0
        self.largest = max(self.largest, worst) if not math.isnan(worst) else math.nan
        self.count += truth.numel()

    @property
    def relative(self) -> float:
        return math.sqrt(self.squared / self.truth) if self.truth > 0 else math.nan

    @property
    def relative_largest(self) -> float:
        return self.largest / math.sqrt(self.truth / self.count) if self.truth > 0 else math.nan


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
    layer = operands.layer(implementation)
    names = one.outputs[: len(next(iter(outputs.values())))]
    errors = {who: [_Error() for _ in names] for who in outputs}
    reference_errors = [_Error() for _ in names]
    draws = {who: _Draws() for who in outputs} if one.rounding == "stochastic" and operands.updating else {}
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for start, stop in _chunks(layer, operands):
        part = layer.rows(start, stop)
        right = truth.chunk(one, operands, part, start, stop, torch.float64)
        reference = truth.chunk(one, operands, part, start, stop, operands.x.dtype)
        for i, name in enumerate(names):
            if name in LABEL_AXIS:
                reference_errors[i].add(reference[name], right[name])
                for who, outs in outputs.items():
                    mine = outs[i].narrow(LABEL_AXIS[name], start, stop - start)
                    errors[who][i].add(mine, right[name])
                    if draws and name == "weight":
                        draws[who].add(mine, right[name])
            else:
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


def _verdicts(
    names: Sequence[str], mine: Sequence[_Error], references: Sequence[_Error], operands: Operands
) -> list[Verdict]:
    def tolerance(name: str) -> float:
        return (LOSS_TOLERANCE if name == "loss" else TOLERANCE)[operands.x.dtype]

    return [
        Verdict(name, e.relative, r.relative, e.relative_largest, r.relative_largest, tolerance(name))
        for name, e, r in zip(names, mine, references, strict=True)
    ]


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
        mine, references = [_Error(), _Error()], [_Error(), _Error()]
        mine[0].add(values, found[who])
        references[0].add(reference.values, reference.truth)
        mine[1].add(found[who], best.truth)
        references[1].add(reference.truth, best.truth)
        verdicts[who] = _verdicts(one.outputs, mine, references, operands)
    return verdicts


class _Draws:
    """Whether weights were rounded up and down as often as the truth asks for: the errors, in steps of bf16.

    Of large weights alone: to the small ones, rounded gradients are an error of many steps.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.square = 0, 0.0, 0.0

    def add(self, out: Tensor, exact: Tensor) -> None:
        large = exact.abs() > exact.square().mean().sqrt()
        exact = exact[large]
        error = (out[large].double() - exact) / torch.exp2(exact.abs().log2().floor() - 7)
        self.count += error.numel()
        self.mean += float(error.sum())
        self.square += float(error.square().sum())

    def verdict(self) -> Verdict:
        """A uniform place between two neighbours: mean 0, variance 1/6 (1/12 to nearest); within five standard errors."""
        count = max(1, self.count)
        error = max(abs(self.mean / count), abs(self.square / count - 1 / 6))
        allowed = 5 * 0.41 / math.sqrt(count)
        return Verdict("rounding", error, allowed, error, allowed, _DRAWN)


def shapes_as_expected(pass_: str, operands: Operands, layer: Layer, outputs: Outputs) -> str | None:
    """What is wrong with the outputs' shapes, dtypes or layout, or None."""
    s = operands.point.shape
    one, weight = PASSES[pass_], tuple(layer.weight.shape)
    expected = {
        "y": (s.batch, s.labels), "dx": (s.batch, s.dim), "dw": weight, "weight": weight, "loss": (),
        "values": (s.batch, one.k), "labels": (s.batch, one.k),
    }  # fmt: skip
    if layer.down is not None:
        expected["d_down"] = expected["down"] = tuple(layer.down.shape)
    dtypes = {"loss": torch.float32, "values": torch.float32, "labels": torch.int64}
    names = [name for name in one.outputs if name in expected]
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


def _chunks(layer: Layer, operands: Operands) -> list[tuple[int, int]]:
    shape = operands.point.shape
    per_label = 8 * (shape.dim + 2 * shape.batch)
    labels = max(1, _CHUNK_BYTES[operands.device.type] // per_label)
    group = 1 if layer.topology is None else layer.topology.group_size
    step = max(1, labels // group) * group
    return [(start, min(start + step, layer.labels)) for start in range(0, layer.labels, step)]
