"""Why a case is slower: code, configuration, clock, driver or noise, from what both sides recorded beside the times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gsbench.compare import Pair
from gsbench.differences import Difference

Cause = Literal["code", "configuration", "clock", "driver", "noise"]
TOOLCHAIN = ("driver", "cuda", "torch", "triton", "numpy", "python", "platform")  # of the environment
_CODE = ("code_fingerprint",)  # a commit may change documents only
_SHAKY = ("slowed_down", "clock_moved", "shared_gpu", "host_behind", "bimodal")  # flags that unsettle a measurement
_SHOWN = 4


@dataclass(frozen=True)
class Diagnosis:
    """measurement: it is the machine that moved, as far as the records tell; such a case accuses no code."""

    cause: Cause
    words: str
    measurement: bool = False

    def __str__(self) -> str:
        return f"{self.cause}: {self.words}"


def diagnose(pair: Pair, environment: Sequence[Difference], interleaved: bool = False) -> Diagnosis:
    """The likeliest cause of a pair's shift, by the strongest evidence first.

    interleaved: both sides took turns in one session, so the machine cannot have drifted between them; an unchanged
    binary is then a control only where the code around it is unchanged as well.
    """
    code = [d for d in environment if d.field in _CODE]
    toolchain = [d for d in environment if d.field.rpartition(".")[2] in TOOLCHAIN and d not in code]
    clock = pair.clock_ratio
    if clock is not None and _within(pair, clock):
        cycles = f"{pair.ratio * clock:.3f} in clock cycles"
        return Diagnosis("clock", f"SM clock {pair.base_mhz:.0f} → {pair.new_mhz:.0f} MHz explains it ({cycles})", True)
    if pair.same_binary and not toolchain:
        if not (interleaved and code):
            around = ", unless code around the kernels changed" if code else ""
            return Diagnosis("noise", f"the binary is unchanged, so the measurement moved{around}; measure again", True)
        return Diagnosis("code", f"around the kernels, whose binary is unchanged ({_some(code)})")
    settings = [d for d in pair.config if d.field != "binary"]
    chosen = [d for d in settings if ".config." in f".{d.field}"]
    if chosen:
        return Diagnosis("configuration", _some(chosen + [d for d in settings if d not in chosen]))
    if code and (pair.config or not toolchain):
        return Diagnosis("code", _some([*pair.config, *code]))
    if toolchain:
        return Diagnosis("driver", _some([*toolchain, *pair.config]))
    if pair.config:
        return Diagnosis("code", f"another binary from the same sources ({_some(pair.config)})")
    shaky = [flag for flag in pair.flags if any(word in flag for word in _SHAKY)]
    why = f" ({'; '.join(shaky[:_SHOWN])})" if shaky else ""
    return Diagnosis("noise", f"nothing that is recorded differs{why}, or code that no fingerprint covers; measure again")


def of_broken(environment: Sequence[Difference]) -> Diagnosis:
    """Of a case that is no longer timed: what changed beside it."""
    code = [d for d in environment if d.field in _CODE]
    toolchain = [d for d in environment if d.field.rpartition(".")[2] in TOOLCHAIN]
    if code:
        return Diagnosis("code", _some(code))
    if toolchain:
        return Diagnosis("driver", _some(toolchain))
    return Diagnosis("noise", "nothing that is recorded differs; measure again")


def _within(pair: Pair, clock: float) -> bool:
    """In clock cycles the ratio is no longer beyond the tolerance: its interval's lower end and its centre."""
    least = 1 + pair.tolerance
    return pair.low * clock <= least and pair.ratio * clock <= least


def _some(differences: Sequence[Difference]) -> str:
    more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return "; ".join(map(str, differences[:_SHOWN])) + more
