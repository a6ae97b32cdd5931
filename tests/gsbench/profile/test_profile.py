"""gsbench profile without a GPU: what is chosen, what is kept, what is compiled, and what each fault says."""

from __future__ import annotations

import gzip
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsbench.case import Case, Point
from gsbench.cli import app
from gsbench.errors import NothingMeasured, UserError
from gsbench.implementations import all_implementations
from gsbench.profile import cases, collect, store
from gsbench.profile.collect import Job
from gsbench.profile.model import Profile
from gsbench.store import read_run
from gsbench.suite import load_suite
from gskernels.shape import Shape
from gskernels.table import IMPLEMENTATIONS
from tests.gsbench.profile.samples import HOPPER, MARKER, gpu_trace, ncu_log
from tests.gsbench.synthetic import failed, timed, write

TINY = Point(Shape(4, 64, 96, 16, 32), "uniform", "fp32")
CASE = Case("dense/torch", "forward", TINY, "cold", "cpu")
PROFILE = Profile("k", CASE.to_dict(), "2026-01-01T00:00:00Z", "CPU", {}, (), 1, 1, 1)


def job(run: Path, device: str = "cuda:0", **changes: object) -> Job:
    return replace(Job(run, device, "GPU", {}, (), {i.name: i for i in IMPLEMENTATIONS}, "sm_90a"), **changes)  # type: ignore[arg-type]


# ---- which cases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("batch", "write KEY=VALUE"), ("size=3", "a key of batch, dim, labels, fan_in, group_size, pattern, dtype, point"),
        ("batch=many", "batch takes a whole number"), ("batch=1,batch=2", "given twice"),
    ],
)  # fmt: skip
def test_a_point_that_cannot_be_read(at, says):
    with pytest.raises(UserError, match=says):
        cases.parse_at(at)


def test_the_point_is_the_suites_default_with_what_at_says():
    suite, _ = load_suite("forward", "cuda")
    one = cases.one_point(suite, cases.parse_at("batch=64, group_size=1_28,pattern=zipf"), ["forward"], "forward")
    assert one.axes is not None
    expected = {"batch": [64], "dim": [768], "labels": [655_360], "fan_in": [64], "group_size": [128], "head_share": [0.0]}
    assert one.axes.model_dump() == expected
    assert (one.patterns, one.modes, one.grid_size()) == (["zipf"], ["cold"], 1)


def test_a_named_point_of_a_suite():
    suite, _ = load_suite("paper", "cuda")
    one = cases.one_point(suite, {"point": "A3M"}, [], "paper")
    assert one.axes is not None
    assert one.axes.labels == [2_812_281]
    with pytest.raises(UserError, match="paper has no such point; its points are A670K, A3M, P2K"):
        cases.one_point(suite, {"point": "none"}, [], "paper")


@pytest.mark.parametrize(
    ("where", "says"), [({"fan_in": 800}, "exceeds dim"), ({"dtype": "fp8"}, "dtypes.0"), ({"batch": 0}, "batch")]
)
def test_a_point_that_no_suite_may_have(where, says):
    with pytest.raises(UserError, match=says):
        cases.one_point(load_suite("forward", "cuda")[0], where, [], "forward")


def test_without_a_gpu_cuda_implementations_are_compiled_at_the_gpus_point():
    names = ["dense/torch", "group_shared/cuda"]
    _, _, plan, compiled = cases.of_suite("forward", "cpu", all_implementations(), names, {}, [])
    assert {case.implementation for case in plan.cases} == {"dense/torch"}
    assert [(c.implementation, c.device, c.point.shape.labels) for c in compiled] == [("group_shared/cuda", "cuda", 655_360)]


def test_a_point_for_gpus_alone_is_compiled():
    _, _, plan, compiled = cases.of_suite("paper", "cpu", all_implementations(), ["group_shared/*"], {"point": "A3M"}, [])
    assert plan.cases == []
    assert {case.point.shape.labels for case in compiled} == {2_812_281}


def test_records_of_a_run_by_point_and_name(tmp_path):
    here, there = replace(TINY, dtype="bf16"), Point(replace(TINY.shape, batch=8), "uniform", "bf16")
    points = [("dense/torch", here), ("group_shared/cuda", here), ("dense/torch", there)]
    run = write(tmp_path / "run", [timed(name, 1.0, where) for name, where in points])
    found = cases.of_run(read_run(run), "cuda", all_implementations(), ["dense/*"], {"batch": 8}, ["forward"])
    assert [(r.case.implementation, r.case.point) for r in found] == [("dense/torch", there)]
    with pytest.raises(UserError, match="2 points match; name one with --at, such as: B=4"):
        cases.of_run(read_run(run), "cuda", all_implementations(), [], {}, [])
    with pytest.raises(UserError, match="timed on cuda, and this is cpu"):
        cases.of_run(read_run(run), "cpu", all_implementations(), [], {"batch": 8}, [])
    with pytest.raises(NothingMeasured, match="no timed cold case matches"):
        cases.of_run(read_run(run), "cuda", all_implementations(), [], {"batch": 9}, [])


# ---- what is kept -----------------------------------------------------------------------------------------------


def test_a_profile_is_read_back_as_it_was_written(tmp_path):
    file = store.write(tmp_path, PROFILE)
    assert file.parent.name == "profiles"
    assert store.read(tmp_path) == [PROFILE]
    assert store.read(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [("{", UserError, "not a profile"), ("[]", UserError, "not a profile"), ("{}", UserError, "not a profile: key"),
     ('{"schema": 99}', NothingMeasured, "profile schema 99 is newer than this gsbench reads")],
)  # fmt: skip
def test_a_file_that_is_no_profile_is_named(tmp_path, text, error, says):
    store.write(tmp_path, PROFILE).with_name("bad.json").write_text(text)
    with pytest.raises(error, match=f"bad.json: {says}"):
        store.read(tmp_path)


# ---- how parts come together ------------------------------------------------------------------------------------


def test_a_gpu_case_from_trace_counters_and_compiler(tmp_path, monkeypatch):
    """The runner and ncu stood in for by what they would leave behind."""
    record = timed("group_shared/cuda", 0.137, replace(TINY, dtype="bf16"), floor_ms=0.1, roof_share=0.73)
    run = write(tmp_path / "run", [record])

    def ask(job, what, asked):
        if what == "static":
            return {}, "no compiler"
        trace = job.folder / f"{store.stem(asked[0])}.trace.json.gz"
        trace.write_bytes(gzip.compress(json.dumps(gpu_trace()).encode()))
        reading = {"at_s": 0.0, "sm_mhz": 1980, "memory_mhz": 3201, "power_w": 300.0, "temperature_c": 40,
                   "used_bytes": 10**9, "reasons": ["sw_power_cap"]}  # fmt: skip
        timeline = {"busy_from_s": 0.0, "busy_to_s": 1.0, "readings": [reading] * 2}
        return {asked[0].key: {"traced": True, "timeline": timeline}}, ""

    def count(path, metrics, keep_caches, *rest):
        from gsbench.profile import ncu

        kernels = [MARKER, HOPPER, MARKER, "flush"] if keep_caches else [MARKER, HOPPER, MARKER]
        return ncu.divided(ncu.parse(ncu_log(kernels)), 1)

    monkeypatch.setattr(collect, "_ask", ask)
    monkeypatch.setattr(collect.ncu, "find", lambda: "ncu")
    monkeypatch.setattr(collect.ncu, "count", count)
    (profile,) = collect.collect(job(run), [record])
    assert store.read(run) == [profile]
    assert profile.breakdown is not None
    assert profile.bytes is not None
    assert (profile.bytes.dram_read, profile.bytes.dram_write) == (88.1e6, 2 * 290e6)  # the flush's writes are the call's
    assert profile.counters[0].bound == "memory"
    assert profile.missing == {"static": "no compiler"}
    assert profile.median_ms == 0.137
    assert (run / "profiles" / profile.figure_file).read_text().startswith("<?xml")


def test_what_does_not_answer_is_missing_with_its_reason(tmp_path, monkeypatch):
    record = timed("dense/torch", 1.0, replace(TINY, dtype="bf16"))
    run = write(tmp_path / "run", [record])
    dead = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no CUDA here\n")
    monkeypatch.setattr(collect.process, "run", lambda *args: dead)
    monkeypatch.setattr(collect.ncu, "find", lambda: None)
    (profile,) = collect.collect(job(run, skip=("static",)), [record])
    died = "the profiled process ended with exit code 1: RuntimeError: no CUDA here"
    absent = "ncu (Nsight Compute) is neither on PATH nor where CUDA installs it"
    assert profile.missing == {
        "breakdown": died,
        "timeline": died,
        "counters": absent,
        "bytes": absent,
        "static": "left out by --skip",
    }


def test_a_cpu_case_for_real(tmp_path):
    """One process: torch.profiler on a tiny product."""
    record = timed("dense/torch", 1.0, TINY)
    record = replace(record, case=replace(record.case, device="cpu"))
    run = write(tmp_path / "run", [record])
    (profile,) = collect.collect(job(run, "cpu"), [record])
    assert profile.breakdown is not None
    assert any("mm" in k.name for k in profile.breakdown.kernels)
    assert set(profile.missing) == {"counters", "bytes", "timeline", "static"}
    assert (run / "profiles" / profile.trace_file).stat().st_size > 100
    shown = CliRunner().invoke(app, ["profile", "--show", str(run)])
    assert "dense/torch forward B=4 D=64 L=96" in shown.output
    assert "no counters: no GPU here" in shown.output


# ---- the compiler alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pass_", "kernels"),
    [
        ("group_shared/cuda", "forward", ["hopper_forward"]),
        ("group_shared/cuda", "backward", ["hopper_backward_prepare", "hopper_backward", "hopper_grad_input_sum"]),
        ("group_shared/cuda", "step", ["hopper_step_clear", "hopper_step_prepare", "hopper_step", "hopper_step_finish"]),
        ("group_shared/triton", "forward", ["transpose_kernel", "forward_kernel"]),
    ],
)  # fmt: skip
def test_kernels_are_compiled_without_a_gpu(name, pass_, kernels):
    pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")
    pytest.importorskip("triton")
    from gsbench.profile.static import kernels_of

    case = Case(name, pass_, Point(Shape(256, 768, 655_360, 64, 32), "uniform", "bf16"), "cold", "cuda")
    found = kernels_of(case, {i.name: i for i in IMPLEMENTATIONS}[name], "sm_90a")
    assert [k.name for k in found] == kernels
    for kernel in found:
        assert not kernel.spills
        assert kernel.stack == 0
        assert 8 <= kernel.registers <= 255
        assert kernel.blocks_per_sm >= 1
    if kernels == ["hopper_forward"]:
        assert (found[0].grid, found[0].threads, found[0].blocks_per_sm) == ((4, 33), 640, 1)


def test_kernels_that_come_with_torch_are_not_compiled():
    from gsbench.profile.static import NotStatic, kernels_of

    case = Case("dense/torch", "forward", replace(TINY, dtype="bf16"), "cold", "cuda")
    with pytest.raises(NotStatic, match="launches only kernels that come with torch"):
        kernels_of(case, {i.name: i for i in IMPLEMENTATIONS}["dense/torch"], "sm_90a")


# ---- the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of --suite NAME, --run RUN and --show RUN"),
        (["--suite", "forward", "--show", "x"], "give one of"),
        (["--suite", "none"], "unknown suite 'none'"),
        (["--suite", "forward", "--pass", "sideways"], "--pass 'sideways': allowed are forward"),
        (["--suite", "forward", "--skip", "all"], "--skip 'all': allowed are breakdown, counters"),
        (["--suite", "forward", "--arch", "sm_42"], "--arch 'sm_42': known are sm_80"),
        (["--suite", "forward", "--only", "none/*"], "no implementation matches 'none/*'"),
        (["--suite", "forward", "--at", "point=A"], "--at point=A: forward has no such point; it has none"),
        (["--run", "nowhere"], "nowhere"),
        (["--show", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, says):
    result = CliRunner().invoke(app, ["profile", *arguments])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_suite_is_timed_at_its_point_and_then_profiled(tmp_path, monkeypatch):
    """The worker stood in for: what it would record, and a case that it could not run."""
    from gsbench.measure.session import Session

    def run(session: Session, plan, recorded):
        assert [c.implementation for c in plan.cases] == ["dense/torch", "group_shared/torch"]
        for case, status in zip(plan.cases, ("ok", "oom"), strict=True):
            done = timed(case.implementation, 1.0, case.point)
            session.writer.add(
                replace(done if status == "ok" else failed(case.implementation, status, "no room"), case=case), []
            )

    monkeypatch.setattr(Session, "run", run)
    monkeypatch.setattr(collect, "_ask", lambda job, what, cases: ({}, f"{what} stood in for"))
    words = ["--only", "dense/torch", "--only", "group_shared/torch", "--at", "batch=4", "--device", "cpu", "--name", "r"]
    result = CliRunner().invoke(app, ["profile", "--suite", "forward", *words, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "not profiled, oom: group_shared/torch forward B=4" in result.output
    (profile,) = store.read(tmp_path / "r")
    assert (profile.case["implementation"], profile.case["batch"], profile.median_ms) == ("dense/torch", 4, 1.0)
    assert profile.missing["breakdown"] == "trace stood in for"
    assert read_run(tmp_path / "r").manifest["suite"]["axes"]["batch"] == [4]


def test_a_run_without_profiles_says_how_to_make_some(tmp_path):
    run = write(tmp_path / "run", [])
    result = CliRunner().invoke(app, ["profile", "--show", str(run)])
    assert isinstance(result.exception, NothingMeasured)
    assert "gsbench profile --run" in str(result.exception)
