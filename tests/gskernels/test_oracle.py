"""The float64 specification against autograd of an explicit dense layer, and against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gskernels import oracle
from gskernels.layer import Layer
from gskernels.topology import GroupTopology

B, D, L, K, G, R = 3, 10, 7, 4, 3, 5  # 7 labels in groups of 3: the last group is ragged


def _layers() -> dict[str, Layer]:
    torch.manual_seed(0)
    topology = GroupTopology.uniform(L, D, K, G, seed=1)
    bias = torch.randn(L)
    return {
        "dense": Layer(torch.randn(L, D), bias=bias),
        "bottleneck": Layer(torch.randn(L, R), down=torch.randn(R, D), bias=bias),
        "masked": Layer(torch.randn(L, D), topology, bias=bias),
        "sparse": Layer(torch.randn(L, K), topology, bias=bias),
    }


def _explicit(layout: str, weight: Tensor, down: Tensor | None, topology: GroupTopology | None) -> Tensor:
    """[L, D] by loops, from the definition of the layout alone."""
    if layout == "dense":
        return weight
    if layout == "bottleneck":
        assert down is not None
        return weight @ down
    assert topology is not None
    rows = []
    for label in range(L):
        inputs = topology.indices[label // G].tolist()
        row = torch.zeros(D, dtype=torch.float64)
        for k, i in enumerate(inputs):
            row = row + torch.eye(D, dtype=torch.float64)[i] * weight[label, i if layout == "masked" else k]
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("layout", ["dense", "bottleneck", "masked", "sparse"])
def test_against_autograd(layout: str) -> None:
    layer = _layers()[layout]
    x = torch.randn(B, D).double().requires_grad_()
    grad_out = torch.randn(B, L).double()
    weight = layer.weight.double().requires_grad_()
    down = None if layer.down is None else layer.down.double().requires_grad_()
    assert layer.bias is not None
    bias = layer.bias.double().requires_grad_()
    y = x @ _explicit(layout, weight, down, layer.topology).t() + bias
    y.backward(grad_out)

    def check(pass_: str, *expected: Tensor | None) -> None:
        got = oracle.outputs(pass_, x.detach(), grad_out, layer)
        assert len(got) == len(expected)
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == torch.float64
            torch.testing.assert_close(mine, theirs)

    check("forward", y.detach())
    check("grad_input", x.grad)
    check("grad_weight", weight.grad)
    check("backward", x.grad, weight.grad, *([] if down is None else [down.grad]))
    check("grad_bias", bias.grad)


def test_by_hand() -> None:
    topology = GroupTopology.of(torch.tensor([[0, 2], [1, 2]]), labels=3, dim=3, group_size=2)
    layer = Layer(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), topology, bias=torch.tensor([0.0, 0.0, 1.0]))
    x, grad_out = torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert oracle.dense_weight(layer).tolist() == [[1, 0, 2], [3, 0, 4], [0, 5, 6]]
    assert oracle.outputs("forward", x, grad_out, layer)[0].tolist() == [[201, 403, 651]]
    assert oracle.outputs("grad_input", x, grad_out, layer)[0].tolist() == [[7, 15, 28]]
    assert oracle.outputs("grad_weight", x, grad_out, layer)[0].tolist() == [[1, 100], [2, 200], [30, 300]]


def test_chunks_of_labels_make_up_the_whole() -> None:
    layer = _layers()["sparse"]
    x, grad_out = torch.randn(B, D), torch.randn(B, L)
    whole = oracle.outputs("backward", x, grad_out, layer)
    parts = [
        oracle.outputs("backward", x, grad_out[:, start:stop], layer.rows(start, stop))
        for start, stop in layer.sparse.chunks(G)
    ]
    assert len(parts) == 3
    torch.testing.assert_close(torch.stack([dx for dx, _ in parts]).sum(0), whole[0])
    torch.testing.assert_close(torch.cat([dw for _, dw in parts]), whole[1])


def test_unknown_pass() -> None:
    with pytest.raises(ValueError, match="no pass 'sideways'"):
        oracle.outputs("sideways", torch.zeros(1, D), torch.zeros(1, L), _layers()["dense"])
