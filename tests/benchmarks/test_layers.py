"""The project's own kernels under pytest-benchmark.

    pytest tests/benchmarks --benchmark-autosave, and later --benchmark-compare

Each is verified against the float64 oracle before and after it is timed; nothing here asserts a time. On a machine without
a GPU one tiny point shows that the fixture works; it takes a second.
"""

from __future__ import annotations

import pytest

from gskernels.table import IMPLEMENTATIONS, LINEAR_PASSES

ON_GPU = {"batch": 256, "dim": 768, "labels": 131_072, "fan_in": 32, "group_size": 32}
TINY = {"batch": 4, "dim": 64, "labels": 512, "fan_in": 8, "group_size": 8}
# masked_dense and gather simulate sparsity in plain torch: they are compared in suites, and nobody tunes them.
OURS = [i.name for i in IMPLEMENTATIONS if i.name.partition("/")[2] not in ("gather",) and i.family != "masked_dense"]


@pytest.mark.gpu
@pytest.mark.parametrize("pass_", LINEAR_PASSES)
@pytest.mark.parametrize("implementation", OURS)
def test_on_a_gpu(gpu_benchmark, implementation, pass_):
    gpu_benchmark.case(implementation, pass_, **ON_GPU)


@pytest.mark.benchmark(max_time=0.02)
@pytest.mark.parametrize("implementation", ["dense/torch", "group_shared/torch"])
def test_in_small(gpu_benchmark, implementation):
    gpu_benchmark.case(implementation, "forward", **TINY)
