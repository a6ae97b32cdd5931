"""Which tile sizes a kernel runs with, and a record of what was launched.

A configuration is a dict of integers: the kernel's tile constants, and `num_warps` and `num_stages`. `choose` looks
for the one of a (GPU, kernel, shape class) in this order:

1. the table that ships with the package, `tuned/<gpu>.json`;
2. choices measured earlier: in memory, then on disk in ``${GSKERNELS_CACHE:-~/.cache/gskernels}/tuned.json``, valid
   for the Triton version and the kernel sources that they were measured with;
3. where the GPU has a table, the nearest shape class in it, so that nobody waits on a GPU that was tuned for;
4. a measurement on the caller's own arguments, with cold caches (`GSKERNELS_TUNE=off` forbids it, `full` prefers it
   to step 3);
5. the first candidate: where measuring is impossible (no GPU, the interpreter, CUDA-graph capture).

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
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Config = dict[str, int]
CACHE_VERSION = 1
SAMPLES = 7
FLUSH_BYTES = 256 << 20  # read before each sample: more than any level-2 cache holds

_chosen: dict[str, Config] = {}  # full key -> configuration
_launched: dict[str, tuple[Any, Config]] = {}  # kernel -> (compiled kernel or its facts, configuration)
_disk_read = False


# ---- shape classes ----------------------------------------------------------------------------------------------


def shape_class(
    *, batch: int, dim: int, labels: int, fan_in: int, group_size: int, dtype: torch.dtype, rows: str = "aligned"
) -> str:
    """The name under which shapes share a configuration: sizes rounded up to powers of two, L to powers of 16.

    rows: a word for what tells shapes of the same sizes apart, such as rows of a length that 16-byte pieces do not fit.
    """
    many = 16 ** math.ceil(math.log(labels, 16) - 1e-9)
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
) -> Config:
    """The configuration for `kernel` at a shape class; `run(config)` makes the call that is timed.

    candidates: the first is the default. like: a tensor on the device in question. legal: whether a configuration
    from a table fits the actual shape. measure: False never times (for results that must not depend on noise).
    """
    full = f"{gpu_name(like)}|{kernel}|{shape}"
    if full in _chosen and legal(_chosen[full]):
        return _chosen[full]
    table = packaged(gpu_name(like))
    found: Config | None = table.get(f"{kernel}|{shape}")
    mode = os.environ.get("GSKERNELS_TUNE", "auto")
    measurable = measure and mode != "off" and can_measure(like) and len(candidates) > 1
    if found is None and measure:
        _read_disk_once()
        found = _chosen.get(full)
    if found is None and not (measurable and mode == "full"):
        found = nearest(table, kernel, shape, legal)
    if found is not None and legal(found):
        _chosen[full] = found
        return found
    if measurable:
        _chosen[full] = fastest(candidates, run, like)
        _write_disk({full: _chosen[full]})
        return _chosen[full]
    return candidates[0]  # not kept: the next call may be able to measure


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


def fastest(candidates: Sequence[Config], run: Callable[[Config], object], like: Tensor) -> Config:
    """Time every candidate on the current stream, caches cold, and return the one of the lowest median."""
    timed: list[tuple[float, int]] = []
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=like.device)
    for number, config in enumerate(candidates):
        try:
            run(config)
        except Exception as error:  # does not fit this GPU (shared memory, registers): another one will
            if type(error).__name__ not in ("OutOfResources", "PTXASError", "CompilationError"):
                raise
            continue
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(SAMPLES)]
        for start, stop in events:
            flush.max()
            start.record()
            run(config)
            stop.record()
        events[-1][1].synchronize()
        timed.append((sorted(start.elapsed_time(stop) for start, stop in events)[SAMPLES // 2], number))
    return dict(candidates[min(timed)[1]]) if timed else dict(candidates[0])


# ---- where choices are kept -------------------------------------------------------------------------------------


@functools.cache
def packaged(gpu: str) -> dict[str, Config]:
    """The table that ships for a GPU: {"kernel|shape class": configuration}; empty if there is none."""
    path = Path(__file__).with_name("tuned") / f"{gpu.lower().replace(' ', '_')}.json"
    return parse(path.read_text(), None) if path.is_file() else {}


def parse(text: str, valid_for: str | None) -> dict[str, Config]:
    """The choices in a cache or table; empty if it is damaged or was measured with something else than `valid_for`."""
    try:
        data = json.loads(text)
        if data["version"] != CACHE_VERSION or (valid_for is not None and data["valid_for"] != valid_for):
            return {}
        return {str(key): {str(k): int(v) for k, v in config.items()} for key, config in data["choices"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def dump(choices: Mapping[str, Config], valid_for: str) -> str:
    """JSON with one choice a line."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(config)}" for key, config in sorted(choices.items()))
    return f'{{"version": {CACHE_VERSION}, "valid_for": {json.dumps(valid_for)}, "choices": {{\n{lines}\n}}}}\n'


def cache_path() -> Path:
    return Path(os.environ.get("GSKERNELS_CACHE") or Path.home() / ".cache" / "gskernels") / "tuned.json"


@functools.cache
def fingerprint() -> str:
    """Triton's version and a digest of the kernel sources: what a measured choice depends on."""
    try:
        import triton

        version = str(triton.__version__)
    except ImportError:
        version = "none"
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*triton*.py")):
        digest.update(path.read_bytes())
    return f"triton {version}, kernels {digest.hexdigest()[:16]}"


def read_cache(path: Path, valid_for: str) -> dict[str, Config]:
    """The choices on disk. Whatever is wrong with the file, the answer is only that it holds none."""
    try:
        return parse(path.read_text(), valid_for)
    except (OSError, UnicodeDecodeError):
        return {}


def write_cache(path: Path, choices: Mapping[str, Config], valid_for: str) -> bool:
    """Add choices to the file: read, merge, write to a temporary name, rename. False if that is not possible."""
    merged = read_cache(path, valid_for) | dict(choices)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(dump(merged, valid_for))
            os.replace(name, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError:
        return False
    return True


def _read_disk_once() -> None:
    global _disk_read
    if not _disk_read:
        _disk_read = True
        for key, config in read_cache(cache_path(), fingerprint()).items():
            _chosen.setdefault(key, config)


def _write_disk(choices: Mapping[str, Config]) -> None:
    write_cache(cache_path(), choices, fingerprint())


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
