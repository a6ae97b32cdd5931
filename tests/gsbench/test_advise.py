"""gsbench advise: estimates against known laws, choices, what fits, and what it says where it knows nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsbench import costs
from gsbench.advise.answer import answer
from gsbench.advise.evidence import Evidence, gather
from gsbench.advise.memory import factor, largest_labels, needed, parse_bytes
from gsbench.case import Point
from gsbench.cli import app
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import read_runs
from gskernels.shape import Shape
from gskernels.table import IMPLEMENTATIONS, find
from tests.gsbench.synthetic import failed, point, star, timed, write

GROUPED, DENSE, NARROW = "group_shared/triton", "dense/torch", "bottleneck/torch"
CEILINGS = {"bandwidth_gbps": 4000.0, "matmul_tflops": {"bf16": 800.0}}
PASSES = ("forward", "backward")
AT = ["--batch", "256", "--dim", "768", "--labels", "131072"]


def law(name: str, shape: Shape) -> float:
    """Time over the model's: a power of every axis, so that its logarithm is linear in their logarithms."""
    grouped = (shape.group_size / 64) ** -0.3 * (shape.fan_in / 32) ** 0.1 if name == GROUPED else 1.0
    return float(1.5 * (shape.batch / 256) ** -0.2 * (shape.labels / 131072) ** -0.05 * grouped)


def runs(folder: Path, factor: Callable[[str, Shape], float] = law, **manifest: object) -> Path:
    """One run: three implementations on the star of synthetic.py, both passes."""
    records = []
    for where in star():
        for name in (GROUPED, DENSE, NARROW):
            for pass_ in PASSES:
                cost = costs.cost(find(name), pass_, where.shape, where.dtype)
                model = costs.floor_ms(cost, bandwidth_gbps=4000.0, matmul_tflops=800.0, cache_bytes=0)
                extra = round(cost.extra_bytes * 1.25)
                records.append(timed(name, model * factor(name, where.shape), where, pass_, peak_extra_bytes=extra))
    return write(folder, records, **{"ceilings": CEILINGS, **manifest})


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return gather(read_runs(runs(tmp_path / "run")), IMPLEMENTATIONS)


# ---- estimates --------------------------------------------------------------------------------------------------


def test_a_recorded_point_is_reported_as_recorded(evidence):
    found = evidence.estimate(find(GROUPED), "forward", point())
    assert found.distance == 0.0
    assert found.ms == pytest.approx(found.near[0].ms)
    assert found.near[0].id.startswith("run/")


@pytest.mark.parametrize("change", [{"batch": 128}, {"labels": 200_000}, {"labels": 262_144, "batch": 512}, {"fan_in": 48}])
def test_a_law_that_is_linear_in_logarithms_is_found_again(evidence, change):
    where = point(**change)
    found = evidence.estimate(find(GROUPED), "backward", where)
    assert found.ms == pytest.approx(
        evidence.model_ms(find(GROUPED), "backward", where) * law(GROUPED, where.shape), rel=0.01
    )
    assert 0 < found.distance <= 2
    assert found.error_most < 0.05


def test_the_stated_error_grows_where_records_follow_no_law(tmp_path):
    rough = runs(tmp_path / "rough", lambda name, shape: law(name, shape) * (2.0 if shape.batch in (16, 1024) else 1.0))
    found = gather(read_runs(rough), IMPLEMENTATIONS).estimate(find(GROUPED), "forward", point(batch=128))
    assert found.error_most > 0.15


@pytest.mark.parametrize("change", [{"batch": 8192}, {"dim": 64}, {"dtype": "fp32"}, {"pattern": "banked"}])
def test_there_is_no_estimate_far_from_every_record(evidence, change):
    assert evidence.estimate(find(GROUPED), "forward", point(**change)) is None


def test_axes_that_do_not_matter_to_an_implementation_are_no_distance(evidence):
    assert evidence.estimate(find(DENSE), "forward", point(fan_in=700, group_size=1)).distance == 0.0
    assert evidence.estimate(find(NARROW), "forward", point(group_size=1)).distance == 0.0


# ---- choices ----------------------------------------------------------------------------------------------------


def test_the_smallest_group_close_to_the_fastest_is_chosen(tmp_path):
    flat = runs(tmp_path / "flat", lambda name, shape: 1.08 if shape.group_size < 256 else 1.0)
    found = answer(gather(read_runs(flat), IMPLEMENTATIONS), IMPLEMENTATIONS, point(fan_in=1), "train", 32, None, None)
    assert found.choices[0].implementation in (GROUPED, NARROW)
    mine = next(c for c in found.choices if c.implementation == GROUPED)
    assert (mine.group_size, mine.fan_in) == (16, 32)
    steep = runs(tmp_path / "steep", lambda name, shape: 256 / shape.group_size)
    found = answer(gather(read_runs(steep), IMPLEMENTATIONS), IMPLEMENTATIONS, point(), "train", 32, None, None)
    assert next(c for c in found.choices if c.implementation == GROUPED).group_size == 256


def test_a_step_is_both_passes_and_its_error_the_larger(evidence):
    found = answer(evidence, IMPLEMENTATIONS, point(labels=150_000), "train", 32, 64, None)
    mine = next(c for c in found.choices if c.implementation == GROUPED)
    assert set(mine.passes) == set(PASSES)
    assert mine.ms == pytest.approx(sum(e.ms for e in mine.passes.values()))
    assert mine.error_most == max(e.error_most for e in mine.passes.values())
    assert found.sentences[0].startswith("Use group_shared/triton K=32 G=64: ")
    assert any("bottleneck/torch" in sentence for sentence in found.sentences)
    assert "masked_dense/torch" in found.silent


def test_what_does_not_fit_is_not_recommended(evidence):
    found = answer(evidence, IMPLEMENTATIONS, point(), "train", 32, 64, 200_000_000)
    fits = {c.implementation: c.fits for c in found.choices}
    assert fits == {GROUPED: True, NARROW: True, DENSE: False}
    assert any("dense/torch" in sentence and "does not fit" in sentence for sentence in found.sentences)
    nothing = answer(evidence, IMPLEMENTATIONS, point(), "train", 32, 64, 1_000_000)
    assert nothing.sentences[0].startswith("Nothing fits 0.001 GB")


# ---- memory -----------------------------------------------------------------------------------------------------


def test_memory_is_the_models_scaled_by_what_allocators_counted(evidence):
    where, one = point(), find(GROUPED)
    assert factor(evidence, one, "forward", where) == pytest.approx(1.25, rel=1e-3)
    cost = costs.cost(one, "backward", where.shape, "bf16")
    assert needed(evidence, one, ["backward"], where) == pytest.approx(cost.input_bytes + 1.25 * cost.extra_bytes, rel=1e-3)


def test_the_frontier_is_where_eight_more_labels_do_not_fit(evidence):
    where, one = point(), find(DENSE)
    most = largest_labels(evidence, one, PASSES, where, 24 << 30)

    def held(labels: int) -> int:
        return needed(evidence, one, PASSES, replace(where, shape=replace(where.shape, labels=labels)))

    assert held(most) <= 24 << 30 < held(most + 8)
    assert largest_labels(evidence, one, PASSES, where, 1000) == 0


def test_what_ran_out_of_memory_is_named(tmp_path):
    folder = runs(tmp_path / "runs" / "a")
    write(tmp_path / "runs" / "b", [failed(DENSE, "oom", "out of memory", point(labels=9_000_000))], ceilings=CEILINGS)
    found = answer(gather(read_runs(folder.parent), IMPLEMENTATIONS), IMPLEMENTATIONS, point(), "forward", 32, 64, None)
    limits = {f.implementation: (f.recorded, f.oom) for f in found.frontier}
    assert limits == {GROUPED: (1_048_576, None), DENSE: (1_048_576, 9_000_000), NARROW: (1_048_576, None)}


@pytest.mark.parametrize(("text", "size"), [("24GiB", 24 << 30), ("80 GB", 80 * 10**9), ("1.5tib", 3 << 39), ("4096", 4096)])
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "24 Gibibytes", "-1GB", "0GB"])
def test_a_size_that_is_none(text):
    with pytest.raises(UserError, match="--memory .* such as 24GiB"):
        parse_bytes(text)


# ---- which runs -------------------------------------------------------------------------------------------------


def test_runs_of_several_devices_are_never_mixed(tmp_path):
    runs(tmp_path / "all" / "a")
    runs(tmp_path / "all" / "b", device={"type": "cpu", "name": "Some CPU"})
    data = read_runs(tmp_path / "all")
    assert gather(data, IMPLEMENTATIONS).runs == ["a"]  # the GPU, unless another is asked for
    assert gather(data, IMPLEMENTATIONS, "some cpu").runs == ["b"]
    with pytest.raises(UserError, match="--device 'H100': none of: Made-up GPU, Some CPU"):
        gather(data, IMPLEMENTATIONS, "H100")
    with pytest.raises(UserError, match="--device 'e': several of"):
        gather(data, IMPLEMENTATIONS, "e")


@pytest.mark.parametrize("manifest", [{"ceilings": {}}, {"device": {}}])
def test_runs_without_ceilings_or_device_are_no_evidence(tmp_path, manifest):
    with pytest.raises(NothingMeasured, match="no run here has a device and measured ceilings"):
        gather(read_runs(runs(tmp_path / "run", **manifest)), IMPLEMENTATIONS)


# ---- the command line -------------------------------------------------------------------------------------------


def test_an_answer_in_words_and_as_json(tmp_path):
    folder = str(runs(tmp_path / "run"))
    shown = CliRunner().invoke(app, ["advise", folder, *AT, "--memory", "24GiB", "--fan-in", "32"])
    assert shown.exit_code == 0, shown.output
    for words in ("Use group_shared/triton K=32", "Largest L that fits 25.8 GB", "From run", "recorded"):
        assert words in shown.output
    as_json = CliRunner().invoke(app, ["advise", folder, *AT, "--json"])
    data = json.loads(as_json.output)
    assert data["memory_bytes"] == 149 * 10**9  # the device's, as none was given
    assert {c["implementation"] for c in data["choices"]} == {GROUPED, DENSE, NARROW}
    assert {c["fan_in"] for c in data["fan_ins"]} >= {16, 32, 64}


def test_no_evidence_is_said_and_exits_3(tmp_path):
    folder = str(runs(tmp_path / "run"))
    shown = CliRunner().invoke(app, ["advise", folder, "--batch", "8192", "--dim", "64", "--labels", "1000"])
    assert shown.exit_code == 3
    assert "No evidence near this point" in shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "256"], "needs --dim, --labels"),
        ([*AT, "--for", "sleeping"], "--for 'sleeping': allowed are train, forward, backward"),
        ([*AT, "--dtype", "fp8"], "--dtype 'fp8': allowed are fp32"),
        ([*AT, "--fan-in", "800"], "--fan-in 800 exceeds --dim 768"),
        ([*AT, "--group-size", "200000"], "--group-size 200000 exceeds --labels 131072"),
        ([*AT, "--memory", "some"], "--memory 'some'"),
        ([*AT, "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, says):
    result = CliRunner().invoke(app, ["advise", *arguments])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_the_committed_baselines_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found beside the package, not in the working folder
    result = CliRunner().invoke(app, ["advise", "--batch", "256", "--dim", "768", "--labels", "670091", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    known = {f"{run.name}/{record.key}" for run in read_runs(Path(__file__).parents[2] / "results" / "baselines" / "h200")
             for record in run.records}  # fmt: skip
    cited = {near["id"] for c in data["choices"] for e in c["passes"].values() for near in e["near"]}
    assert cited
    assert cited <= known
    assert Point(Shape(256, 768, 670_091, 1, 1), "uniform", "bf16").pattern in data["point"]
