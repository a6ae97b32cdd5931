"""What a case's kernels need, from the compiler alone: the case is launched on tensors without data, as if on a GPU.

Runs in a process of its own (`runner`): while it lasts, torch's answers about the GPU, and the functions that start
kernels, are stood in for. Kernels that come with torch (cuBLAS and so on) are not ours to compile and stay unseen.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gsbench.case import Case, Point
from gsbench.measure.operands import DTYPES, Operands, bind
from gsbench.profile.model import StaticKernel
from gsbench.profile.occupancy import ARCHITECTURES, Architecture, occupancy
from gskernels import tune
from gskernels.cuda import jit
from gskernels.positives import Positives
from gskernels.steps import Targets
from gskernels.table import Implementation
from gskernels.topology import GroupTopology

_DEVICE = torch.device("cuda", 0)


class NotStatic(Exception):
    """Why the compiler cannot tell, in a line."""


class _Operands(Operands):
    """Operands of the right shapes and types, without values."""

    def __init__(self, point: Point) -> None:
        self.point, self.device = point, _DEVICE
        s = point.shape
        self.x = torch.empty(s.batch, s.dim, dtype=DTYPES[point.dtype], device=_DEVICE)
        self.updating = False
        pointers, labels = (torch.empty(n, dtype=torch.int64, device=_DEVICE) for n in (s.batch + 1, 5 * s.batch))
        self._targets = Targets(Positives(pointers, labels))
        self._grad_out = torch.empty(s.batch, s.labels, dtype=DTYPES[point.dtype], device=_DEVICE)
        self._dropped = torch.empty(math.ceil(s.labels / s.group_size), s.fan_in, dtype=torch.bool, device=_DEVICE)
        self._layers, self._weights, self._topologies = {}, {}, {}

    def _weight(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        return torch.empty(shape, dtype=self.x.dtype, device=_DEVICE)

    def _topology(self, labels: int, group_size: int) -> GroupTopology:
        s = self.point.shape
        index = torch.int16 if s.dim <= 2**15 else torch.int32
        indices = torch.empty(math.ceil(labels / group_size), s.fan_in, dtype=index, device=_DEVICE)
        return GroupTopology(indices, labels, s.dim, group_size)


class _Noted:
    """The launches so far, with what their kernels need."""

    def __init__(self, arch: str) -> None:
        self.arch, self.facts = arch, ARCHITECTURES[arch]
        self.kernels: dict[tuple[Any, ...], StaticKernel] = {}

    def add(
        self, name: str, grid: Any, threads: int, registers: int, spills: int | None, stack: int, shared_bytes: int,
        config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        grid = (grid,) if isinstance(grid, int) else tuple(grid)
        key = (name, grid, threads, registers, shared_bytes, tuple(sorted(config.items())))
        before = self.kernels[key].launches if key in self.kernels else 0
        holds = occupancy(self.facts, threads, registers, shared_bytes)
        self.kernels[key] = StaticKernel(
            name, self.arch, before + 1, grid, threads, registers, spills, stack, shared_bytes, holds.blocks, holds.percent,
            holds.limited_by, dict(config),
        )  # fmt: skip


class _Kernel:
    """Stands in for gskernels.cuda.launch.Kernel: compiled, and never started."""

    def __init__(self, noted: _Noted, source: str, name: str, defines: jit.Defines, device_index: int) -> None:
        self._noted, self.name = noted, name
        self.binary = jit.compile(source, noted.arch, defines)
        self.resources = self.binary.kernels[name]
        self.config = {macro: value for macro, value in defines.items() if isinstance(value, int)}

    def launch(self, grid: Any, block: Any, args: Sequence[Any], shared_bytes: int = 0, **_how: Any) -> None:
        threads = block if isinstance(block, int) else math.prod(block)
        needs = self.resources
        self._noted.add(
            self.name, grid, threads, needs.registers, needs.spills, needs.stack, needs.shared_bytes + shared_bytes,
            self.config,
        )  # fmt: skip

    def blocks_per_sm(self, block: int, shared_bytes: int = 0) -> int:
        needs = self.resources
        return occupancy(self._noted.facts, block, needs.registers, needs.shared_bytes + shared_bytes).blocks


def kernels_of(case: Case, implementation: Implementation, arch: str) -> list[StaticKernel]:
    """The kernels that the case launches on a GPU of that architecture. Raises NotStatic."""
    if "cuda" not in implementation.devices:
        raise NotStatic(f"{implementation.name} has no CUDA kernels")
    noted = _Noted(arch)
    try:
        with warnings.catch_warnings(), as_if_on(arch, noted), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")
            bind(implementation, case.pass_, _Operands(case.point))()
    except ImportError as e:
        raise NotStatic(str(e).splitlines()[0]) from None
    except Exception as e:  # whatever an implementation does that cannot be done without data
        if "not linked with support for cuda" in str(e):  # views of tensors without data, in a CPU build
            raise NotStatic("needs a CUDA build of torch (no GPU): it cuts its operands before it launches") from None
        raise NotStatic(f"cannot be launched without data: {type(e).__name__}: {str(e).splitlines()[0][:160]}") from None
    if not noted.kernels:
        raise NotStatic(f"{implementation.name} launches only kernels that come with torch (cuBLAS and so on)")
    return list(noted.kernels.values())


@contextlib.contextmanager
def as_if_on(arch: str, noted: _Noted) -> Iterator[None]:
    """Within it torch tells of that GPU, and launches are noted instead of started."""
    facts, capability = ARCHITECTURES[arch], _capability(arch)
    properties = SimpleNamespace(
        name=facts.gpu, multi_processor_count=facts.processors, shared_memory_per_block_optin=facts.block_bytes,
        major=capability[0], minor=capability[1], L2_cache_size=50 << 20, total_memory=80 << 30,
    )  # fmt: skip
    answers: list[tuple[Any, str, Any]] = [
        (torch.cuda, "get_device_properties", lambda device=None: properties),
        (torch.cuda, "get_device_capability", lambda device=None: capability),
        (torch.cuda, "get_device_name", lambda device=None: facts.gpu),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "is_current_stream_capturing", lambda: True),  # what a launch allocates is not kept for the next
        (tune, "device_of", lambda tensor: contextlib.nullcontext()),
        (tune, "can_measure", lambda like: False),
        (tune, "launch", lambda *args, **constants: _note_triton(noted, *args, **constants)),
        *_of_cuda_launches(noted, facts),
    ]
    with contextlib.ExitStack() as stack:
        _forget_the_gpu()
        stack.callback(_forget_the_gpu)
        for owner, name, answer in answers:
            stack.enter_context(mock.patch.object(owner, name, answer))
        yield


def _of_cuda_launches(noted: _Noted, facts: Architecture) -> list[tuple[Any, str, Any]]:
    """What to exchange in every module that took these functions by name; empty where CUDA cannot be launched."""
    import importlib

    try:
        from gskernels.cuda import launch
    except ImportError:
        return []
    for name in ("group_shared.cuda", "fixed_fan_in.cuda"):  # import them first, so that they take the real ones
        importlib.import_module(f"gskernels.{name}")
    answers: dict[str, Any] = {
        "kernel": lambda *args: _Kernel(noted, *args), "tensor_map": lambda *args, **options: None,
        "shared_bytes_limit": lambda device_index: facts.block_bytes,
    }  # fmt: skip
    return [
        (module, name, answer)
        for name, answer in answers.items()
        for module in list(sys.modules.values())
        if getattr(module, "__dict__", {}).get(name) is getattr(launch, name)
    ]


def _forget_the_gpu() -> None:
    """Clear what modules of the library keep about device 0."""
    for name, module in list(sys.modules.items()):
        if name.startswith("gskernels."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
    tune.forget()


def _capability(arch: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", arch)
    return int(digits[:-1]), int(digits[-1])


# ---- Triton -----------------------------------------------------------------------------------------------------

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int16: "i16", torch.int32: "i32",
          torch.int64: "i64", torch.float64: "fp64"}  # fmt: skip


def _note_triton(
    noted: _Noted, kernel: Any, grid: Any, args: Sequence[Any], config: Mapping[str, int], **constants: Any
) -> None:
    registers, stack, shared_bytes, warps = compile_triton(kernel, args, {**config, **constants}, noted.arch)
    noted.add(kernel.__name__, grid, warps * 32, registers, None, stack, shared_bytes, config)


def compile_triton(kernel: Any, args: Sequence[Any], constants: Mapping[str, Any], arch: str) -> tuple[int, int, int, int]:
    """(registers, stack bytes, shared bytes, warps), with arguments specialised as Triton's launcher would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    options = {key: constants[key] for key in ("num_warps", "num_stages") if key in constants}
    fixed = {key: value for key, value in constants.items() if key in names}
    values = dict(zip([name for name in names if name not in fixed], args, strict=True))
    fixed |= {name: 1 for name, value in values.items() if isinstance(value, int) and value == 1}
    types = {name: "constexpr" if name in fixed else _type(values[name]) for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, value in values.items()
        if name not in fixed and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0))
    }
    source = ASTSource(kernel, types, {(names.index(k),): v for k, v in fixed.items()}, aligned)
    major, minor = _capability(arch)
    binary = triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=options)
    usage = _usage(binary.asm["cubin"], Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return usage["REG"], usage["STACK"], binary.metadata.shared, binary.metadata.num_warps


def _usage(cubin: bytes, cuobjdump: Path) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([cuobjdump, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return {word: int(n) for word, n in re.findall(r"(REG|STACK):(\d+)", text)}


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
