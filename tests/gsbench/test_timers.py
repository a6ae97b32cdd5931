"""How long the stream is held: what is taken again, and when the hold grows. Events and launches are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gsbench.measure import timers
from gsbench.measure.timers import CudaTimer, Target, _Queued


class Event:
    def __init__(self, ms: float) -> None:
        self.ms = ms

    def elapsed_time(self, end: Event) -> float:
        return end.ms - self.ms


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A timer whose host needs `host_s` to queue a call, and hesitates at the samples in `pauses`."""
    made = CudaTimer.__new__(CudaTimer)
    state = SimpleNamespace(timer=made, host_s=180e-6, pauses=set(), taken=0)

    def one(target: Target) -> _Queued:
        state.taken += 1
        host_s = 5e-3 if state.taken in state.pauses else state.host_s
        return _Queued(Event(0.0), Event(float(state.taken)), host_s > target.hold_s, host_s)  # type: ignore[arg-type]

    monkeypatch.setattr(made, "_one", one)
    monkeypatch.setattr(timers.torch.cuda, "synchronize", lambda: None)
    return state


def test_a_hold_that_is_too_short_becomes_as_long_as_the_host_needs(timer: Any) -> None:
    target = Target(lambda: ())
    samples = timer.timer.sample(target, 10)
    assert samples == [float(i) for i in range(11, 21)]  # the first ten measured the host
    assert target.hold_s == pytest.approx(1.25 * 180e-6)
    assert not target.host_behind


def test_one_pause_of_the_host_is_taken_again_and_holds_nothing_longer(timer: Any) -> None:
    timer.host_s, timer.pauses = 50e-6, {4}
    target = Target(lambda: ())
    samples = timer.timer.sample(target, 10)
    assert samples == [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert target.hold_s == 100e-6


def test_a_call_that_waits_for_the_device_is_marked_and_its_samples_stand(timer: Any) -> None:
    timer.host_s = 1.0
    target = Target(lambda: ())
    samples = timer.timer.sample(target, 3)
    assert len(samples) == 3
    assert target.host_behind
    assert timer.timer.sample(target, 3) == [timer.taken - 2.0, timer.taken - 1.0, float(timer.taken)]


def test_one_buffer_flushes_the_cache_for_all_timers() -> None:
    """600 MB on a machine with a cache of 300: one a case would fill the memory."""
    one, other = (timers.CpuTimer(True, 1 << 20) for _ in range(2))
    assert one._flush is other._flush
    assert one._flush is not None
    assert one._flush.numel() * 4 == 2 << 20
    assert timers.CpuTimer(False, 1 << 20)._flush is None
