"""Interleaved sampling: implementations take turns (A B C C B A ...), so that drift hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gsbench import stats
from gsbench.case import Case
from gsbench.measure.nvml import Monitor
from gsbench.measure.operands import Call
from gsbench.measure.timers import Target, Timer
from gsbench.record import Timing
from gsbench.store import Sample
from gsbench.suite import TimingSettings

_TURN_S = 0.05  # of one implementation, before the next has its turn
_FEWEST_TURNS = 5  # in its time budget: what drifts hits all alike only if they change often
_MOST_A_TURN = 50
_VOID_RETRIES = 2


@dataclass
class Series:
    """One case's samples in the making."""

    case: Case
    timer: Timer
    call: Call
    plant: float = 0.0  # the slowdown that is planted in the call, as a share
    target: Target = field(init=False)
    samples: list[Sample] = field(default_factory=list)
    turn: int = 1  # samples a turn
    spent_s: float = 0.0
    done: bool = False
    capped: bool = False
    flags: list[str] = field(default_factory=list)
    sm_mhz: float | None = None

    def __post_init__(self) -> None:
        self.target = Target(self.call)

    def rounds_ms(self) -> tuple[float, ...]:
        """The median of each round, to six digits."""
        rounds: dict[int, list[float]] = {}
        for number, ms in self.samples:
            rounds.setdefault(number, []).append(ms)
        return tuple(float(f"{statistics.median(rounds[number]):.6g}") for number in sorted(rounds))

    def summary(self) -> Timing:
        return stats.summarise([ms for _, ms in self.samples], self.timer.method, self.capped)


def take_rounds(
    monitor: Monitor, series: list[Series], timing: TimingSettings, say: Callable[[Case, str], None],
    stop_requested: Callable[[], bool], pause: Callable[[bool], None] = lambda alone: None,
) -> list[tuple[Series, Exception]]:  # fmt: skip
    """Sample all until each is steady or out of budget; returns those that raised. pause(True): before each round.

    A stretch with thermal or hardware slowdown is void as a whole and measured again, twice at the most; it then
    stands, flagged "slowed_down".
    """
    failed = _warm_up(series, timing)
    series = [s for s in series if all(s is not f for f, _ in failed)]
    for attempt in range(1 + _VOID_RETRIES):
        since = time.monotonic()
        failed += _rounds(series, timing, say, stop_requested, pause)
        series = [s for s in series if all(s is not f for f, _ in failed)]
        window = monitor.window(since)
        if not window.slowed_down or attempt == _VOID_RETRIES:
            break
        for one in series:
            one.samples, one.spent_s, one.done, one.capped = [], 0.0, False, False
    for one in series:
        one.sm_mhz = window.sm_mhz
        one.flags = window.flags() + (["slowed_down"] if window.slowed_down else [])
    return failed


def _warm_up(series: list[Series], timing: TimingSettings) -> list[tuple[Series, Exception]]:
    """By time; also learns how many samples make a turn."""
    failed: list[tuple[Series, Exception]] = []
    for one in series:
        try:
            one.timer.sample(one.target, 1)
            began, count = time.monotonic(), 0
            while count == 0 or time.monotonic() - began < timing.warmup_s:
                one.timer.sample(one.target, 1)
                count += 1
            turn_s = min(_TURN_S, timing.budget_s / _FEWEST_TURNS)
            one.turn = max(1, min(_MOST_A_TURN, int(turn_s * count / (time.monotonic() - began))))
        except Exception as e:
            failed.append((one, e))
    return failed


def _rounds(
    series: list[Series], timing: TimingSettings, say: Callable[[Case, str], None], stop_requested: Callable[[], bool],
    pause: Callable[[bool], None],
) -> list[tuple[Series, Exception]]:  # fmt: skip
    order = list(series)
    random.Random(0).shuffle(order)
    failed: list[tuple[Series, Exception]] = []
    round_ = 0
    while any(not one.done for one in order):
        pause(True)
        for one in order:
            if one.done:
                continue
            say(one.case, f"time {len(one.samples)}")
            began = time.monotonic()
            try:
                taken = one.timer.sample(one.target, min(one.turn, timing.max_samples - len(one.samples)))
            except Exception as e:
                failed.append((one, e))
                one.done = True
                continue
            one.samples += [(round_, ms) for ms in taken]
            if one.plant:
                one.target.last = ()  # those of the call without it are checked
            one.spent_s += time.monotonic() - began
            _judge_enough(one, timing, stop_requested())
        order.reverse()
        round_ += 1
    return failed


def _judge_enough(one: Series, timing: TimingSettings, stopping: bool) -> None:
    count = len(one.samples)
    if count < timing.min_samples:
        return
    steady = stats.half_width([ms for _, ms in one.samples]) <= timing.precision
    one.capped = not steady and (one.spent_s >= timing.budget_s or count >= timing.max_samples or stopping)
    one.done = steady or one.capped
