"""The correctness gate: outputs against the float64 oracle, judged beside a same-dtype reference's own error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gsbench.measure.operands import Operands, Outputs
from gskernels import oracle
from gskernels.layer import Layer
from gskernels.table import Implementation

OUTPUT_NAMES = {"forward": ("y",), "grad_input": ("dx",), "grad_weight": ("dw",), "backward": ("dx", "dw", "d_down")}
_LABEL_AXIS = {"y": 1, "dw": 0}  # outputs sliced by label; the others are sums over all labels

# A result may be worse than the same-dtype torch reference by about one unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
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
    An oracle that is all zeros passes nothing (its relative error is NaN).
    """
    layer = operands.layer(implementation)
    first = next(iter(outputs.values()))
    names = OUTPUT_NAMES[pass_][: len(first)]
    errors = {who: [_Error() for _ in names] for who in outputs}
    reference_errors = [_Error() for _ in names]
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for start, stop in _chunks(layer, operands):
        part = layer.rows(start, stop)
        grad_out = operands.grad_out[:, start:stop]
        truth = oracle.outputs(pass_, operands.x, grad_out, part)
        reference = oracle.outputs(pass_, operands.x, grad_out, part, dtype=operands.x.dtype)
        for i, name in enumerate(names):
            if name in _LABEL_AXIS:
                reference_errors[i].add(reference[i], truth[i])
                for who, outs in outputs.items():
                    errors[who][i].add(outs[i].narrow(_LABEL_AXIS[name], start, stop - start), truth[i])
            else:
                exact, rounded = sums.get(name, (0.0, 0.0))
                sums[name] = (exact + truth[i], rounded + reference[i].float())
    for i, name in enumerate(names):
        if name in sums:
            exact, rounded = sums[name]
            reference_errors[i].add(rounded.to(operands.x.dtype), exact)
            for who, outs in outputs.items():
                errors[who][i].add(outs[i], exact)
    tolerance = TOLERANCE[operands.x.dtype]
    return {
        who: [
            Verdict(name, e.relative, r.relative, e.relative_largest, r.relative_largest, tolerance)
            for name, e, r in zip(names, mine, reference_errors, strict=True)
        ]
        for who, mine in errors.items()
    }


def shapes_as_expected(pass_: str, operands: Operands, layer: Layer, outputs: Outputs) -> str | None:
    """What is wrong with the outputs' shapes, dtypes or layout, or None."""
    s = operands.point.shape
    expected = {"y": (s.batch, s.labels), "dx": (s.batch, s.dim), "dw": tuple(layer.weight.shape)}
    if layer.down is not None:
        expected["d_down"] = tuple(layer.down.shape)
    names = [name for name in OUTPUT_NAMES[pass_] if name in expected]
    if len(outputs) != len(names):
        return f"{len(outputs)} outputs, expected {', '.join(names)}"
    for name, out in zip(names, outputs, strict=True):
        if tuple(out.shape) != expected[name] or out.dtype != operands.x.dtype or not out.is_contiguous():
            return (
                f"{name} is {out.dtype} {list(out.shape)}{'' if out.is_contiguous() else ' not contiguous'}, "
                f"expected contiguous {operands.x.dtype} {list(expected[name])}"
            )
    return None


def _chunks(layer: Layer, operands: Operands) -> list[tuple[int, int]]:
    shape = operands.point.shape
    per_label = 8 * (shape.dim + 2 * shape.batch)
    labels = max(1, _CHUNK_BYTES[operands.device.type] // per_label)
    group = 1 if layer.topology is None else layer.topology.group_size
    step = max(1, labels // group) * group
    return [(start, min(start + step, layer.labels)) for start in range(0, layer.labels, step)]
