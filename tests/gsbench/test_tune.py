"""gsbench tune without a GPU: what it would measure, what it makes of measurements, and where it keeps them."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gsbench import tuning
from gsbench.case import Case, Point
from gsbench.cli import app, device
from gsbench.cli import tune as verb
from gsbench.errors import NothingMeasured, UserError
from gsbench.implementations import all_implementations
from gsbench.measure import tuning as measuring
from gsbench.measure.tuning import Duel, Skipped
from gsbench.suite import load_suite
from gskernels import choices, dispatch, tune
from gskernels.shape import Shape
from gskernels.table import FORWARD, find
from gskernels.trials import Trial

H200 = dispatch.Gpu("NVIDIA H200", (9, 0), 132, 227 * 1024)
TINY = Point(Shape(4, 32, 64, 8, 8), "uniform", "fp32")
BLOCKS = tuple({"BLOCK": block, "num_warps": 4} for block in (64, 32, 512))
TRIAL = Trial("NVIDIA H200|group_shared.forward|B4", BLOCKS, (0.5, 0.4, math.inf))
DUEL = Duel("NVIDIA H200|dispatch.forward hopper|B4", TINY, dispatch.CUDA, dispatch.TRITON, 0.3, 0.2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSKERNELS_CACHE", str(tmp_path / "cache"))
    tune.forget()
    return tmp_path / "cache" / "tuned.json"


def run(*arguments: str) -> tuple[int, str, Exception | None]:
    """Exit code, output, and the user's error."""
    result = CliRunner().invoke(app, ["tune", *arguments])
    error = result.exception if isinstance(result.exception, UserError) else None
    assert error is not None or result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return error.exit_code if error else result.exit_code, result.output, error


# ---- the plan ---------------------------------------------------------------------------------------------------


def test_points_of_a_suite_with_what_layers_ask_for() -> None:
    points = tuning.points_of(load_suite("backward", "cuda")[0], all_implementations(), ["*/triton", "dense/*"])
    assert next(iter(points)).shape == tuning.DEFAULT_POINT
    assert {(case.implementation, case.pass_) for cases in points.values() for case in cases} == {
        (f"{family}/triton", pass_)
        for family in ("group_shared", "fixed_fan_in") for pass_ in ("backward", "grad_input", "grad_weight")
    }  # fmt: skip
    assert {case.mode for cases in points.values() for case in cases} == {"cold"}
    with pytest.raises(NothingMeasured, match="nothing to choose here; tuned are fixed_fan_in/triton, group_shared/cuda"):
        tuning.points_of(load_suite("backward", "cuda")[0], all_implementations(), ["dense/torch"])


def test_points_given_one_by_one() -> None:
    suite = tuning.suite_at(["batch=64, group_size=16,dtype=fp16", "labels=8_192,dtype=fp16"])
    points = tuning.points_of(suite, all_implementations(), ["group_shared/cuda"])
    default = tuning.DEFAULT_POINT
    assert [point.shape for point in points] == [replace(default, batch=64, group_size=16), replace(default, labels=8192)]
    assert {(point.dtype, point.pattern) for point in points} == {("fp16", "uniform")}
    assert {case.pass_ for cases in points.values() for case in cases} == set(dispatch.PASSES)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "at which points"),
        (("--suite", "smoke", "--at", "batch=1"), 2, "not both"),
        (("--suite", "nothing"), 2, "unknown suite 'nothing'; known: "),
        (("--at", "gruop_size=3"), 2, "'gruop_size=3' is no KEY=VALUE with one of the keys batch, dim"),
        (("--at", ","), 2, "write KEY=VALUE"),
        (("--at", "batch=many"), 2, "takes whole numbers, got 'many'"),
        (("--at", "batch=0"), 2, "points.0.batch"),
        (("--at", "dim=32"), 2, "fan_in=64 exceeds dim=32"),
        (("--at", "dtype=int8"), 2, "dtype='int8': allowed are fp32, fp16, bf16"),
        (("--at", "dtype=fp16", "--at", "batch=1"), 2, "have the same dtype"),
        (("--at", "batch=1", "--only", "nobody"), 2, "no implementation matches 'nobody'"),
        (("--at", "batch=1", "--only", "dense/torch"), 3, "nothing to choose here"),
        (("--at", "batch=1", "--device", "gpu"), 2, "allowed are auto, cpu, cuda, cuda:N"),
        (("--at", "batch=1", "--device", "cpu"), 3, "no GPU here"),
        (("--at", "batch=1", "--out", "nowhere/table.json"), 2, "a folder that exists"),
        (("--at", "batch=1", "--out", "pyproject.toml"), 2, "is no table of choices of version 2"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: tuple[str, ...], code: int, message: str) -> None:
    exit_code, _, error = run(*arguments)
    assert exit_code == code
    assert message in str(error)
    assert "\n" not in str(error)


def test_dry_run_shows_the_cases_and_measures_nothing(own_cache: Path) -> None:
    code, output, _ = run("--at", "batch=64", "--only", "group_shared/cuda", "--dry-run", "--json")
    cases = [Case.from_dict(json.loads(line)) for line in output.splitlines()]
    assert code == 0
    assert {case.pass_ for case in cases} == set(dispatch.PASSES)
    assert "B=64 D=768" in run("--at", "batch=64", "--dry-run")[1]
    assert not own_cache.exists()


# ---- measuring --------------------------------------------------------------------------------------------------


class FakeTimer:
    """A sample is what the call last put into `ran`."""

    method = "fake"

    def __init__(self) -> None:
        self.ran: list[float] = []

    def sample(self, target: measuring.Target, count: int) -> list[float]:
        target.last = target.call()
        assert target.last == ()
        return [self.ran[-1]] * count


def module(timer: FakeTimer, kernel: str, speeds: list[float]) -> ModuleType:
    """An implementation whose forward has a candidate of each speed; negative: fails."""
    made = ModuleType(f"toy_{kernel}")

    def forward(x: torch.Tensor, layer: object) -> torch.Tensor:
        def once(config: choices.Config) -> None:
            if speeds[config["NUMBER"]] < 0:
                raise RuntimeError("no such kernel")
            timer.ran.append(speeds[config["NUMBER"]])

        candidates = [{"NUMBER": number} for number in range(len(speeds))]
        once(tune.choose(f"{kernel}.forward", "B4 float32", candidates, once, x))
        return x.new_empty(0)

    made.forward = forward  # type: ignore[attr-defined]
    return made


def measured(
    monkeypatch: pytest.MonkeyPatch, cuda: list[float], triton: list[float], **options: bool
) -> list[list[measuring.Found]]:
    timer, toys = FakeTimer(), []
    for name, speeds in ((dispatch.CUDA, cuda), (dispatch.TRITON, triton)):
        made = module(timer, name.replace("/", "."), speeds)
        monkeypatch.setitem(sys.modules, made.__name__, made)
        toys.append(replace(find(name), module=made.__name__))
    monkeypatch.setattr(dispatch, "gpu_of", lambda index: H200)
    points = {
        point: [Case(toy.name, FORWARD, point, "cold", "cuda") for toy in toys]
        for point in (TINY, replace(TINY, pattern="zipf"))
    }
    return list(measuring.measure(points, toys, torch.device("cpu"), timer=timer, **options))


def test_candidates_then_rivals_with_the_winners(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = measured(monkeypatch, [3.0, 2.0], [4.0, 5.0, 1.0])
    cuda, triton, duel = first
    assert isinstance(cuda, Trial)
    assert isinstance(triton, Trial)
    assert (cuda.key, cuda.winner, triton.winner) == ("cpu|group_shared.cuda.forward|B4 float32", 1, 2)
    assert duel == Duel(
        f"NVIDIA H200|dispatch.forward portable|{dispatch.shape_class(TINY.shape, 'fp32')}", TINY, dispatch.CUDA,
        dispatch.TRITON, 2.0, 1.0,
    )  # fmt: skip
    assert isinstance(duel, Duel)
    assert (duel.winner, duel.config) == (dispatch.TRITON, {"cuda_ns": 2_000_000, "triton_ns": 1_000_000})
    assert second == []  # the same shape class
    picked = dispatch.pick(FORWARD, TINY.shape, "fp32", H200, {duel.key.split("|", 1)[1]: duel.config})
    assert picked.implementation == dispatch.TRITON


def test_each_of_the_two_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [type(one) for one in measured(monkeypatch, [3.0], [4.0, 5.0], candidates=False)[0]] == [Duel]
    default = 4.0  # nothing was tried
    assert measured(monkeypatch, [3.0], [default, 1.0], candidates=False)[0][0].triton_ms == default  # type: ignore[union-attr]
    assert [type(one) for one in measured(monkeypatch, [3.0], [4.0, 5.0], rivals=False)[0]] == [Trial]


def test_a_failure_costs_only_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = measured(monkeypatch, [-1.0, 2.0], [4.0, 5.0])
    broken, trial, duel = first
    assert isinstance(broken, Skipped)
    assert broken.reason == "RuntimeError: no such kernel"
    assert isinstance(trial, Trial)
    assert isinstance(duel, Skipped)
    assert len(second) == 1


# ---- what becomes of it -----------------------------------------------------------------------------------------


def test_a_row_says_what_was_tried_and_what_won() -> None:
    name, shape, ran, *figures = tuning.trial_cells(TRIAL)
    assert (name, shape, ran) == ("group_shared.forward", "B4", "2 of 3")
    assert figures == ["BLOCK=32", "0.4000", "0.5000", "0.5000", "20.0%"]
    alone = Trial("g|k|s", ({"BLOCK": 64},), (math.inf,))
    assert tuning.trial_cells(alone) == ["k", "s", "0 of 1", "the only one", "-", "-", "-", "-"]


def fake_gpu(monkeypatch: pytest.MonkeyPatch, *found: list[measuring.Found]) -> None:
    monkeypatch.setattr(device, "resolve", lambda name: "cuda:0")
    monkeypatch.setattr(verb, "_take", lambda target: io.StringIO())
    monkeypatch.setattr(measuring, "measure", lambda *arguments, **options: iter(found))


def test_choices_are_kept_in_the_cache_and_used(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, [TRIAL], [DUEL, Skipped("P2K", "out of memory")])
    code, output, _ = run("--at", "batch=4")
    assert code == 0
    assert choices.read_cache(own_cache) == {TRIAL.key: TRIAL.config, DUEL.key: DUEL.config}
    for text in ("BLOCK=32", "20.0%", "1.50", "group_shared/triton", "not measured: P2K: out of memory", str(own_cache)):
        assert text in output
    dispatch.forget()
    assert dispatch.measured("NVIDIA H200")["dispatch.forward hopper|B4"] == DUEL.config
    assert "group_shared.forward|B4" not in dispatch.measured("NVIDIA H200")
    dispatch.forget()


def test_choices_are_added_to_a_table(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, [TRIAL], [DUEL])
    table = tmp_path / "nvidia_h200.json"
    table.write_text(choices.merged("", {"group_shared.forward|B8": {"BLOCK": 16}}, lambda kind: "before"))
    code, output, _ = run("--at", "batch=4", "--out", str(table), "--json")
    assert code == 0
    assert set(choices.parse(table.read_text())) == {
        "group_shared.forward|B4", "group_shared.forward|B8", "dispatch.forward hopper|B4",
    }  # fmt: skip
    assert [json.loads(line)["config"] for line in output.splitlines()] == [TRIAL.config, DUEL.config]
    assert not own_cache.exists()


def test_what_was_found_before_the_gpu_failed_is_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, [TRIAL], [Skipped("this case", "CUDA error: an illegal access", fatal=True)])
    code, _, error = run("--at", "batch=4")
    assert code == 2
    assert "the GPU failed at this case: CUDA error: an illegal access; what was found before is kept" in str(error)
    assert set(choices.read_cache(own_cache)) == {TRIAL.key}
    fake_gpu(monkeypatch, [Skipped("P2K", "out of memory")])
    assert run("--at", "batch=4")[0] == 3
