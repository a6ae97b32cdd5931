"""fixed_fan_in/cuda without a GPU: what its launchers compile, the lists by input, the choice of a route."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels import routes
from gskernels.cuda import jit
from gskernels.fixed_fan_in import cuda_dense, cuda_gather
from gskernels.layer import Layer
from gskernels.table import find
from gskernels.topology import GroupTopology

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# B, D, K, dtype: the suites' default point; a batch of one slice; lists of odd and of several lengths; rows that are too
# many for shared memory, with both types of index; the longest lists. L changes nothing.
LAUNCHES = [
    (256, 768, 64, BF16), (256, 768, 64, FP32), (16, 768, 64, BF16), (130, 1500, 100, FP16), (3, 41, 7, BF16),
    (33, 64, 33, FP32), (256, 4096, 128, BF16), (70, 4096, 128, FP32), (9, 40_000, 16, BF16), (256, 768, 768, BF16),
    (256, 768, 256, BF16),
]  # fmt: skip
Variant = tuple[str, tuple[tuple[str, int | str], ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[Variant]:
    """The sources and macros that launchers ask for."""
    variants: set[Variant] = set()

    class Started:
        def launch(self, *args: Any, **options: Any) -> None:
            pass

        def blocks_per_sm(self, *args: Any) -> int:
            return 1

    def kernel(source: str, name: str, defines: dict[str, int | str], device: int) -> Started:
        variants.add((source, tuple(sorted(defines.items()))))
        return Started()

    for module in (cuda_dense, cuda_gather):
        monkeypatch.setattr(module, "kernel", kernel)
    monkeypatch.setattr(cuda_gather, "shared_bytes_limit", lambda device: 227 << 10)
    return variants


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize(("batch", "dim", "fan_in", "dtype"), LAUNCHES, ids=str)
def test_what_is_launched_compiles_and_spills_nothing(
    batch: int, dim: int, fan_in: int, dtype: torch.dtype, arch: str, asked: set[Variant]
) -> None:
    labels = 20
    topology = GroupTopology.uniform(labels, dim, fan_in)
    x, dy = torch.zeros(batch, dim, dtype=dtype), torch.zeros(batch, labels, dtype=dtype)
    layer = Layer(torch.zeros(labels, fan_in, dtype=dtype), topology, bias=torch.zeros(labels, dtype=dtype))
    cuda_gather.forward(x, layer)
    cuda_gather.grad_input(dy, layer)
    cuda_gather.grad_weight(dy, x, layer)
    if dim * dtype.itemsize <= routes.ROW_BYTES:
        cuda_dense.forward(x, layer)
    assert {source for source, _ in asked} >= {
        f"fixed_fan_in/cuda_{name}.cu" for name in ("forward", "grad_weight", "grad_input", "expand")
    }
    for source, defines in asked:
        binary = jit.compile(source, arch, dict(defines))
        spilling = {name: needs for name, needs in binary.kernels.items() if needs.spills or needs.stack}
        assert not spilling, (source, defines)


@pytest.mark.parametrize(("labels", "dim", "fan_in"), [(2000, 41, 7), (768, 16, 16), (5, 64, 3)])
def test_lists_by_input_hold_every_weight_once(labels: int, dim: int, fan_in: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as the kernel reads them, they give the sums of grad_input."""
    monkeypatch.setattr(cuda_gather, "PLAN_ENTRIES", 1000)  # several rounds of sorting
    topology = GroupTopology.uniform(labels, dim, fan_in)
    plan, share = cuda_gather.Plan.of(topology), cuda_gather.PLAN_SHARE
    weight, dy = torch.randn(labels, fan_in, dtype=torch.float64), torch.randn(3, labels, dtype=torch.float64)
    groups = -(-dim // share)
    dx = torch.zeros(3, groups * share, dtype=torch.float64)
    ends = plan.offsets.tolist()
    assert ends[-1] + 4 * 8 * share == len(plan.source) == len(plan.local)
    for list_, (start, stop) in enumerate(pairwise(ends)):
        chunk, group = divmod(list_, groups)
        entries = torch.arange(start, stop)
        assert (stop - start) % (8 * share) == 0
        entries = entries[plan.source[start:stop] >= 0]
        d = group * share + (entries - start) // 8 % share
        label = chunk * cuda_gather.PLAN_LABELS + plan.local[entries].long()
        source = plan.source[entries].long()
        assert torch.equal(label, source // fan_in)
        dx.index_add_(1, d, dy[:, label] * weight.flatten()[source])
    dense = torch.zeros(labels, dim, dtype=torch.float64).scatter(1, topology.indices.long(), weight)
    torch.testing.assert_close(dx[:, :dim], dy @ dense)
    assert int((plan.source >= 0).sum()) == labels * fan_in


def test_short_lists_and_small_batches_are_gathered() -> None:
    for pass_ in ("forward", "grad_input", "grad_weight"):
        assert routes.takes_dense(pass_, 256, 768, 655_360, 64, 2)
        assert not routes.takes_dense(pass_, 8, 768, 655_360, 16, 2)
        assert not routes.takes_dense(pass_, 256, 8192, 655_360, 64, 2)
        assert not routes.takes_dense(pass_, 4096, 64 << 10, 655_360, 32 << 10, 2)  # rows too long to expand
        assert routes.takes_dense(pass_, 256, 768, 655_360, 768, 4)
    assert routes.takes_dense("forward", 64, 384, 670_096, 64, 2)
    assert not routes.takes_dense("forward", 64, 384, 670_091, 64, 2)  # rows of Y that are not aligned


def test_chunks_are_whole_and_within_the_labels() -> None:
    assert routes.chunk_labels(655_360, 768, 2) == 131_072
    assert routes.chunk_labels(100, 768, 2) == 100
    assert routes.chunk_labels(10**6, 10**6, 4) == 128


@pytest.mark.parametrize(
    ("batch", "dim", "item", "share", "resident", "stride"),
    [(256, 768, 2, 2, True, 256), (64, 768, 2, 4, True, 64), (65, 1500, 2, 4, True, 128), (256, 4096, 2, 2, False, 256),
     (256, 768, 4, 2, True, 256), (1, 768, 4, 4, True, 32)],
)  # fmt: skip
def test_slices(batch: int, dim: int, item: int, share: int, resident: bool, stride: int) -> None:
    slices = cuda_gather.Slices.of(batch, dim, item, torch.int16, 227 << 10)
    assert (slices.share, slices.resident, slices.stride) == (share, resident, stride)


def test_a_cpu_tensor_is_refused_in_words() -> None:
    module = find("fixed_fan_in/cuda").load()
    layer = Layer(torch.zeros(4, 2), GroupTopology.uniform(4, 8, 2))
    with pytest.raises(ValueError, match="runs on cuda, not on cpu"):
        module.forward(torch.zeros(1, 8), layer)
