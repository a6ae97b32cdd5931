"""From a trace to where time goes, occupancy from the architecture's facts, and verdicts in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gsbench.profile import ncu
from gsbench.profile.breakdown import CALL, breakdown
from gsbench.profile.model import Bytes, KernelCounters, Profile, Stall, StaticKernel, Timeline, TimelineReading
from gsbench.profile.occupancy import ARCHITECTURES, architecture_of, occupancy
from gsbench.profile.text import byte_table, markdown
from gsbench.profile.verdict import judged, short, verdict
from tests.gsbench.profile.samples import HOPPER, gpu_trace, ncu_log

CASE = {"implementation": "group_shared/cuda", "pass": "forward", "batch": 256, "dim": 768, "labels": 655_360,
        "fan_in": 64, "group_size": 32,
        "pattern": "uniform", "dtype": "bf16", "mode": "cold", "device": "cuda", "world_size": 1}  # fmt: skip
PROFILE = Profile("key", CASE, "2026-01-01T00:00:00Z", "GPU", {}, (), 87_000_000, 335_000_000, 10**10)


# ---- the trace --------------------------------------------------------------------------------------------------


def test_a_call_is_its_kernels_and_the_gaps_between_them():
    found = breakdown(gpu_trace(gap=2.0, host=40.0, period=200.0), "cuda")
    assert (found.calls, found.span_us, found.busy_us, found.gap_us) == (3, 122.0, 120.0, 2.0)
    assert (found.host_us, found.between_us) == (40.0, 78.0)
    first, second = found.kernels
    assert (first.name, first.launches, first.total_us) == ("first", 1.0, 100.0)
    assert (first.grid, first.block, first.registers) == ((132, 1, 1), (512, 1, 1), 90)
    assert (second.name, second.total_us) == ("second", 20.0)


def test_operators_on_the_cpu_count_their_own_time():
    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, object]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1}

    events = [
        event("user_annotation", CALL, 0, 100), event("cpu_op", "linear", 5, 90), event("cpu_op", "mm", 10, 80),
        event("cpu_op", "elsewhere", 200, 50),
    ]  # fmt: skip
    found = breakdown({"traceEvents": events}, "cpu")
    assert [(k.name, k.total_us) for k in found.kernels] == [("mm", 80), ("linear", 10)]
    assert (found.span_us, found.gap_us) == (100, 10)


@pytest.mark.parametrize(
    ("trace", "says"),
    [({}, "no 'gsbench call'"), ({"traceEvents": []}, "no 'gsbench call'"),
     ({"traceEvents": [e for e in gpu_trace()["traceEvents"] if e.get("cat") != "kernel"]}, "no kernel")],
)  # fmt: skip
def test_a_trace_without_what_is_needed_is_refused(trace, says):
    with pytest.raises(ValueError, match=says):
        breakdown(trace, "cuda")


# ---- occupancy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "percent", "limited_by"),
    [
        ("sm_80", 256, 32, 0, 8, 100.0, "registers and warps"),
        ("sm_80", 256, 33, 0, 6, 75.0, "registers"),  # 33 registers take 40: 12 warps a scheduler
        ("sm_80", 128, 32, 40 << 10, 4, 25.0, "shared memory"),
        ("sm_80", 32, 16, 0, 32, 50.0, "blocks"),
        ("sm_86", 1024, 32, 0, 1, 200 / 3, "warps"),
        ("sm_90a", 384, 168, 0, 1, 18.75, "registers"),
        ("sm_90a", 128, 152, 16 << 10, 3, 18.75, "registers"),
        ("sm_90a", 512, 32, 227 << 10, 1, 25.0, "shared memory"),
        ("sm_90a", 512, 32, (227 << 10) + 1, 0, 0.0, "shared memory"),  # more than a block may have
    ],
)
def test_occupancy_as_the_architecture_allows(arch, threads, registers, shared, blocks, percent, limited_by):
    found = occupancy(ARCHITECTURES[arch], threads, registers, shared)
    assert (found.blocks, found.limited_by) == (blocks, limited_by)
    assert found.percent == pytest.approx(percent)


def test_a_block_without_threads_is_refused():
    with pytest.raises(ValueError, match="at least one thread"):
        occupancy(ARCHITECTURES["sm_80"], 0, 32, 0)


@pytest.mark.parametrize(("capability", "arch"), [("9.0", "sm_90a"), ("8.0", "sm_80"), ("10.0", "sm_100"), ("", "sm_90a")])
def test_the_architecture_of_a_device(capability, arch):
    assert architecture_of(capability) == arch


# ---- verdicts ---------------------------------------------------------------------------------------------------

KERNEL = KernelCounters("k", (132,), (512,), 100.0, dram_pct=20, l2_pct=20, l1_pct=20, tensor_pct=20, issue_pct=20, waves=4)
LONG = (Stall("long_scoreboard", 6.0), Stall("selected", 1.0), Stall("wait", 3.0))


@pytest.mark.parametrize(
    ("change", "bound", "says"),
    [
        ({"dram_pct": 85}, "memory", "DRAM 85 % of its peak"),
        ({"l2_pct": 70}, "memory", "fewer trips to L2"),
        ({"l1_pct": 71, "shared_wavefronts": 4.0, "bank_conflicts": 1.0}, "memory", "25% of the shared-memory wavefronts"),
        ({"l1_pct": 71, "shared_wavefronts": 4.0, "bank_conflicts": 0.0}, "memory", "fewer or wider accesses"),
        ({"tensor_pct": 75, "dram_pct": 65}, "tensor", "tensor-bound"),
        ({"issue_pct": 80}, "issue", "issuing instructions"),
        ({"stalls": LONG}, "latency", "60% of a warp's time it waits for data from global or local memory ("),
        ({"duration_us": 3.0}, "latency", "too short to fill the GPU"),
        ({"waves": 0.2}, "latency", "0.20 waves leave multiprocessors empty"),
        ({"stalls": (Stall("brand_new", 2.0),)}, "latency", "brand_new"),
        ({}, "latency", "no stall reason stands out"),
    ],
)  # fmt: skip
def test_what_bounds_a_kernel(change, bound, says):
    kernel = judged(replace(KERNEL, **change))
    assert kernel.bound == bound
    assert says in kernel.words


def test_a_kernel_without_counters_gets_no_verdict():
    assert judged(KernelCounters("k", (), ())).bound == ""


def test_the_sample_of_ncu_is_bound_by_shared_memory():
    kernel = judged(ncu.counters(ncu.parse(ncu_log([HOPPER]))[0]))
    assert kernel.words.startswith("memory-bound (L1 and shared memory 71 % of its peak): 25% of the shared-memory")


@pytest.mark.parametrize(
    ("trace", "says"),
    [
        (gpu_trace(gap=2.0, host=40.0, period=122.0), "not launch-bound"),
        (gpu_trace(gap=60.0, host=40.0, period=190.0), "Launch-bound: 33% of the call passes between its 2 kernels"),
        (gpu_trace(gap=2.0, host=400.0, period=400.0), "Launch-bound when called back to back: the host takes 400 us"),
    ],
)
def test_launch_bound_or_not(trace, says):
    assert says in verdict(replace(PROFILE, breakdown=breakdown(trace, "cuda")))[0]


@pytest.mark.parametrize(
    ("read", "write", "says"),
    [
        (88e6, 336e6, "1.00 x the fewest possible (422.0 MB): the byte model holds"),
        (187e6, 335e6, "it reads 100.0 MB more than the model; re-reads"),
        (87e6, 235e6, "it writes 100.0 MB less than the model; what the cache still holds"),
    ],
)
def test_measured_bytes_beside_the_model(read, write, says):
    profile = replace(PROFILE, bytes=Bytes(read, write, 87e6, 335e6, 1))
    assert says in verdict(profile)[0]
    assert byte_table([profile]).rows[0][-1] == f"{(read + write) / 422e6:.3f}"


def test_a_second_read_of_the_gradient_is_recognised():
    grad_out = 2 * 256 * 655_360
    profile = replace(PROFILE, case={**CASE, "pass": "backward"}, bytes=Bytes(2 * grad_out + 1e6, 84e6, grad_out, 84e6, 1))
    assert "as if the gradient of the outputs were read 2 times" in verdict(profile)[0]


def test_spills_and_throttled_clocks_are_named():
    readings = tuple(TimelineReading(t, 1980, 3201, 300.0, 40, 10**9, r) for t, r in
                     [(0.0, ("gpu_idle",)), (0.1, ("sw_power_cap",)), (0.2, ("sw_power_cap",)), (0.3, ())])  # fmt: skip
    static = StaticKernel("k", "sm_90a", 1, (132,), 128, 255, 16, 16, 0, 2, 12.5, "registers")
    profile = replace(PROFILE, static=(static,), timeline=Timeline(0.1, 0.3, readings))
    assert verdict(profile) == ("k spills registers: 16 bytes a thread.", "The clocks were held back: sw_power_cap.")
    assert profile.timeline is not None
    assert profile.timeline.reason_spans() == [("gpu_idle", 0.0, 0.1), ("sw_power_cap", 0.1, 0.3)]


@pytest.mark.parametrize(
    ("name", "bare"),
    [("void at::native::(anonymous namespace)::cat_kernel<float, 4>(float *)", "cat_kernel"),
     ("hopper_forward", "hopper_forward"), ("sm90_xmma_gemm_" + "x" * 50, "sm90_xmma_gemm_" + "x" * 32 + "…")],
)  # fmt: skip
def test_names_are_cut_to_what_tells_them_apart(name, bare):
    assert short(name) == bare


def test_markdown_has_each_part_and_why_others_are_missing():
    kernel = judged(ncu.counters(ncu.parse(ncu_log([HOPPER]))[0]))
    profile = replace(
        PROFILE, breakdown=breakdown(gpu_trace(), "cuda"), counters=(kernel,), bytes=Bytes(88e6, 336e6, 87e6, 335e6, 1),
        missing={"timeline": "no NVML | at all"},
    )  # fmt: skip
    text = markdown([profile])
    assert "| DRAM read MB | 88.1 |" in text
    assert "| first | 1 | 100.0 | 83% |" in text
    assert "- no timeline: no NVML | at all" in text
    assert "| group_shared/cuda | forward | B=256 D=768 L=655,360 K=64 G=32 bf16 | 87 | 88 | 335 | 336 | 1.005 |" in text
