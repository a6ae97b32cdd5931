"""What blocks draw work from: zero after every launch, and never shared by launches that may overlap."""

from __future__ import annotations

import pytest
import torch
from test_implementations import make_layer

from gskernels.shape import Shape
from gskernels.table import find

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels.cuda.counters import LEAST, counters
from gskernels.group_shared import cuda

pytestmark = pytest.mark.gpu
SHAPE = Shape(130, 256, 200_000, 64, 32)


@pytest.mark.parametrize("labels", [64, 200_000, 200_008])
def test_a_launch_leaves_zeros(labels: int) -> None:
    layer = make_layer(find("group_shared/cuda"), Shape(130, 256, labels, 64, 32), "bf16", "cuda")
    x = torch.randn(130, 256, device="cuda", dtype=torch.bfloat16)
    first = cuda.forward(x, layer)
    for _ in range(20):
        assert torch.equal(first, cuda.forward(x, layer))
    assert not bool(counters(1, x.get_device()).any())


def test_one_a_stream_and_as_many_as_asked_for() -> None:
    mine = counters(1, 0)
    assert len(mine) == LEAST
    assert counters(2, 0).data_ptr() == mine.data_ptr()
    with torch.cuda.stream(torch.cuda.Stream()):
        other = counters(LEAST + 1, 0)
        assert len(other) == LEAST + 1
        assert counters(1, 0).data_ptr() == other.data_ptr() != mine.data_ptr()


def test_graphs_side_by_side() -> None:
    layer = make_layer(find("group_shared/cuda"), SHAPE, "bf16", "cuda")
    inputs = [torch.randn(SHAPE.batch, SHAPE.dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    right = [cuda.forward(x, layer) for x in inputs]
    graphs, outputs = [], []
    for x in inputs:
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            outputs.append(cuda.forward(x, layer))
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(10):
        for output in outputs:
            output.zero_()
        torch.cuda.synchronize()
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
                graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, outputs, right))
