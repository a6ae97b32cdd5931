"""How far an output is from the truth, and whether that passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A result may be worse than the same-dtype torch reference by about one unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# A loss is a sum of so many numbers that their own rounding averages out; scores and norms of a rewiring are taken in fp32.
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-3}
_DRAWN = 0.03  # what rounded gradients add to the variance of a stochastic rounding
# The largest single error, over the truth's rms, may exceed the reference's by this many tolerances: rounding of
# values several rms large, but not one wrong element of typical size.
_LARGEST = 16


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


class Error:
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

    def verdict(self, name: str, reference: Error, tolerance: float) -> Verdict:
        """Beside the errors of a reference."""
        return Verdict(name, self.relative, reference.relative, self.relative_largest, reference.relative_largest, tolerance)


class Draws:
    """Whether weights were rounded up and down as often as the truth asks for: the errors, in steps of bf16.

    Of large weights alone: to the small ones, rounded gradients are an error of many steps.
    """

    def __init__(self, spread: float = 1 / 6) -> None:
        """spread: the variance that they should have."""
        self.count, self.mean, self.square, self.spread = 0, 0.0, 0.0, spread

    def add(self, out: Tensor, exact: Tensor) -> None:
        large = exact.abs() > exact.square().mean().sqrt()
        exact = exact[large]
        self.take((out[large].double() - exact) / torch.exp2(exact.abs().log2().floor() - 7))

    def take(self, error: Tensor) -> None:
        self.count += error.numel()
        self.mean += float(error.sum())
        self.square += float(error.square().sum())

    def verdict(self, name: str = "rounding") -> Verdict:
        """A uniform place between two neighbours: mean 0, variance 1/6 (1/12 to nearest); within five standard errors."""
        count = max(1, self.count)
        error = max(abs(self.mean / count), abs(self.square / count - self.spread))
        allowed = 5 * 0.41 / math.sqrt(count)
        return Verdict(name, error, allowed, error, allowed, _DRAWN)
