"""Interleaving, stopping and voiding, with timers whose every sample is known."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from gsbench.case import Case, Point
from gsbench.measure import rounds
from gsbench.measure.nvml import POWER_CAP, Monitor, Window
from gsbench.measure.rounds import Series, take_rounds
from gsbench.suite import TimingSettings
from gskernels.shape import Shape

POINT = Point(Shape(1, 8, 8, 2, 2), "uniform", "fp32")
QUICK = {"warmup_s": 0.0, "min_samples": 20, "budget_s": 60.0, "precision": 0.01}


class ScriptedTimer:
    method = "scripted"

    def __init__(self, name, values, log):
        self.name, self.values, self.log = name, values, log

    def sample(self, target, count):
        self.log.append(self.name)
        out = []
        for _ in range(count):
            value = next(self.values)
            if isinstance(value, Exception):
                raise value
            out.append(value)
        return out


def a_series(name, values, log):
    case = Case(name, "forward", POINT, "cold", "cpu")
    return Series(case, ScriptedTimer(name, iter(values), log), lambda: ())


class Quiet:
    def window(self, since):
        return Window()


def noisy(start=0):
    return (10 + (i * 7919 % 1000) / 100 for i in itertools.count(start))  # +-50 %: never steady soon


@pytest.fixture(autouse=True)
def _one_sample_a_turn(monkeypatch):
    monkeypatch.setattr(rounds, "_MOST_A_TURN", 1)


def test_implementations_take_turns_back_and_forth():
    log = []
    series = [a_series(n, noisy(), log) for n in "ab"]
    take_rounds(Quiet(), series, TimingSettings(**QUICK | {"max_samples": 24}), lambda *_: None, lambda: False)
    turns = "".join(log[4:])  # after two warm-up samples each
    assert turns[:8] in ("abbaabba", "baabbaab")
    assert [len(s.samples) for s in series] == [24, 24]
    assert all(s.capped for s in series)


def test_a_steady_case_stops_at_the_fewest_samples_and_a_noisy_one_goes_on():
    series = [a_series("steady", itertools.repeat(5.0), []), a_series("noisy", noisy(), [])]
    take_rounds(Quiet(), series, TimingSettings(**QUICK | {"max_samples": 60}), lambda *_: None, lambda: False)
    assert (len(series[0].samples), series[0].capped) == (20, False)
    assert (len(series[1].samples), series[1].capped) == (60, True)
    assert series[0].summary().median_ms == 5.0


def test_a_request_to_stop_still_takes_the_fewest_samples():
    series = [a_series("noisy", noisy(), [])]
    take_rounds(Quiet(), series, TimingSettings(**QUICK), lambda *_: None, lambda: True)
    assert (len(series[0].samples), series[0].capped) == (20, True)


def test_one_that_raises_leaves_the_others_alone():
    fails = a_series("fails", itertools.chain([1.0] * 9, [RuntimeError("boom")]), [])
    fine = a_series("fine", itertools.repeat(1.0), [])
    failed = take_rounds(Quiet(), [fails, fine], TimingSettings(**QUICK), lambda *_: None, lambda: False)
    assert [(s.case.implementation, str(e)) for s, e in failed] == [("fails", "boom")]
    assert len(fine.samples) == 20


class Thermal:
    """Slowed down for the first `bad` stretches."""

    def __init__(self, bad):
        self.bad, self.asked = bad, 0

    def window(self, since):
        self.asked += 1
        return SimpleNamespace(slowed_down=self.asked <= self.bad, flags=list, sm_mhz=1980.0)


@pytest.mark.parametrize(("bad", "stretches", "flags"), [(0, 1, []), (1, 2, []), (9, 3, ["slowed_down"])])
def test_a_stretch_with_thermal_slowdown_is_void_as_a_whole_and_retries_are_bounded(bad, stretches, flags):
    monitor = Thermal(bad)
    series = a_series("a", (float(1 + i) for i in itertools.count()), [])
    take_rounds(monitor, [series], TimingSettings(**QUICK | {"precision": 0.9}), lambda *_: None, lambda: False)
    assert monitor.asked == stretches
    assert len(series.samples) == 20  # nothing of a void stretch is left, and the last one stands
    assert series.samples[0][1] == 3 + 20 * (stretches - 1)
    assert series.flags == flags
    assert series.sm_mhz == 1980


# ---- NVML, with a card made of numbers --------------------------------------------------------------------------


class FakeNvml:
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 1, 0

    def __init__(self, processes=(), reasons=0):
        self.processes, self.reasons, self.energy = list(processes), reasons, 0

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=p) for p in self.processes]

    def nvmlDeviceGetClockInfo(self, handle, which):
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle):
        return 400_000

    def nvmlDeviceGetTemperature(self, handle, which):
        return 50

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=123)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.energy += 500
        return self.energy

    def nvmlSystemGetDriverVersion(self):
        return "580"


def test_another_process_on_the_card_is_flagged_and_our_own_is_not():
    card = FakeNvml(processes=[111])
    monitor = Monitor("GPU-x", card, period_s=10)
    card.processes.append(222)  # our context appears
    monitor.adopt_own_context()
    assert monitor.window(0).flags() == ["shared_gpu:1"]
    card.processes.append(333)
    assert monitor.window(0).flags() == ["shared_gpu:2"]
    monitor.partners = 1  # the other side of the same session
    assert monitor.window(0).flags() == ["shared_gpu:1"]
    card.processes[:] = [222]
    assert monitor.window(0).flags() == []


def test_a_partner_that_opened_the_card_at_the_same_time_is_no_stranger_and_hides_none():
    card = FakeNvml()
    monitor = Monitor("GPU-x", card, period_s=10)
    card.processes += [222, 333]  # our context and our partner's, whichever is which
    monitor.adopt_own_context()
    monitor.partners = 1
    assert monitor.window(0).flags() == []
    card.processes.append(444)
    assert monitor.window(0).flags() == ["shared_gpu:1"]


def test_a_power_cap_is_flagged_and_thermal_slowdown_voids():
    assert Monitor("GPU-x", FakeNvml(reasons=POWER_CAP), period_s=10).window(0).flags() == ["power_cap"]
    assert Monitor("GPU-x", FakeNvml(reasons=0x40), period_s=10).window(0).slowed_down
    assert not Monitor("GPU-x", FakeNvml(), period_s=10).window(0).slowed_down


def test_without_nvml_everything_is_none_and_nothing_raises():
    class Missing(FakeNvml):
        def nvmlInit(self):
            raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    for monitor in (Monitor("GPU-x", Missing()), Monitor(None)):
        assert not monitor.available
        assert monitor.why
        assert monitor.window(0).flags() == []
        assert not monitor.window(0).slowed_down
        assert monitor.used_bytes() is None
        assert monitor.energy_mj() is None
        assert monitor.driver() is None


def test_others_may_measure_between_two_rounds_and_not_within_one():
    log = []
    series = [a_series(n, noisy(), log) for n in "ab"]
    series.append(a_series("planted", noisy(), log))
    series[2].plant = 0.02
    settings = TimingSettings(**QUICK | {"max_samples": 21})
    take_rounds(Quiet(), series, settings, lambda *_: None, lambda: False, lambda alone: log.append("|" if alone else "?"))
    rounds_ = " ".join(log[7:]).split("|")  # after two warm-up samples each
    assert [sorted(r.split()) for r in rounds_] == [["a", "b", "planted"]] * 21
    assert series[2].target.last == ()


def test_a_case_that_fails_before_its_slowdowns_are_planted_ends_as_one_record():
    import torch

    from gsbench.measure import block

    calls = iter([(), RuntimeError("boom")])

    def call():
        found = next(calls)
        if isinstance(found, Exception):
            raise found
        return found

    case = Case("a/b", "forward", POINT, "hot", "cpu")
    bench = block.Bench(torch.device("cpu"), {"cache_bytes": 4}, {}, Quiet(), {}, lambda *_: None, plants=(0.0, 0.1))
    subjects = [block.Subject(case, SimpleNamespace(name="a/b"), call)]
    operands, settings = SimpleNamespace(point=POINT), TimingSettings(**QUICK)
    (only,) = block._time(bench, "forward", "hot", subjects, operands, settings, False, False)
    assert (only.record.status, only.record.reason) == ("error", "RuntimeError: boom")
