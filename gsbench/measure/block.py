"""One block: the cases of one point, verified, then timed interleaved, then checked once more."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gsbench import costs
from gsbench.case import Case
from gsbench.measure import delays, verify
from gsbench.measure.nvml import Monitor
from gsbench.measure.operands import Call, Operands, Outputs, bind
from gsbench.measure.rounds import Series, take_rounds
from gsbench.measure.timers import CpuTimer, CudaTimer, GraphTimer, HostTimer, Timer
from gsbench.record import Record, utc_now
from gsbench.store import Sample
from gsbench.suite import TimingSettings
from gskernels import tune
from gskernels.table import Implementation

TIMED_SEED, CHECKED_SEED = 0, 1
_AT_ONCE = 0.2  # share of the device's memory that outputs waiting for the check may take
_MAX_COPIES = 64
_ENERGY_WINDOW_S = 1.0
_CALIBRATING = 15  # samples that the length of a planted slowdown is taken from


@dataclass
class Bench:
    """What all blocks of a worker share. say(case, phase) is the parent's view of it, and its watchdog."""

    device: torch.device
    info: dict[str, Any]
    ceilings: dict[str, Any]
    monitor: Monitor
    implementations: dict[str, Implementation]
    say: Callable[[Case, str], None]
    stop_requested: Callable[[], bool] = lambda: False
    plants: tuple[float, ...] = ()  # slowdowns to plant as well, 0 first; then every call ends in a delay
    pause: Callable[[bool], None] = lambda alone: None  # others may have the device meanwhile; alone: what follows times

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Subject:
    """An implementation that runs one pass on this point, and what is known of it so far."""

    case: Case  # of the first mode; used to say where we are
    implementation: Implementation
    call: Call
    facts: dict[str, Any] = field(default_factory=dict)  # fields of the records to come


@dataclass(frozen=True)
class Finished:
    record: Record
    samples: list[Sample]
    plant: float = 0.0


@dataclass(frozen=True)
class TryAlone:
    """These cases ran out of memory beside others; they deserve a block of their own."""

    cases: list[Case]


class DeviceLost(Exception):
    """A CUDA error: this process can measure nothing more."""


Outcome = Finished | TryAlone


def measure(bench: Bench, cases: list[Case], timing: TimingSettings, energy: bool) -> Iterator[Outcome]:
    """What becomes of one point's cases, one by one. Raises DeviceLost after the record of the case that caused it."""
    crowd = len({c.implementation for c in cases}) > 1
    try:
        operands = Operands(cases[0].point, bench.device, CHECKED_SEED)
    except Exception as e:
        yield from _failed(cases, e, {}, crowd)
        return
    for pass_ in dict.fromkeys(c.pass_ for c in cases):
        mine = [c for c in cases if c.pass_ == pass_]
        by_name = {c.implementation: [d for d in mine if d.implementation == c.implementation] for c in mine}
        subjects = []
        for name, group in by_name.items():
            try:
                subjects.append(_prepare(bench, group[0], operands))
            except Exception as e:
                yield from _failed(by_name[name], e, {}, crowd)
        operands.updating = True
        for seed in (CHECKED_SEED, TIMED_SEED):
            operands.refill(seed)
            for subject in subjects:  # what forward keeps for backward belongs to the new values
                subject.call = bind(subject.implementation, pass_, operands)
            for subject, error in _verify(bench, pass_, operands, subjects):
                subjects.remove(subject)
                yield from _failed(by_name[subject.implementation.name], error, subject.facts, crowd)
        operands.updating = False
        for subject in subjects:
            subject.facts |= {"verified": True, **_memory(bench, subject)}
        for mode in dict.fromkeys(c.mode for c in mine):
            timed = [s for s in subjects if any(c.mode == mode for c in by_name[s.implementation.name])]
            if timed and not bench.stop_requested():
                yield from _time(bench, pass_, mode, timed, operands, timing, energy, crowd)


# ---- before timing ----------------------------------------------------------------------------------------------


def _prepare(bench: Bench, case: Case, operands: Operands) -> Subject:
    bench.say(case, "prepare")
    implementation = bench.implementations[case.implementation]
    modelled = costs.cost(implementation, case.pass_, case.point.shape, case.point.dtype)
    call = bind(implementation, case.pass_, operands)
    bench.say(case, "compile")
    tune.reset()
    call()  # compiles and tunes
    tune.reset()
    call()
    bench.synchronize()
    launched = tune.launched_kernels()
    facts = {
        "useful_flops": modelled.useful_flops, "min_bytes": modelled.min_bytes, "layer_bytes": modelled.layer_bytes,
        "modelled_extra_bytes": modelled.extra_bytes, "config": launched, "binary_hash": tune.combined_hash(launched),
    }  # fmt: skip
    return Subject(case, implementation, call, facts=facts)


class FailedVerification(Exception):
    """Outputs outside the bound; the message names output, error and bound."""


def _verify(
    bench: Bench, pass_: str, operands: Operands, subjects: list[Subject]
) -> list[tuple[Subject, Exception]]:
    """Run every subject with poisoned allocations and check it; returns those that failed, and why."""
    failed: list[tuple[Subject, Exception]] = []
    for together in _batches(bench, operands, subjects):
        outputs: dict[str, Outputs] = {}
        for subject in together:
            bench.say(subject.case, "verify")
            try:
                with verify.poisoned():
                    outputs[subject.implementation.name] = subject.call()
                bench.synchronize()
            except Exception as e:
                outputs.pop(subject.implementation.name, None)
                failed.append((subject, e))
        survivors = [s for s in together if s.implementation.name in outputs]
        failed += _judge(pass_, operands, survivors, outputs)
    return failed


def _judge(
    pass_: str, operands: Operands, subjects: list[Subject], outputs: dict[str, Outputs]
) -> list[tuple[Subject, Exception]]:
    """Compare outputs of subjects of one kind with the oracle; keeps the worst error of each output in the facts."""
    failed: list[tuple[Subject, Exception]] = []
    sound: list[Subject] = []
    for subject in subjects:
        name = subject.implementation.name
        wrong = verify.shapes_as_expected(pass_, operands, operands.layer(subject.implementation), outputs[name])
        if wrong:
            failed.append((subject, FailedVerification(wrong)))
        else:
            sound.append(subject)
    if not sound:
        return failed
    verdicts = verify.check(
        pass_, operands, sound[0].implementation, {s.implementation.name: outputs[s.implementation.name] for s in sound}
    )
    for subject in sound:
        mine = verdicts[subject.implementation.name]
        errors = subject.facts.setdefault("errors", {})
        for verdict in mine:
            worst = errors.get(verdict.output)
            if worst is None or not verdict.error <= worst["error"]:
                errors[verdict.output] = verdict.to_dict()
        if not all(v.passed for v in mine):
            failed.append((subject, FailedVerification("; ".join(str(v) for v in mine if not v.passed))))
    return failed


def _batches(bench: Bench, operands: Operands, subjects: Iterable[Subject]) -> Iterator[list[Subject]]:
    """Subjects of one kind, together as far as their outputs fit."""
    kinds: dict[str, list[Subject]] = {}
    for subject in subjects:
        kinds.setdefault(operands.kind(subject.implementation), []).append(subject)
    room = _AT_ONCE * (bench.info["memory_bytes"] or 8 << 30)
    for members in kinds.values():
        count = max(1, int(room // members[0].facts["modelled_extra_bytes"]))
        for start in range(0, len(members), count):
            yield members[start : start + count]


def _memory(bench: Bench, subject: Subject) -> dict[str, Any]:
    """The allocator's peak above the inputs during one call, and NVML's view; None where nobody counts."""
    if bench.device.type != "cuda":
        return {}
    torch.cuda.synchronize(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    outputs = subject.call()
    torch.cuda.synchronize(bench.device)
    peak = torch.cuda.max_memory_allocated(bench.device) - before
    del outputs
    return {"peak_extra_bytes": peak, "nvml_used_bytes": bench.monitor.used_bytes()}


# ---- timing -----------------------------------------------------------------------------------------------------


def _time(
    bench: Bench, pass_: str, mode: str, subjects: list[Subject], operands: Operands, timing: TimingSettings, energy: bool,
    crowd: bool,
) -> Iterator[Outcome]:
    """Of every subject, and of each with every slowdown that is to be planted: all take turns."""
    series: list[Series] = []
    bench.pause(True)
    for subject in subjects:
        case = Case(subject.implementation.name, pass_, operands.point, mode, subject.case.device)
        bench.say(case, "warm up")
        try:
            series += _series(bench, case, subject, operands)
        except Exception as e:
            yield from _failed([case], e, subject.facts, crowd)
    named = {s.implementation.name: s for s in subjects}
    for one, error in take_rounds(bench.monitor, series, timing, bench.say, bench.stop_requested, bench.pause):
        series.remove(one)
        yield from _of(one, _failed([one.case], error, named[one.case.implementation].facts, crowd))
    bench.pause(False)
    wrong = _check_again(pass_, operands, [one for one in series if not one.plant], named)
    block = f"{operands.point} {pass_} {mode}"
    for one in series:
        subject = named[one.case.implementation]
        if not one.plant and subject.implementation.name in wrong:
            error = wrong[subject.implementation.name]
            yield from _failed([one.case], error, subject.facts, crowd, "after timing: ")
            continue
        facts = dict(subject.facts, block=block)
        if energy and mode == "cold":
            facts["energy_mj"] = _energy(bench, subject)
        yield Finished(_finish(bench, one, facts), one.samples, one.plant)


def _check_again(
    pass_: str, operands: Operands, series: list[Series], named: dict[str, Subject]
) -> dict[str, Exception]:
    """What is wrong with the outputs of the last timed calls, by implementation; the oracle runs once a kind."""
    kinds: dict[str, list[Series]] = {}
    for one in series:
        kinds.setdefault(operands.kind(named[one.case.implementation].implementation), []).append(one)
    wrong: dict[str, Exception] = {}
    for members in kinds.values():
        outputs = {one.case.implementation: one.target.last for one in members}
        judged = _judge(pass_, operands, [named[name] for name in outputs], outputs)
        wrong |= {subject.implementation.name: error for subject, error in judged}
        for one in members:
            one.target.last = ()
    return wrong


def _series(bench: Bench, case: Case, subject: Subject, operands: Operands) -> list[Series]:
    """One of the case; where slowdowns are planted, each of them: a delay of that share of its time behind a call."""
    timer = _timer(bench, case.mode, subject, operands)
    if not bench.plants:
        return [Series(case, timer, subject.call)]
    delay = delays.of(bench.device)
    plain = Series(case, timer, delay.after(subject.call, 0.0))
    if case.mode == "graph":  # holds its calls already: none can be lengthened
        return [plain]
    timer.sample(plain.target, 1)
    ms = statistics.median(timer.sample(plain.target, _CALIBRATING))
    longer = [Series(case, timer, delay.after(subject.call, plant * ms), plant=plant) for plant in bench.plants if plant]
    return [plain, *longer]


def _of(one: Series, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Outcomes of one series: those of a planted slowdown say so, and are not tried alone."""
    for outcome in outcomes:
        if isinstance(outcome, Finished):
            yield replace(outcome, plant=one.plant)
        elif not one.plant:
            yield outcome


def _timer(bench: Bench, mode: str, subject: Subject, operands: Operands) -> Timer:
    if bench.device.type != "cuda":
        return CpuTimer(mode == "cold", bench.info["cache_bytes"])
    if mode == "host":
        return HostTimer()
    if mode == "graph":
        wanted = 2 * bench.info["cache_bytes"] / max(1, subject.facts["min_bytes"])
        copies = [operands.clone() for _ in range(min(_MAX_COPIES, math.ceil(wanted)) - 1)] if wanted > 1 else []
        return GraphTimer([subject.call, *(bind(subject.implementation, subject.case.pass_, c) for c in copies)])
    return CudaTimer(mode == "cold", bench.device)


def _finish(bench: Bench, one: Series, facts: dict[str, Any]) -> Record:
    case, timing = one.case, one.summary()
    implementation = bench.implementations[case.implementation]
    modelled = costs.cost(implementation, case.pass_, case.point.shape, case.point.dtype)
    floor = costs.floor_ms(
        modelled,
        bandwidth_gbps=bench.ceilings["bandwidth_gbps"],
        matmul_tflops=bench.ceilings["matmul_tflops"].get(case.point.dtype),
        cache_bytes=bench.info["cache_bytes"],
    )
    validity = list(one.flags)
    if one.target.host_behind:
        validity.append("host_behind")
    if bench.device.type == "cuda" and not bench.monitor.available:
        validity.append("no_nvml")
    if case.mode == "cold" and floor > timing.median_ms:
        validity.append("over_roof")  # faster than the card can move the bytes: the harness or the model is wrong
    facts = facts | {"floor_ms": floor, "roof_share": floor / timing.median_ms, "validity": tuple(validity)}
    facts["rounds_ms"] = one.rounds_ms()
    return Record(case, "ok", timing=timing, finished_utc=utc_now(), sm_mhz=one.sm_mhz, **facts)


def _energy(bench: Bench, subject: Subject) -> float | None:
    """Millijoules a call over at least a second of back-to-back calls (caches as they come)."""
    start = bench.monitor.energy_mj()
    if start is None:
        return None
    calls, began = 0, time.monotonic()
    while time.monotonic() - began < _ENERGY_WINDOW_S:
        for _ in range(10):
            subject.call()
        bench.synchronize()
        calls += 10
    end = bench.monitor.energy_mj()
    return None if end is None else (end - start) / calls


# ---- failures ---------------------------------------------------------------------------------------------------


def _failed(
    cases: list[Case], error: Exception, facts: dict[str, Any], crowd: bool, prefix: str = ""
) -> Iterator[Outcome]:
    """Records of cases that ended in `error`; out of memory beside others is no verdict yet."""
    status, reason = diagnose(error)
    if status == "oom":
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if crowd:
            yield TryAlone(cases)
            return
    facts = facts | {"verified": False}
    for case in cases:
        yield Finished(Record(case, status, prefix + reason, finished_utc=utc_now(), **facts), [])
    if _is_cuda_error(error):
        raise DeviceLost(reason) from error


def diagnose(error: Exception) -> tuple[str, str]:
    """(status, reason in one line) of an exception."""
    text = (str(error).strip().splitlines() or [""])[0][:500]
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return "oom", text or "out of memory"
    if isinstance(error, FailedVerification):
        return "failed_verification", text
    return "error", f"{type(error).__name__}: {text}"


def _is_cuda_error(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)
