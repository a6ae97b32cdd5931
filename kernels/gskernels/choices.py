"""Where measured choices are kept: tables that ship for a GPU, a cache of one's own, and what makes a choice stale.

A choice is a dict of integers under ``kernel|shape class`` (`gskernels.tune`); in the cache, of all GPUs, under
``gpu|kernel|shape class``. It holds for what it was measured with, its *kind*, which the kernel's name tells:

    group_shared.forward                a Triton kernel: Triton's version and the sources of the Triton kernels
    group_shared.cuda.forward           a CUDA kernel: NVRTC's version and the sources of the CUDA kernels
    dispatch.forward portable           one against the other (`gskernels.dispatch`): both

so an edited .cu leaves Triton's choices alone. Tables that ship hold as they are: a choice that has become a little
worse is better than a measurement on the user's time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

Config = dict[str, int]
VERSION = 2  # 1: one stamp for the whole file, of Triton alone
PACKAGE = Path(__file__).parent
SOURCES = {
    "triton": ("*triton*.py",),
    "cuda": ("*.cu", "*.cuh", "cuda*.py", "hopper*.py", "portable*.py", "launch.py"),
}


def kind_of(kernel: str) -> str:
    """ "triton", "cuda" or "dispatch": what a choice for a kernel of that name depends on."""
    if kernel.startswith("dispatch."):
        return "dispatch"
    return "cuda" if ".cuda." in kernel else "triton"


@functools.cache
def stamp(kind: str) -> str:
    """The version of the compiler and a digest of the kernels' sources, of one kind."""
    if kind == "dispatch":
        return f"{stamp('triton')}; {stamp('cuda')}"
    compiler = _nvrtc_version() if kind == "cuda" else _triton_version()
    return f"{compiler}, kernels {digest(PACKAGE, SOURCES[kind])}"


def digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """Of the names and contents of the files below `folder` that match a pattern."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.rglob(pattern)}):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "no triton"
    return f"triton {triton.__version__}"


def _nvrtc_version() -> str:
    from gskernels.cuda import jit

    try:
        return f"nvrtc {jit.nvrtc_version()}"
    except ImportError:
        return "no nvrtc"


# ---- files ------------------------------------------------------------------------------------------------------


def table_path(gpu: str) -> Path:
    """The table that ships for a GPU of that name, or would."""
    return PACKAGE / "tuned" / f"{gpu.lower().replace(' ', '_')}.json"


@functools.cache
def packaged(gpu: str) -> dict[str, Config]:
    """The table that ships for a GPU: {"kernel|shape class": choice}; empty if there is none."""
    path = table_path(gpu)
    return parse(path.read_text()) if path.is_file() else {}


def parse(text: str, current: Callable[[str], str] | None = None) -> dict[str, Config]:
    """The choices in a table or cache; empty if it is damaged.

    current: the stamp of a kind now; choices that were measured with another are left out.
    """
    stamps, choices = _parsed(text)
    if current is None:
        return choices
    good = {kind: stamps.get(kind) == current(kind) for kind in _kinds(choices)}
    return {key: config for key, config in choices.items() if good[kind_of(_kernel(key))]}


def _parsed(text: str) -> tuple[dict[str, str], dict[str, Config]]:
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            return {}, {}
        stamps = {str(kind): str(made_with) for kind, made_with in data["valid_for"].items()}
        return stamps, {str(key): {str(k): int(v) for k, v in config.items()} for key, config in data["choices"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}, {}


def _kernel(key: str) -> str:
    """Of "kernel|shape class" or "gpu|kernel|shape class"."""
    return key.split("|")[-2] if "|" in key else key


def _kinds(choices: Mapping[str, Config]) -> set[str]:
    return {kind_of(_kernel(key)) for key in choices}


def merged(old: str, choices: Mapping[str, Config], current: Callable[[str], str] = stamp, stale: bool = False) -> str:
    """The text of a file with these choices added to those of `old`: JSON, one choice a line.

    Kinds of which nothing is added keep the stamp they had. stale: whether to keep choices that no longer hold, as
    tables that ship do.
    """
    stamps, kept = _parsed(old)
    if not stale:
        kept = parse(old, current)
    every = kept | dict(choices)
    stamps |= {kind: current(kind) for kind in _kinds(choices)}
    head = json.dumps({kind: stamps[kind] for kind in sorted(_kinds(every)) if kind in stamps})
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(config)}" for key, config in sorted(every.items()))
    return f'{{"version": {VERSION}, "valid_for": {head}, "choices": {{\n{lines}\n}}}}\n'


def cache_path() -> Path:
    return Path(os.environ.get("GSKERNELS_CACHE") or Path.home() / ".cache" / "gskernels") / "tuned.json"


def read_cache(path: Path, current: Callable[[str], str] = stamp) -> dict[str, Config]:
    """The choices on disk that hold now. Whatever is wrong with the file, the answer is only that it holds none."""
    try:
        return parse(path.read_text(), current)
    except (OSError, UnicodeDecodeError):
        return {}


def write_cache(path: Path, choices: Mapping[str, Config], current: Callable[[str], str] = stamp) -> bool:
    """Add choices to the file, less those that no longer hold. False if it cannot be written."""
    try:
        write(path, choices, current)
    except OSError:
        return False
    return True


def write(path: Path, choices: Mapping[str, Config], current: Callable[[str], str] = stamp, *, stale: bool = False) -> None:
    """As `merged`, under a temporary name first, so that no reader meets half of the file. Raises OSError."""
    try:
        old = path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        old = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(merged(old, choices, current, stale))
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
