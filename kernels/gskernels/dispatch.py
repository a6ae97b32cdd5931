"""Which implementation computes a pass of a group-shared layer on a GPU, where the caller names none.

`group_shared/cuda` has kernels for Hopper that win in most places, and portable ones that mostly do not. So `pick` decides
a pass at a time: by what was measured on a GPU of that name where a shape class near enough was, else by a rule (CUDA
where a Hopper kernel takes the shape, else Triton). `Choice.reason` says in words which of the two it was.

A measured entry is a choice of `gskernels.choices` under ``dispatch.<pass> <route>|<shape class>``: the nanoseconds of
both rivals, ``{"cuda_ns": ..., "triton_ns": ...}``. The route, hopper or portable, is that of the CUDA kernel: shapes of
one class that go different ways have entries of their own. Under ``<pass>_deterministic`` are the variants that sum in a
fixed order.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gskernels import choices, tune
from gskernels.choices import Config
from gskernels.table import BACKWARD, GRAD_INPUT, Shape, find

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CUDA, TRITON, TORCH = "group_shared/cuda", "group_shared/triton", "group_shared/torch"
# Whose grad_input sums in no fixed order, and who does the same work in a fixed one.
DETERMINISTIC = {TRITON: "group_shared/triton_deterministic", CUDA: "group_shared/cuda_deterministic"}
ORDERED_PASSES = (GRAD_INPUT, BACKWARD)  # those that DETERMINISTIC is about; the others always have a fixed order
NOISE = 1.02  # the rivals' times are told apart beyond this ratio; below, CUDA: it needs no tuning at first use
NEAR = 3.0  # `tune.distance` up to which a measured class speaks for another


@dataclass(frozen=True)
class Choice:
    """The implementation of a pass, and why, in words."""

    implementation: str
    reason: str


@dataclass(frozen=True)
class Gpu:
    """What a choice depends on. processors and shared_bytes: as in a plan; capability: such as (9, 0)."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared_bytes: int
    cuda: bool = True  # whether the CUDA kernels can be compiled
    triton: bool = True


def rivals(pass_: str, deterministic: bool) -> tuple[str, str]:
    """(CUDA's, Triton's) implementation of a pass."""
    if deterministic and pass_ in ORDERED_PASSES:
        return DETERMINISTIC[CUDA], DETERMINISTIC[TRITON]
    return CUDA, TRITON


def route(pass_: str, shape: Shape, dtype: str, gpu: Gpu, deterministic: bool = False) -> str:
    """ "hopper" where group_shared/cuda would run a kernel for that generation, else "portable"."""
    if gpu.capability != (9, 0) or not gpu.cuda:
        return "portable"
    from gskernels.group_shared import hopper
    from gskernels.group_shared.portable import Machine
    from gskernels.group_shared.problem import Problem

    problem = Problem(shape.batch, shape.dim, shape.labels, shape.fan_in, shape.group_size, DTYPES[dtype])
    machine = Machine(gpu.processors, gpu.shared_bytes)
    wanted = GRAD_INPUT if deterministic and pass_ == BACKWARD else pass_  # then one gradient after the other, always
    return "portable" if hopper.plan_of(problem, wanted, machine) is None else "hopper"


def kernel_name(pass_: str, way: str, deterministic: bool) -> str:
    """Under which a pair of times is kept, before the shape class. way: of `route`."""
    ordered = "_deterministic" if deterministic and pass_ in ORDERED_PASSES else ""
    return f"dispatch.{pass_}{ordered} {way}"


def shape_class(shape: Shape, dtype: str) -> str:
    """As a Triton kernel's, but for L, which decides how long the parts last that one rival has and the other has not."""
    item = DTYPES[dtype].itemsize
    rows = "narrow" if shape.fan_in * item % 16 else "ragged" if shape.labels * item % 16 else "aligned"
    return tune.shape_class(batch=max(1, shape.batch), dim=shape.dim, labels=shape.labels, fan_in=shape.fan_in,
                            group_size=shape.group_size, dtype=DTYPES[dtype], rows=rows, label_base=2)  # fmt: skip


def pick(pass_: str, shape: Shape, dtype: str, gpu: Gpu, table: Mapping[str, Config], deterministic: bool = False) -> Choice:
    """The implementation of one pass on that GPU. Pure.

    table: {"dispatch.<pass> <route>|<shape class>": {"cuda_ns", "triton_ns"}} of that GPU; other entries are passed over.
    deterministic: whether sums must have a fixed order.
    """
    cuda, triton = rivals(pass_, deterministic)
    for name, other, there, package in ((triton, cuda, gpu.cuda, "cuda-core"), (cuda, triton, gpu.triton, "triton")):
        if not there:  # `other` is the one that cannot run
            if not (gpu.cuda or gpu.triton):
                return Choice(TORCH, "neither triton nor cuda-core is installed")
            return Choice(name, f"{other} cannot run: {package} is not installed")
    way = route(pass_, shape, dtype, gpu, deterministic)
    kernel, wanted = kernel_name(pass_, way, deterministic), shape_class(shape, dtype)
    found = {key.split("|")[1]: times for key, times in table.items() if key.split("|")[0] == kernel}
    nearest = min(found, key=lambda one: (tune.distance(wanted, one), one), default=None)
    if nearest is not None and tune.distance(wanted, nearest) <= NEAR:
        ratio = found[nearest]["cuda_ns"] / found[nearest]["triton_ns"]
        where = "at this shape class" if nearest == wanted else f"at the nearest shape class, {nearest}"
        return Choice(triton if ratio > NOISE else cuda, f"{cuda} takes {ratio:.2f} x {triton} {where}")
    if way == "hopper":
        return Choice(cuda, f"not measured near this shape on {gpu.name}; a Hopper kernel takes it")
    return Choice(triton, f"not measured near this shape on {gpu.name}; no Hopper kernel takes it")


# ---- on this machine --------------------------------------------------------------------------------------------


@functools.cache
def gpu_of(index: int) -> Gpu:
    """CUDA device `index`."""
    found = torch.cuda.get_device_properties(index)
    return Gpu(
        found.name, (found.major, found.minor), found.multi_processor_count,
        found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        _can_compile(), importlib.util.find_spec("triton") is not None,
    )  # fmt: skip


def _can_compile() -> bool:
    try:
        from gskernels.cuda import jit, launch  # noqa: F401

        jit.nvrtc_version()
    except ImportError:
        return False
    return True


@functools.cache
def measured(name: str) -> dict[str, Config]:
    """What was measured on GPUs of that name: the table that ships, and before it what the cache on disk holds."""
    own = choices.read_cache(choices.cache_path())
    mine = {key.split("|", 1)[1]: times for key, times in own.items() if key.split("|")[0] == name}
    both = {**choices.packaged(name), **mine}
    return {key: times for key, times in both.items() if choices.kind_of(key) == "dispatch"}


@functools.lru_cache(maxsize=4096)
def on_device(pass_: str, shape: Shape, dtype: str, index: int, deterministic: bool) -> Choice:
    """`pick` for CUDA device `index` of this machine, and what is known of it."""
    gpu = gpu_of(index)
    choice = pick(pass_, shape, dtype, gpu, measured(gpu.name), deterministic)
    reason = find(choice.implementation).unsupported(shape, pass_, dtype, "cuda")
    return choice if reason is None else Choice(TORCH, reason)


def forget() -> None:
    """Look at the tables again."""
    measured.cache_clear()
    on_device.cache_clear()
