"""SGD for output layers whose weights are bf16: rounding that loses nothing on average, or Kahan sums. No fp32 copy.

bf16 keeps 8 significant bits, so an update smaller than 1/256 of its weight is lost by rounding to nearest. Two ways out:

- stochastic: round up or down with the probabilities that make the mean exact; 2 bytes a weight
- kahan: keep what rounding lost, in bf16, and add it next time; 4 bytes a weight (Zamirai et al. 2020)

`Update` is one step of one parameter: what `SGD` does with a gradient, and what a fused step (`gskernels.steps`) does to
weights whose gradient it never stores. Both round with the same `noise`, so they agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gskernels import pointwise

UPDATES = ("nearest", "stochastic", "kahan")
PIECE = 1 << 22  # weights in fp32 at once: 16 MiB
_FRACTION = 1 << 16  # a bf16 is the upper half of an fp32


def stochastic_round(value: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A bf16 neighbour of each value, drawn so that its mean is the value.

    value: fp32, any shape; exact bf16 numbers, infinities and NaN stay as they are. Raises ValueError for another dtype.
    """
    if value.dtype != torch.float32:
        raise ValueError(f"stochastic_round takes float32, got {value.dtype}")
    return _round(value, torch.randint(_FRACTION, value.shape, dtype=torch.int32, generator=generator, device=value.device))


def _round(value: Tensor, noise: Tensor) -> Tensor:
    bits = (value.contiguous().view(torch.int32) + noise) & ~(_FRACTION - 1)  # adds to the magnitude, whatever the sign
    return torch.where(value.isfinite(), bits.view(torch.float32), value).bfloat16()


def noise(seed: int, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """[count] int32 in 0..65535: what is added below a bf16 to round weights first .. first + count - 1 of a parameter.

    A hash of the seed and the place of the weight alone, so the order in which weights are updated does not matter, and
    kernels repeat it. With 32-bit words that wrap, `mix` the finalizer "lowbias32" of C. Wellons and place = hi 2^32 + lo:

        mix(h): h ^= h >> 16; h *= 0x7feb352d; h ^= h >> 15; h *= 0x846ca68b; h ^= h >> 16
        noise = mix(mix(lo ^ seed's low word) + seed's high word + hi * 0x9e3779b9) >> 16
    """
    place = torch.arange(first, first + count, dtype=torch.int64, device=device)
    word = _mix(place.int() ^ _signed(seed)).add_(_signed(seed >> 32))  # .int() keeps the low word
    if first + count > 1 << 32:
        word += (place >> 32).int() * _signed(0x9E3779B9)
    return _shifted(_mix(word), 16)


def _signed(word: int) -> int:
    """The low 32 bits as an int32."""
    return (word + 2**31) % 2**32 - 2**31


def _shifted(word: Tensor, by: int) -> Tensor:
    """word >> by without the sign."""
    return (word >> by) & ((1 << (32 - by)) - 1)


def _mix(word: Tensor) -> Tensor:
    word = (word ^ _shifted(word, 16)).mul_(0x7FEB352D)
    word = (word ^ _shifted(word, 15)).mul_(_signed(0x846CA68B))
    return word ^ _shifted(word, 16)


@dataclass(frozen=True)
class Update:
    """One step of stochastic gradient descent for one parameter, in place. With weight w, gradient g, all in fp32:

        s = g + weight_decay w;   s += momentum * momentum_buffer, which becomes s;   w = rounded(w - lr s)

    rounded: "nearest"; "stochastic" (bf16 up or down by `noise(seed, place)`); "kahan" (bf16, `compensation` c holds what
    was lost: wanted = c - lr s, w' = bf16(w + wanted), c = bf16(wanted - (w' - w))). Parameters of another dtype than
    bf16 are rounded to nearest whatever `rounding` says. `seed` is of this step and parameter; see `step_seed`.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    rounding: str = "nearest"
    seed: int = 0
    momentum_buffer: Tensor | None = None  # shape and dtype of the parameter; needed where momentum > 0
    compensation: Tensor | None = None  # the same; needed by kahan for bf16

    def rounds(self, dtype: torch.dtype) -> str:
        """How a parameter of this dtype is rounded."""
        return self.rounding if dtype == torch.bfloat16 else "nearest"

    def check(self, parameter: Tensor, name: str) -> None:
        """Raises ValueError where numbers, the rounding or the state do not fit the parameter."""
        if self.lr < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(f"lr, momentum and weight_decay out of range: {self.lr}, {self.momentum}, {self.weight_decay}")
        if self.rounding not in UPDATES:
            raise ValueError(f"rounding must be one of {', '.join(UPDATES)}, got {self.rounding!r}")
        if self.momentum > 0 and self.momentum_buffer is None:
            raise ValueError(f"momentum needs a momentum_buffer for {name}")
        if self.rounds(parameter.dtype) == "kahan" and self.compensation is None:
            raise ValueError(f"kahan needs a compensation for {name}")
        for what, state in (("momentum_buffer", self.momentum_buffer), ("compensation", self.compensation)):
            if state is not None and (
                state.shape != parameter.shape or state.dtype != parameter.dtype or state.device != parameter.device
            ):
                found = f"{list(state.shape)} in {state.dtype} on {state.device}"
                wanted = f"{list(parameter.shape)} in {parameter.dtype} on {parameter.device}"
                raise ValueError(f"the {what} of {name} must be {wanted}, got {found}")
            if state is not None and not state.is_contiguous():
                raise ValueError(f"the {what} of {name} must be contiguous")

    def rows(self, start: int, stop: int) -> Update:
        """Of rows [start, stop) of the parameter; their place goes to `apply` as `first`."""
        buffer, lost = (None if s is None else s[start:stop] for s in (self.momentum_buffer, self.compensation))
        return replace(self, momentum_buffer=buffer, compensation=lost)

    @torch.no_grad()
    def apply(self, weight: Tensor, grad: Tensor, first: int = 0) -> None:
        """Update `weight` and the state in place; on a GPU in one pass over them, else through fp32 temporaries.

        first: numbers of the parameter before weight's first, where `weight` is a part of its rows.
        """
        kernels = pointwise.kernels(weight.device.type)
        if kernels is not None and weight.is_contiguous():
            buffers = (self.momentum_buffer if self.momentum else None, self.compensation)
            rates = (self.lr, self.momentum, self.weight_decay)
            kernels.update(weight, grad, *buffers, self.rounds(weight.dtype), rates, self.seed, first)
            return
        value, step = weight.float(), grad.float()
        if self.weight_decay:
            step = step + self.weight_decay * value
        if self.momentum and self.momentum_buffer is not None:
            step = step + self.momentum * self.momentum_buffer.float()
            self.momentum_buffer.copy_(step)
        rounds = self.rounds(weight.dtype)
        if rounds == "stochastic":
            drawn = noise(self.seed, first, weight.numel(), weight.device).view(weight.shape)
            weight.copy_(_round(value - self.lr * step, drawn))
        elif rounds == "kahan" and self.compensation is not None:
            wanted = self.compensation.float() - self.lr * step
            weight.copy_(value + wanted)
            self.compensation.copy_(wanted - (weight.float() - value))
        else:
            weight.copy_(value - self.lr * step)


def step_seed(seed: int, step: int, place: int) -> int:
    """The seed of an `Update`: of the run, the number of the step and the place of the parameter among all."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + place * 0x94D049BB133111EB) % 2**63


class SGD(torch.optim.Optimizer):
    """Stochastic gradient descent as torch.optim.SGD (momentum without dampening), with a choice of rounding.

    State of each parameter: `step` (int), `momentum_buffer` in the parameter's dtype where momentum > 0, and for kahan
    `compensation`, what rounding has lost so far. Draws depend on `seed`, the step and the parameter's place alone, so a
    resumed run goes on as an uninterrupted one. fp32 parameters are updated plainly, whatever `update` says.

    Args:
        lr, momentum, weight_decay: as in torch.optim.SGD.
        update: one of `UPDATES`, for bf16 parameters.
        seed: of stochastic rounding.

    Raises:
        ValueError: numbers out of range, another update, parameters that are neither fp32 nor bf16.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0,
        update: str = "stochastic", seed: int = 0,
    ) -> None:  # fmt: skip
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(f"lr, momentum and weight_decay out of range: {lr}, {momentum}, {weight_decay}")
        if update not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.update, self.seed = update, seed
        for parameter in self._parameters():
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"parameters must be float32 or bfloat16, got {parameter.dtype}")

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        places = {id(parameter): place for place, parameter in enumerate(self._parameters())}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, places[id(parameter)])
        return loss

    def update_of(self, parameter: Tensor) -> Update:
        """The next step of that parameter, for a fused step to take; counts as taken. Raises KeyError for a stranger."""
        places = {id(one): place for place, one in enumerate(self._parameters())}
        place = places[id(parameter)]
        group = next(g for g in self.param_groups if any(one is parameter for one in g["params"]))
        return self._next(parameter, group, place)

    def _next(self, parameter: Tensor, group: dict[str, Any], place: int) -> Update:
        update = Update(group["lr"], group["momentum"], group["weight_decay"], self.update)
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        kept = {"momentum_buffer": group["momentum"] > 0, "compensation": update.rounds(parameter.dtype) == "kahan"}
        for name, wanted in kept.items():
            if wanted and name not in state:
                state[name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return replace(update, seed=step_seed(self.seed, state["step"], place),
                       momentum_buffer=state.get("momentum_buffer"), compensation=state.get("compensation"))  # fmt: skip

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any], place: int) -> None:
        update = self._next(parameter, group, place)
        width = parameter[0].numel() if parameter.dim() else 1
        rows = max(1, PIECE // max(1, width))
        for start in range(0, len(parameter) if parameter.dim() else 1, rows):
            if parameter.dim():
                part = slice(start, start + rows)
                update.rows(start, start + rows).apply(parameter[part], grad[part], start * width)
            else:
                update.apply(parameter, grad)
