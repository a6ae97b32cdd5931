"""gsbench run from end to end on the CPU, with everything that can go wrong on the way."""

from __future__ import annotations

import fcntl
import json
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gsbench
from gsbench.store import read_run, read_samples
from tests.gsbench import faulty

SUITE = """
title = "tiny"
passes = ["forward"]
implementations = [{implementations}]
dtypes = ["fp32"]
[axes]
batch = [4, 8]
dim = [32]
labels = [256]
fan_in = [8]
group_size = [8]
[timing]
budget_s = 0.02
warmup_s = 0.0
timeout_s = {timeout}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return faulty.install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def cli(environment, tmp_path):
    """Run the command line in `tmp_path`; a suite file "tiny.toml" there holds the given implementations."""

    class Cli:
        def suite(self, *implementations, timeout=60):
            listed = ", ".join(f'"{i}"' for i in implementations)
            (tmp_path / "tiny.toml").write_text(SUITE.format(implementations=listed, timeout=timeout))

        def start(self, *arguments):
            return subprocess.Popen(
                [sys.executable, "-m", "gsbench", *arguments], cwd=tmp_path, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip

        def __call__(self, *arguments):
            process = self.start(*arguments)
            out, err = process.communicate(timeout=240)
            assert "Traceback" not in err
            return process.returncode, out, err

    return Cli()


RUN = ("run", "--suite", "tiny.toml", "--device", "cpu", "--name", "r")


def test_every_fault_ends_as_a_record_and_the_sweep_goes_on(cli, tmp_path):
    cli.suite("dense/torch", "group_shared/torch", "faulty/[!s]*", timeout=8)
    code, out, _ = cli(*RUN, "--set", "batch=4")
    run = read_run(tmp_path / "results" / "r")
    by_name = {r.case.implementation: r for r in run.records}
    assert {name: r.status for name, r in by_name.items()} == {
        "dense/torch": "ok", "group_shared/torch": "ok", "faulty/prints": "ok",
        "faulty/crash": "crashed", "faulty/hang": "timeout", "faulty/wrong": "failed_verification",
        "faulty/unwritten": "failed_verification", "faulty/raises": "error", "faulty/oom": "oom",
        "faulty/cuda_error": "error",
    }  # fmt: skip
    assert by_name["faulty/crash"].reason == "the measuring process was killed by SIGKILL"
    assert by_name["faulty/hang"].reason.startswith("no sign of life for 8 s")
    assert by_name["faulty/raises"].reason == "ValueError: first line"
    assert "relative error 0.5" in by_name["faulty/wrong"].reason
    assert "relative error nan" in by_name["faulty/unwritten"].reason
    assert "illegal memory access" in by_name["faulty/cuda_error"].reason
    assert all(r.timing is None for r in run.records if r.status != "ok")
    assert code == 1  # a failed verification
    assert "hello from an implementation" not in out
    assert "hello from an implementation" in (run.path / "worker.log").read_text()


def test_a_run_leaves_what_the_protocol_promises(cli, tmp_path):
    cli.suite("dense/torch", "group_shared/torch", "group_shared/triton")
    code, out, _ = cli(*RUN)
    assert code == 0
    run = read_run(tmp_path / "results" / "r")
    assert f"run: results/{run.name}" in out
    ok = [r for r in run.records if r.status == "ok"]
    assert len(ok) == 4
    for record in ok:
        assert record.verified
        assert record.errors["y"]["error"] <= record.errors["y"]["bound"]
        assert record.timing.samples >= 20
        assert record.timing.method == ("perf_counter_kept_memory" if platform.libc_ver()[0] == "glibc" else "perf_counter")
        assert record.floor_ms > 0
        assert record.roof_share == pytest.approx(record.floor_ms / record.timing.median_ms)
    unsupported = [r for r in run.records if r.status == "unsupported"]
    assert {r.reason for r in unsupported} == {"group_shared/triton runs on cuda, not on cpu"}
    samples = read_samples(run.path)
    for record in ok:
        mine = samples[samples.key == record.key].ms
        assert len(mine) == record.timing.samples
        assert mine.median() == pytest.approx(record.timing.median_ms)
    assert run.manifest["ceilings"]["bandwidth_gbps"] > 0
    assert run.manifest["ceilings"]["matmul_tflops"]["fp32"] > 0
    assert run.manifest["device"]["type"] == "cpu"
    assert run.manifest["environment"]["nvml"] == "no NVIDIA device"
    frame = gsbench.load(run.path)
    assert len(frame) == len(run.records) == 6
    assert frame[frame.status == "ok"].median_ms.notna().all()


def test_resuming_skips_what_is_recorded_and_refuses_other_code(cli, tmp_path):
    cli.suite("dense/torch", "group_shared/torch")
    assert cli(*RUN)[0] == 0
    path = tmp_path / "results" / "r"
    records = (path / "records.jsonl").read_text().splitlines()
    (path / "records.jsonl").write_text("\n".join(records[:2]) + "\n" + records[2][:50])  # as a kill leaves it
    code, out, _ = cli("run", "--resume", "results/r")
    assert code == 0
    assert "2 cases to measure" in out
    resumed = read_run(path)
    assert len({r.key for r in resumed.records}) == len(resumed.records) == 4
    assert [json.dumps(r.to_dict(), sort_keys=True) for r in resumed.records[:2]] == records[:2]

    manifest = json.loads((path / "manifest.json").read_text()) | {"code_fingerprint": "0" * 16}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "records.jsonl").write_text("\n".join(records[:3]) + "\n")
    code, _, err = cli("run", "--resume", "results/r")
    assert code == 2
    assert f"cannot be resumed: code {'0' * 16} -> " in err
    assert cli("run", "--resume", "results/r", "--force")[0] == 0
    forced = read_run(path)
    assert forced.records[-1].validity == ("resumed_with_other_code",)
    assert forced.manifest["resumed"][-1]["forced"] is True
    assert cli("run", "--resume", "results/r", "--suite", "tiny.toml")[0] == 2


def test_a_run_begun_on_another_device_is_not_mixed_with_this_one(cli, tmp_path):
    cli.suite("dense/torch")
    assert cli(*RUN)[0] == 0
    path = tmp_path / "results" / "r"
    first = (path / "records.jsonl").read_text().splitlines()[:1]
    (path / "records.jsonl").write_text(first[0] + "\n")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["device"]["name"] = "NVIDIA H200"
    (path / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = cli("run", "--resume", "results/r")
    assert code == 2
    assert "cannot be resumed: device NVIDIA H200 -> " in err
    assert cli("run", "--resume", "results/r", "--force")[0] == 0
    assert read_run(path).records[-1].validity == ("resumed_elsewhere",)


def test_an_interrupt_finishes_the_record_says_how_to_go_on_and_exits_130(cli, tmp_path):
    cli.suite("dense/torch", "faulty/slow")
    process = cli.start(*RUN)
    path = tmp_path / "results" / "r"
    while "slow" not in _phase(path):  # its first call takes 50 ms, its 20 samples a second
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "continue with: gsbench run --resume results/r" in out
    before = read_run(path).records
    assert all(r.status == "ok" for r in before)
    assert len(before) < 4
    code, _, _ = cli("run", "--resume", "results/r")
    assert code == 0
    assert len(read_run(path).records) == 4


def _phase(path):
    """Whatever shows that the sweep has begun: the manifest's ceilings are written just before the first case."""
    manifest = path / "manifest.json"
    return "slow" if manifest.exists() and json.loads(manifest.read_text()).get("ceilings") else ""


def test_a_device_that_another_gsbench_measures_is_refused(cli, environment):
    cli.suite("dense/torch")
    with open(Path(environment["TMPDIR"]) / "gsbench-cpu.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = cli(*RUN)
    assert code == 3
    assert "is being measured by another gsbench" in err


def test_a_budget_ends_the_sweep_and_the_rest_can_be_resumed(cli, tmp_path):
    cli.suite("dense/torch", "faulty/slow")
    code, out, _ = cli(*RUN, "--budget", "0.1s")
    assert code == 3  # nothing was measured in that time
    assert "the budget of 0.1s is spent; continue with" in out
    assert cli("run", "--resume", "results/r")[0] == 0
    assert len(read_run(tmp_path / "results" / "r").records) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run",), 2, "which suite?"),
        (("run", "--suite", "nonesuch"), 2, "unknown suite 'nonesuch'; known: backward"),
        (("run", "--suite", "smoke", "--only", "nonesuch"), 2, "no implementation matches 'nonesuch'; known: dense/torch"),
        (("run", "--suite", "smoke", "--set", "fan_in=9999"), 2, "fan_in=9999 exceeds dim=256"),
        (("run", "--suite", "smoke", "--budget", "soon"), 2, "write a time such as 90s, 5m or 1h"),
        (("run", "--suite", "smoke", "--device", "tpu"), 2, "allowed are auto, cpu, cuda, cuda:N"),
        (("run", "--suite", "smoke", "--device", "cpu", "--only", "*/triton"), 3, "runs on cuda, not on cpu"),
        (("run", "--suite", "smoke", "--device", "cpu", "--out", "/proc/x"), 2, "cannot write results here"),
        (("run", "--resume", "nowhere"), 2, "not a run folder"),
        (("verify", "--dtype", "fp8"), 2, "allowed are fp32, fp16, bf16"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(cli, arguments, code, message):
    got, _, err = cli(*arguments)
    assert message in err
    assert got == code
    assert err.startswith("gsbench: ")
    assert err.count("\n") == 1


def test_a_dry_run_shows_the_plan_and_writes_nothing(cli, tmp_path):
    cli.suite("dense/torch", "group_shared/*")
    code, out, _ = cli("run", "--suite", "tiny.toml", "--device", "cpu", "--dry-run", "--set", "labels=256,100000000000")
    assert code == 0
    assert "6 cases on cpu" in out
    assert "would not fit" in out
    assert "dense/torch forward B=4 D=32 L=100,000,000,000" in out
    assert "group_shared/triton runs on cuda, not on cpu" in out
    assert not (tmp_path / "results").exists()


def test_verify_passes_here_and_fails_with_a_wrong_implementation(cli):
    code, out, _ = cli("verify", "--device", "cpu", "--only", "group_shared/*")
    assert code == 0
    assert "40 of 40 checks passed on cpu" in out
    code, out, _ = cli("verify", "--device", "cpu", "--only", "faulty/wrong")
    assert code == 1
    assert "faulty/wrong forward" in out
    assert "0 of 5 checks passed" in out


def test_list_and_doctor(cli, tmp_path):
    code, out, _ = cli("list", "implementations", "--json")
    names = [row["name"] for row in json.loads(out)]
    assert code == 0
    assert {"dense/torch", "group_shared/triton", "faulty/crash"} <= set(names)
    code, out, _ = cli("list", "suites", "--json")
    assert "backward" in [row["name"] for row in json.loads(out)]
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    assert {"python", "torch", "results folder"} <= {row["what"] for row in json.loads(out)}
    code, out, _ = cli("doctor", "--out", "/proc/x")
    assert code == 1
    assert "cannot be written" in out
