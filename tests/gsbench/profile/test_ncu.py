"""Nsight Compute's output as counters, and its refusals as one line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gsbench.profile import ncu, process
from tests.gsbench.profile.samples import HOPPER, MARKER, VALUES, ncu_log

CALLS = [MARKER, HOPPER, MARKER, "reduce", MARKER, "a", "b", MARKER, "reduce"]


def test_kernels_are_told_apart_by_the_markers_between_calls():
    counted = ncu.divided(ncu.parse(ncu_log(CALLS)))
    assert [[row["Kernel Name"] for row in call] for call in counted.calls] == [[HOPPER], ["a", "b"]]
    assert [[row["Kernel Name"] for row in rest] for rest in counted.after] == [["reduce"], ["reduce"]]


def test_a_marker_without_its_partner_is_a_call_that_was_cut_off():
    with pytest.raises(ncu.NoCounters, match="more than the 400 kernels"):
        ncu.divided(ncu.parse(ncu_log([MARKER, HOPPER, MARKER, MARKER, "a"])))


def test_counters_in_their_units():
    kernel = ncu.counters(ncu.parse(ncu_log([HOPPER]))[0])
    assert (kernel.name, kernel.grid, kernel.block) == (HOPPER, (132, 1, 1), (512, 1, 1))
    assert kernel.duration_us == pytest.approx(136.416)
    assert kernel.dram_read == 88.1e6
    assert kernel.l2_write == 10_485_760 * 32
    assert kernel.l2_reduced == 1_000 * 32
    assert kernel.sm_pct is None  # n/a
    assert (kernel.registers, kernel.shared_bytes) == (90, 232_448)
    assert [(s.reason, s.cycles) for s in kernel.stalls] == [("gmma", 4.25), ("long_scoreboard", 2.5), ("selected", 1.0)]


def test_a_metric_that_was_not_counted_is_missing_and_not_zero():
    kernel = ncu.counters(ncu.parse(ncu_log([HOPPER], {"gpu__time_duration.sum": "1000"}))[0])
    assert kernel.duration_us == 1.0
    assert kernel.dram_read is None
    assert kernel.l2_reduced is None
    assert kernel.stalls == ()


def test_the_command_leaves_the_clocks_alone_and_counts_only_between_start_and_stop():
    words = ncu.command("ncu", ncu.BYTES, True, Path("log"), ["python", "x.py"])
    pairs = dict(zip(words[1::2], words[2::2], strict=False))
    assert pairs["--clock-control"] == "none"
    assert pairs["--profile-from-start"] == "off"
    assert pairs["--cache-control"] == "none"
    assert pairs["--metrics"] == "dram__bytes_read.sum,dram__bytes_write.sum"
    assert words[-2:] == ["python", "x.py"]


def test_every_metric_that_is_asked_for_is_read():
    assert set(VALUES) <= set(ncu.COUNTERS)
    assert len(set(ncu.COUNTERS)) == len(ncu.COUNTERS)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the "
         "target device 0.\n", "no permission to read the GPU's counters (ERR_NVGPUCTRPERM): run as root"),
        ("==PROF== Connected to process 1\n==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n",
         "ncu ended with exit code 1: Failed to initialize the profiler: LibraryNotLoaded"),
        ("==WARNING== No kernels were profiled.\nTraceback (most recent call last):\n  x\n"
         "torch.OutOfMemoryError: CUDA out of memory\n",
         "ncu ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory"),
        ("==WARNING== No kernels were profiled.\n", "ncu ended with exit code 1: no kernel was counted"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_clear_line(log, says):
    words = ncu.complaint(log, 1)
    assert words.startswith(says)
    assert "\n" not in words


def fake_ncu(folder: Path, body: str) -> str:
    """A program that stands for ncu: `log` is the file it must write, `metrics` what it was asked for."""
    path = folder / "ncu"
    lines = f"""#!{sys.executable}
import sys
log, metrics = sys.argv[sys.argv.index("--log-file") + 1], sys.argv[sys.argv.index("--metrics") + 1].split(",")
{body}
"""
    path.write_text(lines)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_metric_that_the_gpu_lacks_is_left_out_and_the_rest_counted(tmp_path):
    (tmp_path / "sample").write_text(ncu_log([MARKER, HOPPER, MARKER], passes=1))
    body = f"""
if "lts__t_sector_hit_rate.pct" in metrics:
    open(log, "w").write("==ERROR== Failed to find metric regex:^lts__t_sector_hit_rate\\\\.(sum|pct)$\\n")
    sys.exit(1)
open(log, "w").write(open({str(tmp_path / "sample")!r}).read())
"""
    counted = ncu.count(fake_ncu(tmp_path, body), ncu.COUNTERS, False, ["true"], dict(os.environ), 60.0)
    assert [row["Kernel Name"] for row in counted.calls[0]] == [HOPPER]
    assert counted.passes == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('open(log, "w").write("==ERROR== ERR_NVGPUCTRPERM - no\\n"); sys.exit(1)', "no permission"),
        ("import time; time.sleep(30)", "took more than 1 s"),
        ('print("==ERROR== Profiling is not supported"); sys.exit(2)', "exit code 2: Profiling is not supported"),
    ],
)
def test_ncu_without_counters_says_why(tmp_path, body, says):
    with pytest.raises(ncu.NoCounters, match=says):
        ncu.count(fake_ncu(tmp_path, body), ncu.BYTES, True, ["true"], dict(os.environ), 1.0)


def test_an_ncu_that_cannot_start_says_so(tmp_path):
    with pytest.raises(ncu.NoCounters, match="does not start"):
        ncu.count(str(tmp_path / "none"), ncu.BYTES, True, ["true"], dict(os.environ), 5.0)


def test_what_takes_too_long_is_ended_with_all_it_started(tmp_path):
    script = f"sleep 30 & echo $! > {tmp_path}/child; wait"
    with pytest.raises(subprocess.TimeoutExpired):
        process.run(["sh", "-c", script], dict(os.environ), 0.5)
    child = int((tmp_path / "child").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True, check=False).stdout
    assert not state.strip() or state.startswith("Z")
