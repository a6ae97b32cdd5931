"""Measure what may be chosen: the candidates of kernels, and the rivals of a pass; caches cold, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gsbench.case import Case, Point
from gsbench.measure.block import diagnose
from gsbench.measure.operands import Call, Operands, bind
from gsbench.measure.timers import CudaTimer, Target, Timer
from gskernels import dispatch, tune
from gskernels.choices import Config
from gskernels.table import Implementation
from gskernels.trials import Trial

ROUNDS, A_TURN = 4, 2  # A A B B, B B A A, ...: eight samples of each


@dataclass(frozen=True)
class Duel:
    """The rivals of one pass at one point, in milliseconds. key: under which the choice is kept."""

    key: str  # "gpu|kernel|shape class"
    point: Point
    cuda: str
    triton: str
    cuda_ms: float
    triton_ms: float

    @property
    def ratio(self) -> float:
        return self.cuda_ms / self.triton_ms

    @property
    def pass_(self) -> str:
        return self.key.split("|")[1].removeprefix("dispatch.")

    @property
    def config(self) -> Config:
        return {"cuda_ns": round(self.cuda_ms * 1e6), "triton_ns": round(self.triton_ms * 1e6)}

    @property
    def winner(self) -> str:
        return self.triton if self.ratio > dispatch.NOISE else self.cuda


@dataclass(frozen=True)
class Skipped:
    """What could not be measured, and why. fatal: the GPU is lost to this process."""

    what: str
    reason: str
    fatal: bool = False


Found = Trial | Duel | Skipped


def in_turns(timer: Timer, calls: Sequence[Callable[[], object]]) -> list[float]:
    """The median milliseconds of each call; a call and a sample of each to compile and warm up, then turns."""
    targets = [Target(_keeping_nothing(call)) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    for target in targets:
        target.call()
        timer.sample(target, 1)
    for number in range(ROUNDS):
        order = range(len(targets))
        for i in order if number % 2 == 0 else reversed(order):
            samples[i] += timer.sample(targets[i], A_TURN)
    return [statistics.median(one) for one in samples]


def _keeping_nothing(call: Callable[[], object]) -> Call:
    """Outputs may be gigabytes, and there are many candidates."""

    def run() -> tuple[()]:
        call()
        return ()

    return run


def measure(
    points: Mapping[Point, Sequence[Case]], implementations: Sequence[Implementation], device: torch.device,
    candidates: bool = True, rivals: bool = True, timer: Timer | None = None,
) -> Iterator[list[Found]]:  # fmt: skip
    """What was found at each point, one list a point; a shape class is tuned at the first of its points.

    candidates, rivals: which of the two is measured. Ends after a list with a fatal fault.
    """
    named = {i.name: i for i in implementations}
    timer = CudaTimer(True, device) if timer is None else timer
    trials: list[Trial] = []
    known: set[str] = set()
    for point, cases in points.items():
        found: list[Found] = []
        try:
            operands = Operands(point, device, seed=0)
            if candidates:
                found += _tune(operands, cases, named, timer, trials)
            if rivals and not _fatal(found):
                found += _duels(operands, cases, named, timer, known)
        except Exception as error:
            found.append(_skipped(str(point), error))
        operands = None  # type: ignore[assignment]
        if device.type == "cuda" and not _fatal(found):
            torch.cuda.empty_cache()
        yield found
        if _fatal(found):
            return


def _tune(
    operands: Operands, cases: Sequence[Case], named: Mapping[str, Implementation], timer: Timer, trials: list[Trial]
) -> Iterator[Found]:
    for case in cases:
        before = len(trials)
        try:
            with tune.trials(lambda calls: in_turns(timer, calls), trials):
                bind(named[case.implementation], case.pass_, operands)()
        except Exception as error:
            yield _skipped(str(case), error)
        yield from trials[before:]


def _duels(
    operands: Operands, cases: Sequence[Case], named: Mapping[str, Implementation], timer: Timer, known: set[str]
) -> Iterator[Found]:
    point, index = operands.point, operands.device.index or 0
    if point.shape.group_size == 1:  # layers without groups have other implementations
        return
    there = {(case.implementation, case.pass_) for case in cases}
    for pass_ in [pass_ for pass_ in dispatch.PASSES if any(case.pass_ == pass_ for case in cases)]:
        for deterministic in (False, True) if pass_ in dispatch.ORDERED_PASSES else (False,):
            pair = dispatch.rivals(pass_, deterministic)
            if any((name, pass_) not in there for name in pair):
                continue
            gpu = dispatch.gpu_of(index)
            way = dispatch.route(pass_, point.shape, point.dtype, gpu, deterministic)
            kernel = dispatch.kernel_name(pass_, way, deterministic)
            key = f"{gpu.name}|{kernel}|{dispatch.shape_class(point.shape, point.dtype)}"
            if key in known:
                continue
            known.add(key)
            try:
                times = in_turns(timer, [bind(named[name], pass_, operands) for name in pair])
            except Exception as error:
                yield _skipped(f"{' against '.join(pair)} {pass_} {point}", error)
                continue
            yield Duel(key, point, *pair, *times)


def _skipped(what: str, error: Exception) -> Skipped:
    fatal = isinstance(error, RuntimeError) and "CUDA error" in str(error)
    if not fatal and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Skipped(what, diagnose(error)[1], fatal)


def _fatal(found: Sequence[Found]) -> bool:
    return any(isinstance(one, Skipped) and one.fatal for one in found)
