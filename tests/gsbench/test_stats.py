"""Estimators against simulated data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from gsbench import stats


@pytest.mark.parametrize("n", [20, 50, 400])
@pytest.mark.parametrize("draw", ["normal", "lognormal"])
def test_the_interval_of_the_median_covers_it_19_times_in_20(n, draw):
    rng = np.random.default_rng(0)
    truth = 0.0 if draw == "normal" else 1.0
    trials = getattr(rng, draw)(size=(4000, n))
    covered = np.mean([low <= truth <= high for low, high in map(stats.median_interval, trials)])
    assert 0.945 <= covered <= 0.99  # order statistics are discrete: never below, somewhat above for small n


def test_the_half_width_shrinks_with_the_square_root():
    rng = np.random.default_rng(1)
    widths = [np.mean([stats.half_width(rng.normal(10, 1, n)) for _ in range(200)]) for n in (100, 400, 1600)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.2)


def test_two_modes_are_told_from_one():
    rng = np.random.default_rng(2)
    one = rng.normal(10, 0.1, 200)
    two = np.concatenate([rng.normal(10, 0.1, 120), rng.normal(12, 0.1, 80)])
    tail = np.concatenate([rng.normal(10, 0.1, 196), [14, 15, 16, 20]])
    assert not stats.bimodal(one)
    assert stats.bimodal(two)
    assert not stats.bimodal(tail)
    assert not stats.bimodal(np.full(50, 3.0))


def test_the_summary_keeps_every_sample():
    timing = stats.summarise([3.0, 1.0, 2.0, 100.0], "perf_counter", True)
    assert (timing.median_ms, timing.min_ms, timing.samples, timing.capped) == (2.5, 1.0, 4, True)
    assert timing.ci_low_ms <= timing.median_ms <= timing.ci_high_ms
    assert timing.p5_ms <= timing.p20_ms <= timing.p80_ms <= timing.p95_ms


@pytest.mark.parametrize("samples", [[], [float("nan")], [-1.0], [float("inf")]])
def test_impossible_samples_are_refused(samples):
    with pytest.raises(ValueError, match="finite, not negative"):
        stats.summarise(samples, "perf_counter", False)
