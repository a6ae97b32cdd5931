"""Load compiled kernels into the driver and start them on the current stream.

    forward = kernel("fixed_fan_in/cuda.cu", "forward", {"K": 64}, x.get_device())
    with tune.device_of(x):
        forward.launch(grid, 256, (x, y, batch, I64(labels), scale), shared_bytes=98304)

A kernel is compiled and loaded once a (device, source, name, defines). After its first launch with the most shared
memory it needs, launches touch no driver resource, so they can be captured in a CUDA graph. Every answer of the driver
is checked. Each launch is noted with `tune.record`.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gskernels import tune
from gskernels.choices import Config
from gskernels.cuda import jit

try:
    from cuda.bindings import driver
except ImportError as error:
    raise ImportError(f"{jit.INSTALL} ({error})") from error

Dim = int | tuple[int, ...]
_SUCCESS = driver.CUresult.CUDA_SUCCESS
_NO_CONTEXT = (driver.CUresult.CUDA_ERROR_INVALID_CONTEXT, driver.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED)
_lock = threading.Lock()
_kernels: dict[tuple[Any, ...], Kernel] = {}


class LaunchError(RuntimeError):
    """An error that the driver reports; the message names the kernel, the call and the error."""


class I64(int):
    """An argument that the kernel declares as a 64-bit integer; a plain int is a 32-bit one."""


class TensorMap:
    """How the copy engine sees a matrix; a `const __grid_constant__ TensorMap` argument. Made by `tensor_map`."""

    __slots__ = ("_map", "address")

    def __init__(self, encoded: Any) -> None:
        self._map = encoded
        self.address = int(encoded.getPtr())


Argument = Tensor | int | float | TensorMap | None


class Kernel:
    """A kernel on one device.

    binary: the machine code it is part of. resources: its registers, spills, stack and static shared memory.
    """

    def __init__(self, binary: jit.Binary, name: str, config: Config, device_index: int) -> None:
        """Loads the machine code. Raises LaunchError where the driver refuses it, KeyError without such a kernel."""
        self.name, self.binary, self.config, self.device_index = name, binary, config, device_index
        self.resources = binary.kernels[name]
        self._facts: dict[int, dict[str, Any]] = {}
        self._beside = False
        self._shared_limit = 48 * 1024 - self.resources.shared_bytes  # what a block may have unasked
        _make_current(device_index)
        self._module = _checked(name, "cuModuleLoadData", driver.cuModuleLoadData(binary.cubin))
        self._function = _checked(name, "cuModuleGetFunction", driver.cuModuleGetFunction(self._module, name.encode()))

    def launch(
        self, grid: Dim, block: Dim, args: Sequence[Argument], shared_bytes: int = 0, cluster: int = 1,
        cooperative: bool = False, early: bool = False, beside: bool = False,
    ) -> None:  # fmt: skip
        """Start it on the current stream of its device, which must be the current device (`tune.device_of`).

        Args:
            grid: blocks, up to three numbers. block: threads, likewise.
            args: a Tensor is its address and None a null pointer; int, `I64`, float (32 bits), TensorMap.
            shared_bytes: dynamic shared memory of a block.
            cluster: blocks of a cluster, along x; the grid is a multiple of it.
            cooperative: all blocks run at the same time, or it does not start; not with clusters.
            early: it may start while the kernel before it on the stream runs, once that says so (common.cuh: `start_next`),
                and itself waits for what it reads of it (`wait_for_earlier`); sm_90 and newer, not with `cooperative`.
            beside: multiprocessors give it no more L1 than blocks with the most shared memory leave, so that such blocks of
                the next kernel need not wait until its own have ended.

        Raises:
            LaunchError: the driver's error.
            TypeError, OverflowError: arguments that no kernel can take.
        """
        if shared_bytes > self._shared_limit:
            self._raise_limit(shared_bytes)
        if beside and not self._beside:
            self._leave_shared_memory()
        stream = torch._C._cuda_getCurrentRawStream(self.device_index)  # a third of the time of current_stream()
        # Eight bytes an argument, of which the driver reads as many as the kernel declares, and a pointer to each.
        words = (ctypes.c_uint64 * len(args))(*[_word(value) for value in args])
        first = ctypes.addressof(words)
        places = (ctypes.c_void_p * len(args))(
            *[v.address if type(v) is TensorMap else first + 8 * i for i, v in enumerate(args)]
        )
        packed = ctypes.addressof(places)
        status = self._start(grid, block, shared_bytes, cluster, cooperative, early, stream, packed)
        if status in _NO_CONTEXT:  # a thread that has not used the GPU yet
            _make_current(self.device_index)
            status = self._start(grid, block, shared_bytes, cluster, cooperative, early, stream, packed)
        if status != _SUCCESS:
            shape = f"grid {grid}, block {block}, cluster {cluster}, {shared_bytes} bytes of shared memory"
            raise LaunchError(f"{self.name} does not start: {_text(status)} ({shape})")
        facts = self._facts.get(shared_bytes)
        if facts is None:
            facts = self._facts[shared_bytes] = self._describe(shared_bytes)
        tune.record(self.name, facts, self.config)

    def blocks_per_sm(self, block: int, shared_bytes: int = 0) -> int:
        """How many of its blocks a multiprocessor holds at once."""
        if shared_bytes > self._shared_limit:
            self._raise_limit(shared_bytes)
        answer = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(self._function, block, shared_bytes)
        return int(_checked(self.name, "cuOccupancyMaxActiveBlocksPerMultiprocessor", answer))

    def _describe(self, shared_bytes: int) -> dict[str, Any]:
        facts = asdict(self.resources)
        del facts["stack"]
        return {**facts, "shared_bytes": self.resources.shared_bytes + shared_bytes, "sha256": self.binary.sha256}

    def _raise_limit(self, shared_bytes: int) -> None:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        what = f"cuFuncSetAttribute({shared_bytes} bytes of shared memory)"
        _checked(self.name, what, driver.cuFuncSetAttribute(self._function, attribute, shared_bytes))
        self._shared_limit = shared_bytes

    def _leave_shared_memory(self) -> None:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        _checked(self.name, "cuFuncSetAttribute(carveout)", driver.cuFuncSetAttribute(self._function, attribute, 100))
        self._beside = True

    def _start(
        self, grid: Dim, block: Dim, shared_bytes: int, cluster: int, cooperative: bool, early: bool, stream: int, args: int
    ) -> Any:
        if cooperative:
            sizes = (*_three(grid), *_three(block), shared_bytes)
            return driver.cuLaunchCooperativeKernel(self._function, *sizes, stream, args)[0]
        if cluster == 1 and not early:
            return driver.cuLaunchKernel(self._function, *_three(grid), *_three(block), shared_bytes, stream, args, 0)[0]
        config = _configuration(grid, block, shared_bytes, cluster, early, stream)
        return driver.cuLaunchKernelEx(config, self._function, args, 0)[0]


def _word(value: Argument) -> int:
    """The argument as the low bytes of a 64-bit word. Raises TypeError or OverflowError where it cannot be one."""
    if isinstance(value, Tensor):
        if not value.is_cuda:
            raise TypeError(f"a kernel takes tensors on a GPU, not one on {value.device}")
        return value.data_ptr()
    if isinstance(value, int):
        if not isinstance(value, I64) and not -(2**31) <= value < 2**31:
            raise OverflowError(f"argument {value} does not fit 32 bits and is not marked I64")
        return value & 0xFFFF_FFFF_FFFF_FFFF
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<f", value), "little")
    if value is None or isinstance(value, TensorMap):
        return 0
    raise TypeError(f"a kernel takes no argument of type {type(value).__name__}")


def kernel(source: str, name: str, defines: jit.Defines, device_index: int) -> Kernel:
    """The kernel `name` of `source` (a path within the package), compiled for and loaded on a device, once.

    Its numeric defines are the configuration under which its launches are recorded. Raises as `jit.compile` does, and
    LaunchError.
    """
    key = (device_index, source, name, tuple(sorted(defines.items())))
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                arch = jit.arch_of(torch.cuda.get_device_capability(device_index))
                config = {macro: value for macro, value in defines.items() if isinstance(value, int)}
                found = _kernels[key] = Kernel(jit.compile(source, arch, defines), name, config, device_index)
    return found


@functools.cache
def shared_bytes_limit(device_index: int) -> int:
    """Shared memory that a block may have, in bytes."""
    device = _checked("a kernel", "cuDeviceGet", driver.cuDeviceGet(device_index))
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    return int(_checked("a kernel", "cuDeviceGetAttribute", driver.cuDeviceGetAttribute(attribute, device)))


# ---- tensor maps ------------------------------------------------------------------------------------------------

_SWIZZLE = {
    0: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_NONE,
    32: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_32B,
    64: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
    128: driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
}
_TYPE = {
    torch.float32: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    torch.float16: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    torch.bfloat16: driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
}


def tensor_map(
    base: Tensor | int, dims: Sequence[int], strides_bytes: Sequence[int], box: Sequence[int], swizzle: int = 0,
    dtype: torch.dtype | None = None,
) -> TensorMap:  # fmt: skip
    """A map of a row-major array for the copy engine (sm_90 and newer).

    Args:
        base: the tensor, or the address of its first element; on 16 bytes.
        dims: elements along each axis, the contiguous one first. What a box covers beyond them reads as zero.
        strides_bytes: of every axis but the first; multiples of 16.
        box: elements of one copy, along each axis; at most 256.
        swizzle: 0, 32, 64 or 128 bytes, which a row of the box must not exceed.
        dtype: fp32, fp16 or bf16; that of the tensor if not given.

    Raises LaunchError with these numbers where the driver refuses them.
    """
    address = base.data_ptr() if isinstance(base, Tensor) else base
    dtype = base.dtype if dtype is None and isinstance(base, Tensor) else dtype
    if dtype not in _TYPE or swizzle not in _SWIZZLE:
        raise ValueError(f"no tensor map of {dtype} with a swizzle of {swizzle}; use {list(_TYPE)} and {list(_SWIZZLE)}")
    return _tensor_map(address, tuple(dims), tuple(strides_bytes), tuple(box), swizzle, dtype)


@functools.lru_cache(maxsize=512)  # a map holds nothing but these numbers; encoding one takes longer than a launch
def _tensor_map(
    address: int, dims: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int, dtype: torch.dtype
) -> TensorMap:
    answer = driver.cuTensorMapEncodeTiled(
        _TYPE[dtype], len(dims), address, [driver.cuuint64_t(d) for d in dims], [driver.cuuint64_t(s) for s in strides],
        [driver.cuuint32_t(b) for b in box], [driver.cuuint32_t(1)] * len(dims),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, _SWIZZLE[swizzle],
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip
    what = f"dims {dims}, strides {strides}, box {box}, swizzle {swizzle}, {dtype} at {address:#x}"
    return TensorMap(_checked(f"a tensor map ({what})", "cuTensorMapEncodeTiled", answer))


# ---- the driver -------------------------------------------------------------------------------------------------


def _three(n: Dim) -> tuple[int, ...]:
    return (n, 1, 1) if isinstance(n, int) else (*n, 1, 1)[:3]


@functools.lru_cache(maxsize=512)
def _configuration(grid: Dim, block: Dim, shared_bytes: int, cluster: int, early: bool, stream: int) -> Any:
    config, kinds = driver.CUlaunchConfig(), driver.CUlaunchAttributeID
    config.gridDimX, config.gridDimY, config.gridDimZ = _three(grid)
    config.blockDimX, config.blockDimY, config.blockDimZ = _three(block)
    config.sharedMemBytes, config.hStream = shared_bytes, driver.CUstream(stream)
    attributes = []
    if cluster > 1:
        attributes.append(driver.CUlaunchAttribute())
        attributes[-1].id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = attributes[-1].value.clusterDim
        size.x, size.y, size.z = cluster, 1, 1
    if early:
        attributes.append(driver.CUlaunchAttribute())
        attributes[-1].id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attributes[-1].value.programmaticStreamSerializationAllowed = 1
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def _make_current(device_index: int) -> None:
    """Torch works in the primary context of a device; make it this thread's."""
    torch.cuda.init()
    device = _checked("a kernel", "cuDeviceGet", driver.cuDeviceGet(device_index))
    context = _checked("a kernel", "cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(device))
    _checked("a kernel", "cuCtxSetCurrent", driver.cuCtxSetCurrent(context))


def _checked(name: str, what: str, answer: tuple[Any, ...]) -> Any:
    if answer[0] != _SUCCESS:
        raise LaunchError(f"{what} for {name} failed: {_text(answer[0])}")
    return answer[1] if len(answer) > 1 else None


def _text(status: Any) -> str:
    _, explanation = driver.cuGetErrorString(status)
    return f"{status.name} ({explanation.decode()})" if explanation else str(status.name)
