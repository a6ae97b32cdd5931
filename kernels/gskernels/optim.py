"""SGD for output layers whose weights are bf16: rounding that loses nothing on average, or Kahan sums. No fp32 copy.

bf16 keeps 8 significant bits, so an update smaller than 1/256 of its weight is lost by rounding to nearest. Two ways out:

- stochastic: round up or down with the probabilities that make the mean exact; 2 bytes a weight
- kahan: keep what rounding lost, in bf16, and add it next time; 4 bytes a weight (Zamirai et al. 2020)

Both go through fp32 in pieces of `PIECE` weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

UPDATES = ("nearest", "stochastic", "kahan")
PIECE = 1 << 22  # weights in fp32 at once: 16 MiB
_FRACTION = 1 << 16  # a bf16 is the upper half of an fp32


def stochastic_round(value: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A bf16 neighbour of each value, drawn so that its mean is the value.

    value: fp32, any shape; exact bf16 numbers, infinities and NaN stay as they are. Raises ValueError for another dtype.
    """
    if value.dtype != torch.float32:
        raise ValueError(f"stochastic_round takes float32, got {value.dtype}")
    noise = torch.randint(_FRACTION, value.shape, dtype=torch.int32, generator=generator, device=value.device)
    bits = (value.contiguous().view(torch.int32) + noise) & ~(_FRACTION - 1)  # adds to the magnitude, whatever the sign
    return torch.where(value.isfinite(), bits.view(torch.float32), value).bfloat16()


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

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        kept = {"momentum_buffer": group["momentum"] > 0, "compensation": self._rounds(parameter) == "kahan"}
        for name, wanted in kept.items():
            if wanted and name not in state:
                state[name] = torch.zeros_like(parameter)
        seed = (self.seed * 0x9E3779B97F4A7C15 + state["step"] * 0xBF58476D1CE4E5B9 + place * 0x94D049BB133111EB) % 2**63
        generator = torch.Generator(parameter.device).manual_seed(seed)
        rows = max(1, PIECE // max(1, parameter[0].numel() if parameter.dim() else 1))
        for start in range(0, len(parameter) if parameter.dim() else 1, rows):
            part = slice(start, start + rows) if parameter.dim() else ...
            tensors = {name: state[name][part] for name in ("momentum_buffer", "compensation") if name in state}
            self._update_piece(parameter[part], grad[part], tensors, group, generator)

    def _update_piece(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], generator: torch.Generator
    ) -> None:
        value, step = weight.float(), grad.float()
        if group["weight_decay"]:
            step = step + group["weight_decay"] * value
        if "momentum_buffer" in state:
            step = step + group["momentum"] * state["momentum_buffer"].float()
            state["momentum_buffer"].copy_(step)
        rounds = self._rounds(weight)
        if rounds == "stochastic":
            weight.copy_(stochastic_round(value - group["lr"] * step, generator))
        elif rounds == "kahan":
            lost = state["compensation"]
            wanted = lost.float() - group["lr"] * step
            weight.copy_(value + wanted)
            lost.copy_(wanted - (weight.float() - value))
        else:
            weight.copy_(value - group["lr"] * step)

    def _rounds(self, parameter: Tensor) -> str:
        return self.update if parameter.dtype == torch.bfloat16 else "nearest"
