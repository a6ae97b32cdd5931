"""Which tile sizes a kernel runs with, and a record of what was launched.

A configuration is a dict of integers: the kernel's tile constants, and `num_warps` and `num_stages`. `choose` looks
for the one of a (GPU, kernel, shape class) in this order:

1. choices measured here earlier: in memory, then on disk in ``${GSKERNELS_CACHE:-~/.cache/gskernels}/tuned.json``,
   as long as they hold (`gskernels.choices`);
2. the table that ships with the package, `tuned/<gpu>.json`;
3. where the GPU has a table, the nearest shape class in it, so that nobody waits on a GPU that was tuned for;
4. a measurement on the caller's own arguments, with cold caches (`GSKERNELS_TUNE=off` forbids it, `full` prefers it
   to step 3);
5. the first candidate: where measuring is impossible (no GPU, the interpreter, CUDA-graph capture).

Inside of `trials`, every choice is measured on purpose, whatever is known already, and what was found is noted.

`launch` starts a Triton kernel and remembers it. After a call, a harness asks for what ran::

    tune.reset(); implementation.forward(x, layer)
    launched = tune.launched_kernels()   # {kernel: {"config", "registers", "spills", "shared_bytes", "sha256"}}
    tune.combined_hash(launched)         # one digest over the machine code of all of them

Everything but `choose` on a GPU and `launch` is a pure function of its arguments.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gskernels import choices
from gskernels.choices import Config as Config
from gskernels.trials import Clock, Trial, cold, tried

_chosen: dict[str, Config] = {}  # full key -> configuration
_launched: dict[str, tuple[Any, Config]] = {}  # kernel -> (compiled kernel or its facts, configuration)
_disk_read = False


# ---- shape classes ----------------------------------------------------------------------------------------------


def shape_class(
    *, batch: int, dim: int, labels: int, fan_in: int, group_size: int, dtype: torch.dtype, rows: str = "aligned",
    label_base: int = 16,
) -> str:  # fmt: skip
    """The name under which shapes share a configuration: sizes rounded up to powers of two, L to powers of `label_base`.

    rows: a word for what tells shapes of the same sizes apart, such as rows of a length that 16-byte pieces do not fit.
    """
    many = label_base ** math.ceil(math.log(labels, label_base) - 1e-9)
    return (
        f"B{power_of_two(min(batch, 4096))} D{power_of_two(dim)} L{many} K{power_of_two(fan_in)} "
        f"G{power_of_two(group_size)} {rows} {str(dtype).removeprefix('torch.')}"
    )


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def distance(one: str, other: str) -> float:
    """How far apart two shape classes are: the sum of |log2| over their sizes; infinite between widths of numbers."""
    mine, theirs = one.split(), other.split()
    if (mine[-1] == "float32") != (theirs[-1] == "float32"):
        return math.inf
    total = 0.0 if mine[-2] == theirs[-2] else 1.0
    for a, b in zip(mine[:-2], theirs[:-2], strict=True):
        total += {"L": 0.125, "D": 0.25}.get(a[0], 1.0) * abs(math.log2(int(a[1:])) - math.log2(int(b[1:])))
    return total


def nearest(
    table: Mapping[str, Config], kernel: str, shape: str, legal: Callable[[Config], bool] = lambda config: True
) -> Config | None:
    """The legal configuration of the nearest shape class of that kernel, or None if the table has none."""
    entries = [
        (distance(shape, key.split("|")[1]), key)
        for key, config in table.items()
        if key.split("|")[0] == kernel and legal(config)
    ]
    entries = [entry for entry in entries if math.isfinite(entry[0])]
    return dict(table[min(entries)[1]]) if entries else None


# ---- the choice -------------------------------------------------------------------------------------------------


def choose(
    kernel: str,
    shape: str,
    candidates: Sequence[Config],
    run: Callable[[Config], object],
    like: Tensor,
    *,
    legal: Callable[[Config], bool] = lambda config: True,
    measure: bool = True,
    on_purpose: bool = False,
) -> Config:
    """The configuration for `kernel` at a shape class; `run(config)` makes the call that is timed.

    candidates: the first is the default. like: a tensor on the device in question. legal: whether a configuration
    from a table fits the actual shape. measure: False never times (for results that must not depend on noise).
    on_purpose: time inside of `trials` only; elsewhere what no table knows takes the default.
    """
    full = f"{gpu_name(like)}|{kernel}|{shape}"
    if _session is not None and measure and len(candidates) > 1 and full not in {trial.key for trial in _session.found}:
        trial = tried(full, candidates, run, _session.clock)
        _session.found.append(trial)
        _chosen[full] = trial.config
        return trial.config
    if measure:
        _read_disk_once()
    if full in _chosen and legal(_chosen[full]):
        return _chosen[full]
    table = choices.packaged(gpu_name(like))
    found: Config | None = table.get(f"{kernel}|{shape}")
    mode = os.environ.get("GSKERNELS_TUNE", "auto")
    measurable = measure and not on_purpose and mode != "off" and can_measure(like) and len(candidates) > 1
    if found is None and not (measurable and mode == "full"):
        found = nearest(table, kernel, shape, legal)
    if found is not None and legal(found):
        _chosen[full] = found
        return found
    if measurable:
        _chosen[full] = tried(full, candidates, run, functools.partial(cold, like=like)).config
        choices.write_cache(choices.cache_path(), {full: _chosen[full]})
        return _chosen[full]
    if on_purpose:
        _chosen[full] = dict(candidates[0])
    return candidates[0]  # else not kept: the next call may be able to measure


def can_measure(like: Tensor) -> bool:
    """Whether timing is possible now: a GPU, no interpreter, no capture, no tracing."""
    return like.is_cuda and not interpreted() and not torch.cuda.is_current_stream_capturing()


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def gpu_name(like: Tensor) -> str:
    return _gpu_name(like.get_device()) if like.is_cuda else "cpu"


@functools.cache
def multiprocessors(index: int) -> int:
    """SMs of CUDA device `index`; 4 without one, so that the interpreter runs few programs."""
    return torch.cuda.get_device_properties(index).multi_processor_count if index >= 0 else 4


# ---- trials -----------------------------------------------------------------------------------------------------


class _Session(NamedTuple):
    clock: Clock
    found: list[Trial]


_session: _Session | None = None


@contextlib.contextmanager
def trials(clock: Clock, found: list[Trial] | None = None) -> Iterator[list[Trial]]:
    """While this is open, every `choose` with several candidates measures them by `clock`, once a (kernel, shape class).

    found: of trials before; what is in it is not measured again. The list fills as it happens. The winners are used from
    then on in this process; nothing is written to disk.
    """
    global _session
    before, _session = _session, _Session(clock, [] if found is None else found)
    try:
        yield _session.found
    finally:
        _session = before


def _read_disk_once() -> None:
    global _disk_read
    if not _disk_read:
        _disk_read = True
        for key, config in choices.read_cache(choices.cache_path()).items():
            _chosen.setdefault(key, config)


def forget() -> None:
    """Drop the choices in memory, so that the next call looks at the tables again."""
    global _disk_read
    _chosen.clear()
    _disk_read = False


# ---- launching --------------------------------------------------------------------------------------------------


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's GPU the current one: Triton launches on the current stream of the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def launch(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], config: Config, **constants: Any) -> None:
    """Start a Triton kernel with positional `args`; `config` and `constants` go in by name."""
    _launched[kernel.__name__] = (kernel[grid](*args, **config, **constants), config)


def record(kernel: str, facts: Mapping[str, Any], config: Config | None = None) -> None:
    """Note a kernel that something else than `launch` started; `facts` as in `launched_kernels`."""
    _launched[kernel] = (dict(facts), config or {})


def reset() -> None:
    """Forget what was launched."""
    _launched.clear()


def launched_kernels() -> dict[str, dict[str, Any]]:
    """What ran since `reset`, by kernel: its configuration and, from the compiler, what it needs."""
    return {name: dict(_facts(compiled, config)) for name, (compiled, config) in sorted(_launched.items())}


def _facts(compiled: Any, config: Config) -> Iterator[tuple[str, Any]]:
    yield "config", dict(config)
    if isinstance(compiled, dict):
        yield from compiled.items()
    elif compiled is not None:  # the interpreter compiles nothing
        yield "registers", compiled.n_regs
        yield "spills", compiled.n_spills
        yield "shared_bytes", compiled.metadata.shared
        yield "sha256", hashlib.sha256(compiled.asm["cubin"]).hexdigest()


def combined_hash(launched: Mapping[str, Mapping[str, Any]]) -> str:
    """A digest over the machine code of the kernels, in the order of their names; empty if there is none."""
    codes = [str(launched[name]["sha256"]) for name in sorted(launched) if "sha256" in launched[name]]
    return hashlib.sha256(" ".join(codes).encode()).hexdigest()[:16] if codes else ""
