"""CUDA C++ to machine code with NVRTC: no nvcc, and for compiling neither a GPU nor a driver.

    binary = compile("fixed_fan_in/cuda.cu", "sm_90a", {"K": 64, "T": "__nv_bfloat16"})
    binary.cubin, binary.sha256, binary.kernels["forward"].registers

Sources are package data. `#include "common.cuh"` finds gskernels/cuda/common.cuh and headers beside the source;
`#include <cuda_bf16.h>` finds the CUDA runtime's headers. Kernels are `extern "C"`, variants are macros.

Binaries are kept in ``${GSKERNELS_CACHE:-~/.cache/gskernels}/cubin/``, by a digest of everything they are made from.
A damaged file there is compiled again, and a folder that cannot be written to is done without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
SHARED_HEADERS = Path(__file__).parent
CACHE_VERSION = 1
_import_lock = threading.Lock()
Defines = Mapping[str, int | str]

INSTALL = (
    "CUDA kernels are compiled with cuda-core, cuda-bindings and NVRTC, the first two of the CUDA version that torch was "
    "built for: pip install cuda-core cuda-bindings cuda-pathfinder nvidia-cuda-nvrtc nvidia-cuda-runtime"
)


class CompileError(RuntimeError):
    """A source that NVRTC refuses; the message holds its log."""


@dataclass(frozen=True)
class Resources:
    """What the assembler says a kernel needs, a thread or a block of it.

    registers: a thread. spills: bytes a thread stores and loads for want of registers. stack: bytes a thread keeps in
    local memory, spills included. shared_bytes: shared memory of fixed size, a block.
    """

    registers: int
    spills: int
    stack: int
    shared_bytes: int


@dataclass(frozen=True)
class Binary:
    """Machine code of one source for one architecture, and its kernels by name."""

    cubin: bytes
    kernels: Mapping[str, Resources]

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.cubin).hexdigest()


def compile(source: str, arch: str, defines: Defines | None = None) -> Binary:
    """The machine code of `source`, from the cache on disk or from NVRTC (30 to 500 ms).

    Args:
        source: path within the gskernels package, such as "group_shared/portable.cu".
        arch: "sm_80", "sm_90a", ...; see `arch_of`.
        defines: macros by name.

    Raises:
        CompileError: the source does not compile; carries the log.
        ImportError: cuda-core, cuda-bindings, NVRTC or the CUDA headers are missing; says what to install.
    """
    macros = sorted((name, str(value)) for name, value in (defines or {}).items())
    path = cache_folder() / f"{_key(source, arch, macros)}.bin"
    binary = _read(path)
    if binary is None:
        binary = _compile(source, arch, macros)
        _write(path, binary)
    return binary


def arch_of(capability: tuple[int, int]) -> str:
    """The architecture to compile for: Hopper's own instructions (wgmma) need the "a" behind sm_90."""
    name = f"sm_{capability[0]}{capability[1]}"
    return "sm_90a" if name == "sm_90" else name


# ---- the compiler -----------------------------------------------------------------------------------------------


@functools.cache
def nvrtc_version() -> str:
    """Such as "13.0". Raises ImportError where NVRTC cannot be loaded."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # no bindings; no library
        raise ImportError(f"{INSTALL} ({str(error).splitlines()[0]})") from error
    if int(status) != 0:
        raise ImportError(f"{INSTALL} (NVRTC answers {status})")
    return f"{major}.{minor}"


@functools.cache
def cuda_headers() -> str:
    """The folder of cuda_bf16.h. Raises ImportError where there is none."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError as error:
        raise ImportError(f"{INSTALL} ({error})") from error
    found = find_nvidia_header_directory("cudart")
    if found is None:
        raise ImportError(f"{INSTALL} (no CUDA runtime headers)")
    return str(found)


def _compile(source: str, arch: str, macros: list[tuple[str, str]]) -> Binary:
    nvrtc_version()
    headers = cuda_headers()
    try:
        with _import_lock:  # cuda.core exchanges its own module while it is imported
            from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise ImportError(f"{INSTALL} ({error})") from error
    path = PACKAGE / source
    text = path.read_text()
    options = ProgramOptions(
        name=source, arch=arch, std="c++17", define_macro=macros, ptxas_options=["-v"],
        include_path=[str(path.parent), str(SHARED_HEADERS), headers],
        no_cache=True,  # what NVRTC takes from its own cache comes without the assembler's report
    )  # fmt: skip
    logs = io.StringIO()
    try:
        with contextlib.closing(Program(text, "c++", options)) as program:
            code = program.compile("cubin", logs=logs).code
    except Exception as error:  # NVRTCError, whose place differs between versions of cuda-core
        what = ", ".join([arch, *(f"{name}={value}" for name, value in macros)])
        log = "\n".join(text for text in (logs.getvalue().strip(), str(error).strip()) if text)
        raise CompileError(f"{source} does not compile for {what}:\n{log}") from None
    return Binary(bytes(code), parse_log(logs.getvalue()))


_NEEDS = re.compile(r"(\d+) (bytes stack|bytes spill stores|bytes spill loads|bytes smem|registers)")


def parse_log(log: str) -> dict[str, Resources]:
    """The kernels in the report of `ptxas -v`."""
    kernels = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        used = {word: int(number) for number, word in _NEEDS.findall(part)}
        kernels[part.split("'")[0]] = Resources(
            registers=used.get("registers", 0),
            spills=used.get("bytes spill stores", 0) + used.get("bytes spill loads", 0),
            stack=used.get("bytes stack", 0),
            shared_bytes=used.get("bytes smem", 0),
        )
    return kernels


# ---- the cache --------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    return Path(os.environ.get("GSKERNELS_CACHE") or Path.home() / ".cache" / "gskernels") / "cubin"


def texts(source: str) -> dict[str, str]:
    """The source and every project header that it includes, directly or not, by path."""
    found: dict[str, str] = {}
    wanted = [PACKAGE / source]
    while wanted:
        path = wanted.pop()
        if str(path) in found:
            continue
        found[str(path)] = text = path.read_text()
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
            places = [folder / name for folder in (path.parent, (PACKAGE / source).parent, SHARED_HEADERS)]
            wanted += [place for place in places if place.is_file()][:1]
    return found


def _key(source: str, arch: str, macros: list[tuple[str, str]]) -> str:
    parts = [CACHE_VERSION, nvrtc_version(), arch, macros, list(texts(source).values())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> Binary | None:
    """What `_write` left there; None for whatever else is there, or nothing."""
    try:
        header, cubin = path.read_bytes().split(b"\n", 1)
        facts = json.loads(header)
        binary = Binary(cubin, {name: Resources(**used) for name, used in facts["kernels"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return binary if binary.sha256 == facts["sha256"] else None


def _write(path: Path, binary: Binary) -> None:
    """One line of JSON, then the machine code; under a temporary name first, so that no reader meets half a file."""
    facts = {"sha256": binary.sha256, "kernels": {name: asdict(used) for name, used in binary.kernels.items()}}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(facts).encode() + b"\n" + binary.cubin)
            os.replace(name, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
