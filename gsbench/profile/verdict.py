"""Counters in words: what bounds a kernel or a call, and what to look at next. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from gsbench.costs import ITEM_BYTES
from gsbench.profile.model import Breakdown, Bytes, KernelCounters, Profile, StaticKernel

BUSY = 60.0  # percent of its peak from which a unit is what bounds a kernel
_LAUNCH_SHARE = 0.2  # of a call's time between its kernels
_AGREE = 0.10  # modelled and measured bytes
_SHORT_US = 5.0

# What a stall waits for, and what to look at (reasons as in the Nsight Compute documentation, "Warp Stall Reasons").
_WAITS = {
    "long_scoreboard": ("data from global or local memory", "keep more loads in flight: deeper prefetch, or more warps"),
    "short_scoreboard": ("data from shared memory", "shared-memory access patterns and how early they are loaded"),
    "mio_throttle": ("room in the shared-memory queue", "fewer and wider shared-memory instructions"),
    "lg_throttle": ("room in the global-memory queue", "fewer and wider global-memory instructions"),
    "tex_throttle": ("room in the L1 queue", "fewer and wider loads"),
    "barrier": ("the other warps of its block", "smaller or fewer barriers; warps with even work"),
    "membar": ("a memory fence", "fewer fences"),
    "gmma": ("a warp-group product", "more products in flight, or operands that arrive earlier"),
    "wait": ("a fixed latency", "more independent instructions, or more warps"),
    "math_pipe_throttle": ("an arithmetic unit", "fewer instructions of that unit"),
    "dispatch_stall": ("the dispatcher", "the instruction mix"),
    "drain": ("its stores at the end", "wider, coalesced stores; fewer short blocks"),
    "no_instruction": ("instructions", "shorter code: it misses the instruction cache"),
    "branch_resolving": ("a branch", "fewer branches in the inner loop"),
    "imc_miss": ("constants", "fewer distinct constants a loop"),
    "sleeping": ("a sleep", "who it polls for"),
}


def judged(kernel: KernelCounters) -> KernelCounters:
    """With `bound` and `words`."""
    bound, words = _kernel(kernel)
    return replace(kernel, bound=bound, words=words)


def _kernel(k: KernelCounters) -> tuple[str, str]:
    units = {"DRAM": k.dram_pct, "L2": k.l2_pct, "L1 and shared memory": k.l1_pct, "tensor pipe": k.tensor_pct,
             "issue slots": k.issue_pct}  # fmt: skip
    known = {name: value for name, value in units.items() if value is not None}
    if not known:
        return "", "no counters came back"
    name, value = max(known.items(), key=lambda item: item[1])
    at = f"{name} {value:.0f} % of its peak"
    if value >= BUSY:
        if name == "tensor pipe":
            return "tensor", f"tensor-bound ({at}): only fewer products would help"
        if name == "issue slots":
            return "issue", f"bound by issuing instructions ({at}): fewer, wider instructions"
        return "memory", f"memory-bound ({at}): {_memory_next(k, name)}"
    if k.duration_us is not None and k.duration_us < _SHORT_US:
        return "latency", f"latency-bound (busiest: {at}): {k.duration_us:.1f} us is too short to fill the GPU; fuse it"
    if k.waves is not None and k.waves < 0.5:
        return "latency", f"latency-bound (busiest: {at}): {k.waves:.2f} waves leave multiprocessors empty; more blocks"
    return "latency", f"latency-bound (busiest: {at}): {_stall(k)}"


def _memory_next(k: KernelCounters, unit: str) -> str:
    if unit == "DRAM":
        return "fewer bytes, or a better share of the measured bandwidth, would help"
    if unit == "L2":
        return "fewer trips to L2: reuse from shared memory or registers, fewer reductions"
    share = conflict_share(k)
    if share is not None and share >= 0.1:
        return f"{share:.0%} of the shared-memory wavefronts are bank conflicts; look at these first"
    return "fewer or wider accesses to shared memory and L1"


def conflict_share(k: KernelCounters) -> float | None:
    """Bank conflicts as a share of all shared-memory wavefronts."""
    if not k.shared_wavefronts or k.bank_conflicts is None:
        return None
    return k.bank_conflicts / k.shared_wavefronts


def _stall(k: KernelCounters) -> str:
    """The top stall, and its remedy."""
    waiting = [s for s in k.stalls if s.reason not in ("selected", "not_selected")]
    if not waiting:
        return "no stall reason stands out"
    everything = sum(s.cycles for s in k.stalls)
    top = max(waiting, key=lambda s: s.cycles)
    what, remedy = _WAITS.get(top.reason, (top.reason, "its meaning in the Nsight Compute documentation"))
    share = conflict_share(k)
    extra = f"; {share:.0%} of the shared-memory wavefronts are bank conflicts" if share is not None and share >= 0.1 else ""
    return f"{top.cycles / everything:.0%} of a warp's time it waits for {what} ({top.reason}); {remedy}{extra}"


def verdict(profile: Profile) -> tuple[str, ...]:
    """Sentences on the whole call."""
    sentences = []
    if profile.breakdown is not None:
        sentences += _calls(profile.breakdown)
    heavy = _heaviest(profile.counters)
    if heavy is not None:
        whole = sum(k.duration_us or 0.0 for k in profile.counters)
        share = f", {heavy.duration_us / whole:.0%} of the call" if heavy.duration_us and whole else ""
        sentences.append(f"{short(heavy.name)}{share}: {heavy.words}.")
    if profile.bytes is not None:
        sentences.append(_bytes(profile.bytes, profile))
    sentences += _spills(profile.static)
    if profile.timeline is not None:
        names = sorted({name for name, _, _ in profile.timeline.reason_spans()} - {"gpu_idle"})
        sentences += [f"The clocks were held back: {', '.join(names)}."] if names else []
    return tuple(sentences)


def _calls(b: Breakdown) -> list[str]:
    if b.device == "cpu":
        top = b.kernels[0] if b.kernels else None
        whole = sum(k.total_us for k in b.kernels)
        return [f"{top.name} takes {top.total_us / whole:.0%} of a call of {b.span_us / 1e3:.3g} ms."] if top else []
    launches = sum(k.launches for k in b.kernels)
    period = b.span_us + b.between_us
    if b.host_us > b.span_us and b.between_us > _LAUNCH_SHARE * b.span_us:
        return [
            f"Launch-bound when called back to back: the host takes {b.host_us:.0f} us to issue {launches:g} launches that "
            f"run for {b.busy_us:.0f} us; a CUDA graph, or fewer launches, would help."
        ]
    if b.span_us and b.gap_us > _LAUNCH_SHARE * b.span_us:
        share = f"{b.gap_us / b.span_us:.0%} of the call passes between its {launches:g} kernels"
        return [f"Launch-bound: {share}; fuse them, or capture a CUDA graph."]
    return [f"The GPU is busy for {b.busy_us / period:.0%} of the time with {launches:g} launches a call: not launch-bound."]


def _heaviest(kernels: Sequence[KernelCounters]) -> KernelCounters | None:
    timed = [k for k in kernels if k.duration_us is not None]
    return max(timed, key=lambda k: k.duration_us or 0.0) if timed else None


def _bytes(b: Bytes, profile: Profile) -> str:
    measured = (b.dram_read + b.dram_write) / 1e6
    modelled = (b.modelled_read + b.modelled_write) / 1e6
    how = "" if b.passes == 1 else f" (in {b.passes} passes, so with the caches as ncu leaves them)"
    says = f"DRAM moves {measured:.1f} MB, {b.ratio:.2f} x the fewest possible ({modelled:.1f} MB){how}"
    if abs(b.ratio - 1) <= _AGREE:
        return f"{says}: the byte model holds."
    over_read, over_write = b.dram_read - b.modelled_read, b.dram_write - b.modelled_write
    which = "reads" if abs(over_read) >= abs(over_write) else "writes"
    more = "more" if max(over_read, over_write, key=abs) > 0 else "less"
    where = "re-reads, or temporaries that leave the cache" if more == "more" else "what the cache still holds"
    outputs = profile.case["batch"] * profile.case["labels"] * ITEM_BYTES[profile.case["dtype"]]
    times = over_read / outputs
    if which == "reads" and profile.case["pass"] != "forward" and times > 0.9 and abs(times - round(times)) < 0.1:
        where = f"as if the gradient of the outputs were read {round(times) + 1} times"
    return f"{says}: it {which} {abs(max(over_read, over_write, key=abs)) / 1e6:.1f} MB {more} than the model; {where}."


def _spills(static: Sequence[StaticKernel]) -> list[str]:
    spilling = [f"{k.name} spills registers: {k.spills} bytes a thread." for k in static if k.spills]
    local = [k for k in static if k.stack and not k.spills]
    return spilling + [f"{k.name} keeps {k.stack} bytes a thread in local memory." for k in local]


def short(name: str, width: int = 48) -> str:
    """A kernel's name without arguments and namespaces, cut to `width`."""
    bare = re.sub(r"(\(anonymous namespace\)|<unnamed>)::", "", name.removeprefix("void "))
    bare = re.split(r"[<(]", bare)[0].split("::")[-1].strip() or name
    return bare if len(bare) <= width else bare[: width - 1] + "…"
