"""The choice of configurations: shape classes, tables and trials. No GPU is needed. Files: test_choices.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gskernels import choices, trials, tune
from gskernels.choices import Config
from gskernels.trials import Clock, Trial

SHAPE: dict[str, Any] = {
    "batch": 256, "dim": 768, "labels": 655_360, "fan_in": 64, "group_size": 32, "dtype": torch.bfloat16,
}  # fmt: skip
CANDIDATES = [{"BLOCK": 64, "num_warps": 4}, {"BLOCK": 128, "num_warps": 8}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSKERNELS_CACHE", str(tmp_path))
    tune.forget()
    tune.reset()
    return tmp_path / "tuned.json"


def named(**changes: Any) -> str:
    return tune.shape_class(**{**SHAPE, **changes})


def test_shapes_that_behave_alike_share_a_class() -> None:
    assert named() == "B256 D1024 L1048576 K64 G32 aligned bfloat16"
    assert named(batch=200, dim=1000, labels=131_072, fan_in=50, group_size=31) == named()
    assert named(rows="ragged") != named()
    assert named(dtype=torch.float32) != named()
    assert named(batch=1, dim=1, labels=1, fan_in=1, group_size=1) == "B1 D1 L1 K1 G1 aligned bfloat16"


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_power_of_two(n: int, power: int) -> None:
    assert tune.power_of_two(n) == power


def test_nearest_prefers_the_sizes_that_matter() -> None:
    table = {f"k|{named(group_size=16)}": {"a": 1}, f"k|{named(labels=2**22)}": {"a": 2}, f"other|{named()}": {"a": 3}}
    assert tune.distance(named(), named()) == 0
    assert tune.nearest(table, "k", named()) == {"a": 2}
    assert tune.nearest(table, "k", named(dtype=torch.float16)) == {"a": 2}
    assert tune.nearest(table, "k", named(), legal=lambda c: c["a"] != 2) == {"a": 1}
    assert tune.nearest(table, "k", named(dtype=torch.float32)) is None
    assert tune.nearest(table, "absent", named()) is None


def test_without_a_gpu_the_first_candidate_is_taken_and_nothing_is_kept(own_cache: Path) -> None:
    def never(config: Config) -> None:
        raise AssertionError("timed without a GPU")

    assert tune.choose("k", named(), CANDIDATES, never, torch.empty(1)) == CANDIDATES[0]
    assert not own_cache.exists()


def test_a_choice_on_disk_is_used_if_it_is_legal(own_cache: Path) -> None:
    full = f"cpu|k|{named()}"
    assert choices.write_cache(own_cache, {full: CANDIDATES[1]})
    chosen = tune.choose("k", named(), CANDIDATES, lambda c: None, torch.empty(1))
    assert chosen == CANDIDATES[1]
    tune.forget()
    chosen = tune.choose("k", named(), CANDIDATES, lambda c: None, torch.empty(1), legal=lambda c: c["BLOCK"] < 100)
    assert chosen == CANDIDATES[0]


def test_deterministic_results_do_not_depend_on_the_cache(own_cache: Path) -> None:
    choices.write_cache(own_cache, {f"cpu|k|{named()}": CANDIDATES[1]})
    assert tune.choose("k", named(), CANDIDATES, lambda c: None, torch.empty(1), measure=False) == CANDIDATES[0]


# ---- trials -----------------------------------------------------------------------------------------------------


class OutOfResources(Exception):
    """As Triton's, of which only the name counts."""


def clock_of(speeds: dict[int, float]) -> Clock:
    """Says of a call what `speeds` has for the BLOCK that it runs with."""

    def clock(calls: Sequence[Callable[[], object]]) -> list[float]:
        return [speeds[int(str(call()))] for call in calls]

    return clock


def run(config: Config) -> int:
    if config["BLOCK"] > 256:
        raise OutOfResources
    return config["BLOCK"]


def test_a_trial_measures_every_candidate_whatever_is_known_and_its_winner_is_used(own_cache: Path) -> None:
    wider = [*CANDIDATES, {"BLOCK": 256}, {"BLOCK": 512}]
    assert choices.write_cache(own_cache, {f"cpu|k|{named()}": CANDIDATES[0]})
    with tune.trials(clock_of({64: 3.0, 128: 1.0, 256: 2.0})) as found:
        for _ in range(2):  # the second call finds it decided
            assert tune.choose("k", named(), wider, run, torch.empty(1)) == wider[1]
        tune.choose("one candidate", named(), wider[:1], run, torch.empty(1))
        tune.choose("in a fixed order", named(), wider, run, torch.empty(1), measure=False)
    (trial,) = found
    assert trial.key == f"cpu|k|{named()}"
    assert trial.milliseconds == (3.0, 1.0, 2.0, math.inf)
    assert (trial.winner, trial.runner_up, trial.config) == (1, 2, wider[1])
    assert trial.gain == pytest.approx(2 / 3)
    assert tune.choose("k", named(), wider, run, torch.empty(1)) == wider[1]
    assert choices.read_cache(own_cache) == {f"cpu|k|{named()}": CANDIDATES[0]}


@pytest.mark.parametrize(
    ("milliseconds", "winner", "runner_up", "gain"),
    [((1.0, 0.995), 0, 1, 0.0), ((1.0, 0.98, 0.981), 1, 2, 0.02), ((math.inf, 2.0), 1, None, None),
     ((math.inf, math.inf), 0, None, None), ((1.0,), 0, None, 0.0)],
)  # fmt: skip
def test_a_later_candidate_wins_beyond_noise_only(
    milliseconds: tuple[float, ...], winner: int, runner_up: int | None, gain: float | None
) -> None:
    trial = Trial("g|k|s", tuple({"BLOCK": i} for i in range(len(milliseconds))), milliseconds)
    assert (trial.winner, trial.runner_up) == (winner, runner_up)
    assert trial.gain == (None if gain is None else pytest.approx(gain))


def test_what_is_tuned_on_purpose_takes_its_default_until_then() -> None:
    def choose() -> Config:
        return tune.choose("k", named(), CANDIDATES, run, torch.empty(1), on_purpose=True)

    assert choose() == CANDIDATES[0]
    with tune.trials(clock_of({64: 3.0, 128: 1.0})):
        assert choose() == CANDIDATES[1]
    assert choose() == CANDIDATES[1]


def test_a_fault_of_a_candidate_is_no_reason_to_pass_it_over() -> None:
    def broken(config: Config) -> None:
        raise RuntimeError("illegal address")

    with tune.trials(clock_of({})) as found, pytest.raises(RuntimeError, match="illegal address"):
        tune.choose("k", named(), CANDIDATES, broken, torch.empty(1))
    assert found == []
    assert tune.choose("k", named(), CANDIDATES, broken, torch.empty(1)) == CANDIDATES[0]  # the trials are over


def test_what_was_launched_is_described() -> None:
    tune.record("a", {"sha256": "1", "registers": 32}, {"BLOCK": 64})
    tune.record("b", {"sha256": "2"})
    launched = tune.launched_kernels()
    assert launched["a"] == {"config": {"BLOCK": 64}, "sha256": "1", "registers": 32}
    assert tune.combined_hash(launched) == tune.combined_hash(dict(reversed(launched.items())))
    tune.reset()
    assert tune.launched_kernels() == {}
    assert tune.combined_hash({}) == ""


@pytest.mark.gpu
def test_the_faster_candidate_is_measured_once_and_kept_on_disk(own_cache: Path) -> None:
    x = torch.ones(1 << 22, device="cuda")
    ran: list[int] = []

    def run(config: Config) -> None:
        ran.append(config["times"])
        for _ in range(config["times"]):
            x.add_(1)

    shape = named(labels=3)  # in no table
    candidates = [{"times": 20}, {"times": 1}]
    for _ in range(2):
        chosen = tune.choose("a kernel without a table", shape, candidates, run, x)
        assert chosen == candidates[1]
        assert ran.count(20) == trials.SAMPLES + 1
        tune.forget()
    assert choices.read_cache(own_cache)


@pytest.mark.gpu
def test_nothing_is_measured_inside_a_graph_capture() -> None:
    x = torch.ones(8, device="cuda")
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        chosen = tune.choose("a kernel without a table", named(), CANDIDATES, lambda config: x.add_(1), x)
    assert chosen == CANDIDATES[0]
