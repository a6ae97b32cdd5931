"""The modules against their dense matrices in float64, and what a checkpoint brings back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gskernels import BottleneckLinear, FixedFanInLinear, GroupSharedLinear, HeadTailLinear, Shape
from gskernels.table import FORWARD, IMPLEMENTATIONS
from gskernels.topology import GroupTopology

B, D, L, K, G, H = 5, 40, 37, 8, 4, 6  # 31 labels of the tail: a ragged last group
SMALL = 1200  # bytes of a piece: several pieces of head and tail
CPU = [i.name for i in IMPLEMENTATIONS if i.layout == "sparse" and FORWARD in i.passes and "cpu" in i.devices]


def _order(seed: int = 1) -> Tensor:
    return torch.randperm(L, generator=torch.Generator().manual_seed(seed))


MAKE: dict[str, Callable[..., nn.Module]] = {
    "group_shared": lambda **o: GroupSharedLinear(D, L, K, G, **o),
    "fixed_fan_in": lambda **o: FixedFanInLinear(D, L, K, **o),
    "bottleneck": lambda **o: BottleneckLinear(D, L, K, **o),
    "head_tail": lambda **o: HeadTailLinear(D, L, H, K, G, label_order=_order(), piece_bytes=SMALL, **o),
    "private": lambda **o: HeadTailLinear(D, L, H, K, G, label_order=_order(), head_dim=16, tail_dim=24, **o),
    "overlapping": lambda **o: HeadTailLinear(D, L, H, K, G, head_dim=30, tail_dim=20, piece_bytes=1, **o),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
EVERY = pytest.mark.parametrize("name", list(MAKE))


def _made(name: str, **options: object) -> nn.Module:
    """With a bias that is not zero."""
    torch.manual_seed(0)
    layer = MAKE[name](**options)
    for key, parameter in layer.named_parameters():
        if "bias" in key:
            nn.init.normal_(parameter)
    return layer


def _gradients(y: Tensor, grad_out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, grad_out)


def _dense_gradients(layer: nn.Module, x: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, dx, dW [L, D] and db [L] of the dense layer in float64, labels in the caller's order."""
    dense = layer.to_dense().double()  # type: ignore[operator]
    inputs = (x.detach().double().requires_grad_(), dense.weight, dense.bias)
    y = dense(inputs[0])
    return y.detach(), *_gradients(y, grad_out.double(), *inputs)  # type: ignore[return-value]


def _head_tail_gradients(layer: HeadTailLinear, dense: Tensor, bias: Tensor) -> list[Tensor]:
    """The dense gradients at the places of head.weight, head.bias, tail.weight and tail.bias."""
    first, others = layer.label_order.split([layer.head.out_features, layer.tail.labels])
    tail = dense[others, D - layer.tail.dim :].gather(1, layer.tail.topology.label_indices())
    return [dense[first, : layer.head.in_features], bias[first], tail, bias[others]]


# ---- values and gradients ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("leading", [(B,), (2, 3), (), (0,)])
def test_against_dense(name: str, device: str, leading: tuple[int, ...]) -> None:
    layer = _made(name).to(device)
    x = torch.randn(*leading, D, device=device, requires_grad=True)
    y = layer(x)
    assert y.shape == (*leading, L)
    assert y.is_contiguous()
    grad_out = torch.randn_like(y)
    right, dx, weight, bias = _dense_gradients(layer, x, grad_out)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(y.detach().double(), right, **close)
    mine = [g.double() for g in _gradients(y, grad_out, x, *layer.parameters())]
    if isinstance(layer, HeadTailLinear):
        expected = _head_tail_gradients(layer, weight, bias)
    elif isinstance(layer, GroupSharedLinear):
        expected = [weight.gather(1, layer.topology.label_indices()), bias]
    else:
        assert isinstance(layer, BottleneckLinear)
        expected = [layer.weight.double().t() @ weight, weight @ layer.down.double().t(), bias]
    torch.testing.assert_close(mine, [dx, *expected], **close)


@EVERY
def test_bf16(name: str) -> None:
    layer = _made(name, dtype=torch.bfloat16)
    x = torch.randn(B, D, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    grad_out = torch.randn_like(y)
    right, dx, _, bias = _dense_gradients(layer, x, grad_out)
    torch.testing.assert_close(y.detach().double(), right, rtol=2**-7, atol=2**-6)
    torch.testing.assert_close(_gradients(y, grad_out, x)[0].double(), dx, rtol=2**-6, atol=2**-5)
    if isinstance(layer, HeadTailLinear):
        mine = _gradients(layer(x), grad_out, layer.head.bias, layer.tail.bias)
        torch.testing.assert_close(torch.cat(mine).double()[layer.label_position], bias, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("implementation", CPU)
@pytest.mark.parametrize("name", ["group_shared", "fixed_fan_in", "head_tail"])
def test_any_implementation(name: str, implementation: str) -> None:
    layer = _made(name, implementation=implementation)
    x = torch.randn(B, D, requires_grad=True)
    y = layer(x)
    grad_out = torch.randn_like(y)
    right, dx, *_ = _dense_gradients(layer, x, grad_out)
    mine = (y.detach().double(), _gradients(y, grad_out, x)[0].double())
    torch.testing.assert_close(mine, (right, dx), rtol=1e-4, atol=1e-5)
    assert implementation in repr(layer)


@EVERY
def test_autocast(name: str) -> None:
    layer, x = _made(name), torch.randn(B, D, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in _gradients(y, torch.ones_like(y), x, *layer.parameters())] == [torch.float32] * (
        1 + len(list(layer.parameters()))
    )
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.1)




# ---- topology ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [GroupSharedLinear(D, L, K, G), FixedFanInLinear(D, L, K)])
def test_topology(layer: GroupSharedLinear) -> None:
    topology = layer.topology
    assert topology.indices is layer.indices
    assert topology.indices.sort(1).values.diff(dim=1).min() > 0  # distinct inputs
    derived = topology.memo("something", lambda: object())
    assert layer.topology.memo("something", lambda: object()) is derived
    other = GroupTopology.uniform(L, D, K, layer.group_size, seed=9)
    before, x = layer.indices, torch.randn(B, D)
    layer(x)
    layer.set_topology(other)
    assert layer.indices is before
    assert torch.equal(layer.indices, other.indices)
    assert layer.indices.data_ptr() != other.indices.data_ptr()
    assert layer.topology.memo("something", lambda: object()) is not derived
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)
    for wrong, message in (
        (GroupTopology.uniform(L + 1, D, K, layer.group_size), "labels=37, the topology labels=38"),
        (GroupTopology.uniform(L, D + 1, K, layer.group_size), "dim=40, the topology dim=41"),
        (GroupTopology.uniform(L, D, K - 1, layer.group_size), "fan_in=8, the topology fan_in=7"),
        (GroupTopology.uniform(L, D, K, 6), "the topology group_size=6"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.set_topology(wrong)
    assert torch.equal(layer.indices, other.indices)


def test_given_topology_is_copied() -> None:
    topology = GroupTopology.banked(L, D, K, G)
    layer = GroupSharedLinear(D, L, K, G, topology=topology)
    assert torch.equal(layer.indices, topology.indices)
    layer.set_topology(GroupTopology.uniform(L, D, K, G, seed=5))
    assert not torch.equal(layer.indices, topology.indices)
    twins = [GroupSharedLinear(D, L, K, G, seed=seed).indices for seed in (3, 3, 4)]
    assert torch.equal(twins[0], twins[1])
    assert not torch.equal(twins[0], twins[2])




# ---- checkpoints ------------------------------------------------------------------------------------------------


@EVERY
def test_state_dict_round_trip(name: str) -> None:
    """Into a layer of other weights, another topology and another order of labels."""
    layer, x = _made(name), torch.randn(B, D)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = {"seed": 77} if name != "bottleneck" else {}
    if name.startswith("head"):
        fresh: nn.Module = HeadTailLinear(D, L, H, K, G, label_order=_order(2), **other)
    else:
        fresh = MAKE[name](**other)
    fresh(x)  # what it derives from its own indices must not survive
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), layer(x))
    for key, value in layer.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value)
    if isinstance(fresh, HeadTailLinear):
        assert torch.equal(fresh.label_order[fresh.label_position], torch.arange(L))
        assert torch.equal(fresh(x, internal=True)[:, fresh.label_position], layer(x))
    clone = copy.deepcopy(layer)
    assert torch.equal(clone(x), layer(x))


@EVERY
def test_meta_device_and_assignment(name: str) -> None:
    layer, x = _made(name), torch.randn(B, D)
    hollow = MAKE[name](device="meta")
    assert all(t.is_meta for t in hollow.state_dict().values())
    hollow.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(hollow(x), layer(x))


# ---- what they start from, and what they say --------------------------------------------------------------------


@pytest.mark.parametrize("layer", [GroupSharedLinear, FixedFanInLinear, BottleneckLinear, HeadTailLinear, nn.Linear])
def test_initial_logits_have_one_scale(layer: type[nn.Module]) -> None:
    torch.manual_seed(0)
    dim, labels = 256, 2000
    sizes = {GroupSharedLinear: (32, 8), FixedFanInLinear: (32,), BottleneckLinear: (32,), nn.Linear: ()}
    made = HeadTailLinear(dim, labels, 200, 32, 8) if layer is HeadTailLinear else layer(dim, labels, *sizes[layer])
    y = made(torch.randn(64, dim))
    assert float(y.detach().square().mean()) == pytest.approx(1 / 3, rel=0.1)
    for key, parameter in made.named_parameters():
        assert layer is nn.Linear or ("bias" in key) == (not parameter.any())


def test_bottleneck_rank() -> None:
    shape = Shape(1, 768, 5000, 64, 1)
    assert BottleneckLinear(768, 5000, 64).rank == shape.bottleneck_rank == 56
    assert BottleneckLinear(768, 5000, rank=9).rank == 9


def test_repr() -> None:
    shared = "dim=40, labels=37, fan_in=8, group_size=4, bias=True, implementation=default"
    assert repr(GroupSharedLinear(D, L, K, G)) == f"GroupSharedLinear({shared})"
    assert "group_size=1, bias=False" in repr(FixedFanInLinear(D, L, K, bias=False))
    assert repr(BottleneckLinear(D, L, rank=8)) == "BottleneckLinear(dim=40, labels=37, rank=8, bias=True)"
    text = repr(MAKE["private"]())
    for part in ("dim=40, labels=37, head=6", "in_features=16, out_features=6", "dim=24, labels=31"):
        assert part in text


def test_errors() -> None:
    def refuses(message: str, make: Callable[..., object], *sizes: object, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            make(*sizes, **options)

    refuses(r"fan_in must lie in 1\.\.dim=40, got 41", GroupSharedLinear, D, L, 41, G)
    refuses(r"group_size must lie in 1\.\.labels=37, got 38", GroupSharedLinear, D, L, K, 38)
    refuses("'dense/torch' is no sparse .* group_shared/torch", FixedFanInLinear, D, L, K, implementation="dense/torch")
    refuses("fan_in=8, the topology fan_in=7", GroupSharedLinear, D, L, K, G, topology=GroupTopology.uniform(L, D, 7, G))
    refuses("a bottleneck needs fan_in, to match its FLOPs, or rank", BottleneckLinear, D, L)
    refuses("at least 1, got 40, 37 and 0", BottleneckLinear, D, L, rank=0)
    for head in (0, L):
        refuses(rf"head must lie in 1\.\.labels-1=36, got {head}", HeadTailLinear, D, L, head, K, G)
    refuses(r"must lie in 1\.\.dim=40, got 41 and 40", HeadTailLinear, D, L, H, K, G, head_dim=41)
    refuses(r"label_order must be \[37\] int32 or int64, got \[36\]", HeadTailLinear, D, L, H, K, G,
            label_order=torch.arange(36))  # fmt: skip
    refuses(r"label_order must hold each label in 0\.\.36 once", HeadTailLinear, D, L, H, K, G,
            label_order=torch.arange(L) // 2)  # fmt: skip
    frequencies = torch.arange(L)
    from_frequencies = HeadTailLinear.from_frequencies
    refuses(r"frequencies must be \[L\] numbers from 0 on, got \[37, 1\]", from_frequencies, frequencies[:, None], D, K, G)
    refuses("frequencies must be", from_frequencies, frequencies - 1, D, K, G)
    refuses("frequencies must be", from_frequencies, frequencies * float("nan"), D, K, G)
    refuses(r"head must lie in 1\.\.labels-1=36, got 0", from_frequencies, frequencies, D, K, G, head_share=0.01)
    refuses("the 4 labels of the head and tail_order must hold each label", from_frequencies, frequencies, D, K, G,
            tail_order=torch.arange(4, L))  # fmt: skip
    refuses(r"x must be \[\*, 40\] for this layer, got \[5, 39\]", MAKE["private"](), torch.randn(5, 39))
