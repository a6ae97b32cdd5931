"""Starting kernels: every kind of argument, clusters, tensor maps, graphs, threads, and what errors say."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels import tune
from gskernels.cuda import jit
from gskernels.cuda import launch as launching

SOURCE = """
#include "hopper.cuh"
extern "C" __global__ void arguments(const float* x, const float* none, float* out, int i, i64 wide, float f) {
  if (threadIdx.x == 0) out[0] = x[0], out[1] = none == nullptr, out[2] = i, out[3] = wide == (1ll << 40) - 1, out[4] = f;
}
extern "C" __global__ void fill(float* out, float value) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = value;
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x] * SCALE;
}
#if __CUDA_ARCH__ >= 900
extern "C" __global__ void ranks(float* out) {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (threadIdx.x == 0) out[blockIdx.x] = rank;
}
extern "C" __global__ void copied(const __grid_constant__ TensorMap map, float* out, int x, int y) {
  __shared__ alignas(128) float box[8 * 4];
  __shared__ alignas(8) u64 done;
  const u32 barrier = shared_address(&done);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence();
    mbarrier_expect(barrier, sizeof(box));
    tma_load(shared_address(box), &map, barrier, x, y);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  out[threadIdx.x] = box[threadIdx.x];
}
extern "C" __global__ void slow(float* out) {
  start_next();
  __nanosleep(100'000);
  out[threadIdx.x] += 1;
}
extern "C" __global__ void twice(const float* x, float* out) {
  wait_for_earlier();
  out[threadIdx.x] = x[threadIdx.x] * 2;
}
#endif
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GSKERNELS_CACHE", str(tmp_path / "cache"))
    tune.reset()
    (tmp_path / "kernels.cu").write_text(SOURCE)
    return str(tmp_path / "kernels.cu")


def loaded(source: str, name: str) -> launching.Kernel:
    return launching.kernel(source, name, {"SCALE": 2}, 0)


def test_arguments_become_words() -> None:
    word = launching._word
    assert [word(7), word(-1), word(True), word(None)] == [7, 2**64 - 1, 1, 0]
    assert word(launching.I64(2**40)) == 2**40
    assert word(1.5) == 0x3FC00000
    with pytest.raises(OverflowError, match="4294967296 does not fit 32 bits"):
        word(2**32)
    with pytest.raises(TypeError, match="not one on cpu"):
        word(torch.ones(1))
    with pytest.raises(TypeError, match="no argument of type str"):
        word("text")  # type: ignore[arg-type]


def test_the_test_kernels_compile(source: str) -> None:
    names = {"arguments", "fill", "ranks", "copied", "slow", "twice"}
    assert set(jit.compile(source, "sm_90a", {"SCALE": 2}).kernels) == names


@pytest.mark.gpu
def test_every_kind_of_argument(source: str) -> None:
    x, out = torch.full((1,), 3.0, device="cuda"), torch.zeros(5, device="cuda")
    loaded(source, "arguments").launch(1, 32, (x, None, out, -5, launching.I64(2**40 - 1), 0.25))
    assert out.tolist() == [3.0, 1.0, -5.0, 1.0, 0.25]


@pytest.mark.gpu
def test_launches_are_recorded_with_what_they_use(source: str) -> None:
    out = torch.zeros(128, device="cuda")
    fill = loaded(source, "fill")
    fill.launch((2, 1), (64, 1, 1), (out, 1.5), shared_bytes=100_000)
    assert out.tolist() == [3.0] * 128
    facts = tune.launched_kernels()["fill"]
    assert facts["config"] == {"SCALE": 2}
    assert facts["shared_bytes"] == 100_000
    assert facts["spills"] == 0
    assert facts["sha256"] == fill.binary.sha256
    assert fill is loaded(source, "fill")
    assert fill.blocks_per_sm(64, 1000) >= 1


@pytest.mark.gpu
def test_a_graph_on_a_side_stream_repeats_launches(source: str) -> None:
    out, fill = torch.zeros(64, device="cuda"), loaded(source, "fill")
    fill.launch(1, 64, (out, 1.0), 256)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fill.launch(1, 64, (out, 4.0), 256)
    graph.replay()
    torch.cuda.synchronize()
    assert out.tolist() == [8.0] * 64


@pytest.mark.gpu
def test_a_thread_that_never_used_the_gpu(source: str) -> None:
    out, errors = torch.zeros(64, device="cuda"), list[Any]()

    def work() -> None:
        try:
            loaded(source, "fill").launch(1, 64, (out, 4.0), 256)
        except Exception as error:
            errors.append(error)

    for _ in range(2):  # one loads the kernel, one finds it loaded
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    torch.cuda.synchronize()
    assert not errors
    assert out.tolist() == [8.0] * 64


@pytest.mark.gpu
def test_errors_name_the_kernel_and_its_shape(source: str) -> None:
    out, fill = torch.zeros(1, device="cuda"), loaded(source, "fill")
    with pytest.raises(launching.LaunchError, match=r"^fill does not start: CUDA_ERROR_INVALID_VALUE .*block 2048"):
        fill.launch(1, 2048, (out, 1.0))
    with pytest.raises(launching.LaunchError, match=r"9999999 bytes of shared memory\) for fill failed"):
        fill.launch(1, 32, (out, 1.0), 9_999_999)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs sm_90 or newer"
)
def test_clusters_and_tensor_maps(source: str) -> None:
    ranks = torch.full((8,), -1.0, device="cuda")
    for _ in range(2):
        loaded(source, "ranks").launch(8, 32, (ranks,), cluster=4)
    assert ranks.tolist() == [0, 1, 2, 3] * 2
    matrix, out = torch.arange(16 * 20.0, device="cuda").view(16, 20), torch.zeros(4, 8, device="cuda")
    described = launching.tensor_map(matrix, (20, 16), (20 * 4,), (8, 4))
    loaded(source, "copied").launch(1, 32, (described, out, 4, 13))
    assert torch.equal(out[:3], matrix[13:, 4:12])
    assert not out[3].any()  # beyond the matrix
    assert launching.tensor_map(matrix, (20, 16), (20 * 4,), (8, 4)) is described
    with pytest.raises(launching.LaunchError, match="box"):
        launching.tensor_map(matrix, (20, 16), (20 * 4,), (512, 4))
    with pytest.raises(ValueError, match="no tensor map of torch.int8"):
        launching.tensor_map(matrix, (20, 16), (20 * 4,), (8, 4), dtype=torch.int8)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs sm_90 or newer"
)
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_an_early_launch_sees_what_the_kernel_before_wrote(source: str, captured: bool, beside: bool) -> None:
    x, out = torch.zeros(32, device="cuda"), torch.zeros(4, 32, device="cuda")

    def work() -> None:
        for row in out:
            loaded(source, "slow").launch(1, 32, (x,), beside=beside)
            loaded(source, "twice").launch(1, 32, (x, row), early=True)

    work()
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graph.replay()
    first = 4 if captured else 0
    assert out[:, 0].tolist() == [2.0 * (first + i) for i in range(1, 5)]
    assert torch.equal(out, out[:, :1].expand_as(out))
