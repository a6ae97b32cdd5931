"""Which implementation computes a pass: the one that the caller names (`choose`), or a default.

For layers with groups on a GPU that is `group_shared/cuda` or `group_shared/triton`. The first has kernels for Hopper that
win in most places, and portable ones that mostly do not. So `pick` decides a pass at a time: by what was measured on a GPU
of that name where a shape class near enough was, else by a rule (CUDA where a Hopper kernel takes the shape, else Triton).
`Choice.reason` says in words which of the two it was.

A measured entry is a choice of `gskernels.choices` under ``dispatch.<pass> <route>|<shape class>``: the nanoseconds of
both rivals, ``{"cuda_ns": ..., "triton_ns": ...}``. The route, hopper or portable, is that of the CUDA kernel: shapes of
one class that go different ways have entries of their own. Under ``<pass>_deterministic`` are the variants that sum in a
fixed order.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels import choices, tune
from gskernels.choices import Config
from gskernels.layer import Layer
from gskernels.shape import Shape
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT, IMPLEMENTATIONS, Implementation, find

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
NAMED = {name: dtype for dtype, name in DTYPES.items()}
CUDA, TRITON, TORCH = "group_shared/cuda", "group_shared/triton", "group_shared/torch"
APART = "group_shared/apart"  # one gradient after the other, each by what `pick` says
# Whose grad_input sums in no fixed order, and who does the same work in a fixed one.
DETERMINISTIC = {TRITON: "group_shared/triton_deterministic", CUDA: "group_shared/cuda_deterministic"}
ORDERED_PASSES = (GRAD_INPUT, BACKWARD)  # those that DETERMINISTIC is about; the others always have a fixed order
NOISE = 1.02  # the rivals' times are told apart beyond this ratio; below, CUDA: it needs no tuning at first use
NEAR = 3.0  # `tune.distance` up to which a measured class speaks for another
PASSES = (FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD)  # what a layer's operators compute
AUTO, AUTO_DETERMINISTIC = "auto", "auto_deterministic"  # decided when an operator runs, a pass at a time
DECIDED = (("cuda", True),)  # where the default is `AUTO`: (type of device, whether labels share lists)
# Elsewhere, and for other passes: the first that can run.
PREFERENCE = {
    ("cuda", True): (CUDA, TRITON, TORCH),
    ("cuda", False): ("fixed_fan_in/cuda", "fixed_fan_in/triton", "fixed_fan_in/gather"),
    ("cpu", True): ("group_shared/torch",),
    ("cpu", False): ("fixed_fan_in/csr", "fixed_fan_in/embedding_bag"),
}


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
    from gskernels.group_shared import hopper, hopper_backward
    from gskernels.group_shared.portable import Machine
    from gskernels.group_shared.problem import Problem

    problem = Problem(shape.batch, shape.dim, shape.labels, shape.fan_in, shape.group_size, NAMED[dtype])
    machine = Machine(gpu.processors, gpu.shared_bytes)
    if pass_ == BACKWARD and hopper_backward.plan_of(problem, machine) is not None:
        return "hopper"
    wanted = GRAD_INPUT if deterministic and pass_ == BACKWARD else pass_  # then one gradient after the other
    return "portable" if hopper.plan_of(problem, wanted, machine) is None else "hopper"


def kernel_name(pass_: str, way: str, deterministic: bool) -> str:
    """Under which a pair of times is kept, before the shape class. way: of `route`."""
    ordered = "_deterministic" if deterministic and pass_ in ORDERED_PASSES else ""
    return f"dispatch.{pass_}{ordered} {way}"


def shape_class(shape: Shape, dtype: str) -> str:
    """As a Triton kernel's, but for L, which decides how long the parts last that one rival has and the other has not."""
    item = NAMED[dtype].itemsize
    rows = "narrow" if shape.fan_in * item % 16 else "ragged" if shape.labels * item % 16 else "aligned"
    return tune.shape_class(batch=max(1, shape.batch), dim=shape.dim, labels=shape.labels, fan_in=shape.fan_in,
                            group_size=shape.group_size, dtype=NAMED[dtype], rows=rows, label_base=2)  # fmt: skip


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
    found = _nearest(pass_, shape, dtype, gpu, table, deterministic)
    if found is not None:
        times, where = found
        ratio = times["cuda_ns"] / times["triton_ns"]
        if pass_ == BACKWARD and not deterministic:
            each = [_nearest(one, shape, dtype, gpu, table, False) for one in (GRAD_INPUT, GRAD_WEIGHT)]
            apart = sum(min(one[0]["cuda_ns"], one[0]["triton_ns"]) if one else math.inf for one in each)
            if apart * NOISE < min(times["cuda_ns"], times["triton_ns"]):
                share = apart / times["triton_ns"]
                return Choice(APART, f"one gradient after the other takes {share:.2f} x {triton} {where}")
        return Choice(triton if ratio > NOISE else cuda, f"{cuda} takes {ratio:.2f} x {triton} {where}")
    if way == "hopper":
        return Choice(cuda, f"not measured near this shape on {gpu.name}; a Hopper kernel takes it")
    return Choice(triton, f"not measured near this shape on {gpu.name}; no Hopper kernel takes it")


def _nearest(
    pass_: str, shape: Shape, dtype: str, gpu: Gpu, table: Mapping[str, Config], deterministic: bool
) -> tuple[Config, str] | None:
    """The times of both rivals at the nearest measured class of that route, and where that is; None if none is near."""
    kernel = kernel_name(pass_, route(pass_, shape, dtype, gpu, deterministic), deterministic)
    wanted = shape_class(shape, dtype)
    found = {key.split("|")[1]: times for key, times in table.items() if key.split("|")[0] == kernel}
    nearest = min(found, key=lambda one: (tune.distance(wanted, one), one), default=None)
    if nearest is None or tune.distance(wanted, nearest) > NEAR:
        return None
    return found[nearest], "at this shape class" if nearest == wanted else f"at the nearest shape class, {nearest}"


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


# ---- for operators ----------------------------------------------------------------------------------------------


def implementation_for(name: str, pass_: str, operand: Tensor, layer: Layer) -> Implementation:
    """The implementation of that name; for `AUTO` what `pick` says. operand: x or grad_out of the pass."""
    if name not in (AUTO, AUTO_DETERMINISTIC):
        return find(name)
    sizes = layer.sparse
    shape = Shape(operand.shape[0], sizes.dim, sizes.labels, sizes.fan_in, sizes.group_size)
    dtype, deterministic = DTYPES[operand.dtype], name == AUTO_DETERMINISTIC
    return find(on_device(pass_, shape, dtype, operand.get_device(), deterministic).implementation)


def choose(shape: Shape, dtype: str, device: str, implementation: str | None) -> str:
    """The name that an operator is given: the named implementation, or the default. `AUTO` leaves it to `pick`.

    Raises ValueError where the named one, or every default, cannot run.
    """
    if implementation is not None:
        known: list[Implementation] = [i for i in IMPLEMENTATIONS if i.layout == "sparse" and FORWARD in i.passes]
        if implementation not in [i.name for i in known]:
            names = ", ".join(i.name for i in known)
            raise ValueError(f"implementation {implementation!r} is no sparse layer with a forward; use {names}")
        reason = find(implementation).unsupported(shape, FORWARD, dtype, device)
        if reason is not None:
            raise ValueError(f"implementation {implementation!r} cannot run here: {reason}")
        return implementation
    # A branch: where torch.compile knows the group size as a symbol alone, a comparison with it would be no key.
    place = (device, True) if shape.group_size > 1 else (device, False)
    if place in DECIDED:
        return AUTO
    reasons = []
    for name in PREFERENCE.get(place, (TORCH,)):
        found = [find(name).unsupported(shape, pass_, dtype, device) for pass_ in PASSES]
        if not any(found):
            return name
        reasons += [reason for reason in found if reason][:1]
    raise ValueError("no implementation can run here: " + "; ".join(reasons))


def backward_of(chosen: str) -> str:
    """Who computes the gradients of a layer whose forward `chosen` computes: in a fixed order, if torch is told so."""
    if not torch.are_deterministic_algorithms_enabled():
        return chosen
    return AUTO_DETERMINISTIC if chosen == AUTO else DETERMINISTIC.get(chosen, chosen)


def explain(
    shape: Shape, dtype: str = "bf16", device: torch.device | str = "cuda", *, implementation: str | None = None,
    deterministic: bool | None = None,
) -> dict[str, Choice]:  # fmt: skip
    """What `linear` runs for a layer of that shape, a pass at a time, and why.

        explain(Shape(batch=256, dim=768, labels=655_360, fan_in=64, group_size=32))["forward"]
        # Choice(implementation="group_shared/cuda", reason="group_shared/cuda takes 0.87 x group_shared/triton ...")

    `backward` is both gradients at once; `grad_input` and `grad_weight` run where only one is wanted.

    Args:
        dtype: "fp32", "fp16" or "bf16". device: a CUDA device has to be there.
        implementation: as for `linear`.
        deterministic: whether sums must have a fixed order; by default what torch is told now.

    Raises ValueError as `choose` does, and for an unknown dtype.
    """
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES.values())}, got {dtype!r}")
    device = torch.device(device)
    chosen = choose(shape, dtype, device.type, implementation)
    ordered = torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic
    if chosen == AUTO:
        if not torch.cuda.is_available():
            raise ValueError("torch sees no CUDA device here")
        index = torch.cuda.current_device() if device.index is None else device.index
        return {pass_: on_device(pass_, shape, dtype, index, ordered) for pass_ in PASSES}
    why = f"the default on {device.type}" if implementation is None else "asked for"
    backward = DETERMINISTIC.get(chosen, chosen) if ordered else chosen
    return {p: Choice(backward if p in ORDERED_PASSES else chosen, why) for p in PASSES}
