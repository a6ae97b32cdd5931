"""`fused_loss` and the layers that have it: gradients as autograd of explicit logits has them, updates in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gskernels import BottleneckLinear, GroupSharedLinear, HeadTailLinear
from gskernels.loss import binary_cross_entropy, squared_hinge
from gskernels.optim import SGD, Update
from gskernels.shape import Shape
from gskernels.steps import Targets
from tests.gskernels.streams import beside_and_captured
from tests.gskernels.test_step import draw_targets

B, D, L = 5, 24, 60
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "group_shared": lambda **o: GroupSharedLinear(D, L, 8, 4, **o),
    "bottleneck": lambda **o: BottleneckLinear(D, L, rank=6, **o),
    "head_tail": lambda **o: HeadTailLinear(D, L, 10, 8, 4, label_order=torch.arange(L - 1, -1, -1), **o),
}


def made(name: str, device: str, **options: torch.dtype) -> tuple[nn.Module, Tensor, Targets]:
    torch.manual_seed(0)
    layer = LAYERS[name](device=device, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(B, D).to(device, next(layer.parameters()).dtype).requires_grad_()
    return layer, x, draw_targets(Shape(B, D, L, 8, 4), device, weighted=True)


def unfused(layer: nn.Module, x: Tensor, targets: Targets) -> Tensor:
    loss = binary_cross_entropy if targets.loss == "cross_entropy" else squared_hinge
    return loss(layer(x), targets.positives.pointers, targets.positives.labels, targets.label_weight)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str, loss: str, device: str) -> None:
    layer, x, targets = made(name, device)
    targets = replace(targets, loss=loss)
    wanted = [x, *layer.parameters()]
    mine, theirs = layer.loss(x, targets), unfused(layer, x, targets)  # type: ignore[operator]
    torch.testing.assert_close(mine, theirs)
    got = torch.autograd.grad(3 * mine, wanted)
    for one, other in zip(got, torch.autograd.grad(3 * theirs, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LAYERS)
def test_updates_are_the_optimizers(name: str, device: str) -> None:
    """Three steps, the optimizer's own against those that the layer takes from it."""
    layers = [made(name, device)[0] for _ in range(2)]
    _, x, targets = made(name, device)
    optimizers = [SGD(layer.parameters(), 0.01, momentum=0.9, weight_decay=0.01) for layer in layers]
    for _ in range(3):
        optimizers[0].zero_grad()
        plain = unfused(layers[0], x, targets)
        plain.backward()
        optimizers[0].step()
        updates = {key: optimizers[1].update_of(parameter) for key, parameter in layers[1].named_parameters()}
        fused = layers[1].loss(x, targets, updates)  # type: ignore[operator]
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
        (dx,) = torch.autograd.grad(fused, x)
        assert bool(dx.isfinite().all())
    for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert other.grad is None


def test_without_gradients_nothing_is_updated() -> None:
    layer, x, targets = made("group_shared", "cpu")
    before = layer.weight.clone()  # type: ignore[operator]
    with torch.no_grad():
        layer.loss(x, targets, {"weight": Update(0.1)})  # type: ignore[operator]
    assert torch.equal(layer.weight, before)  # type: ignore[arg-type]


def test_a_parameter_that_is_not_updated_gets_its_gradient() -> None:
    layer, x, targets = made("group_shared", "cpu")
    expected = torch.autograd.grad(unfused(layer, x, targets), layer.bias)[0]  # type: ignore[arg-type]
    layer.loss(x, targets, {"weight": Update(0.1)}).backward()  # type: ignore[operator]
    torch.testing.assert_close(layer.bias.grad, expected, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]
    assert layer.weight.grad is None  # type: ignore[union-attr]


def test_autocast_casts_as_linear_does() -> None:
    layer, x, targets = made("group_shared", "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = layer.loss(x, targets), unfused(layer, x, targets)  # type: ignore[operator]
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=0)
    assert torch.autograd.grad(mine, layer.weight)[0].dtype == torch.float32  # type: ignore[arg-type]


def test_the_operator_is_sound() -> None:
    layer, x, targets = made("group_shared", "cpu")
    lists = targets.positives
    torch.library.opcheck(
        torch.ops.gskernels.step,
        (x, layer.weight, layer.indices, layer.bias, None, lists.pointers, lists.labels, None, "cross_entropy", 4,
         "group_shared/torch"),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LAYERS)
def test_topk_is_that_of_the_logits(name: str, device: str) -> None:
    layer, x, targets = made(name, device)
    with torch.no_grad():
        for exclude in (None, targets.positives):
            z = layer(x)
            if exclude is not None:
                z[exclude.rows(), exclude.labels] = -torch.inf
            values, labels = layer.topk(x.detach(), 12, exclude)  # type: ignore[operator]
            expected = z.topk(12)
            torch.testing.assert_close(values, expected.values)
            left = expected.values > -torch.inf
            assert torch.equal(labels, torch.where(left, expected.indices, -1))


def test_a_wrong_name_is_refused() -> None:
    layer, x, targets = made("head_tail", "cpu")
    with pytest.raises(ValueError, match=r"an update of 'weight', but this layer has head\.weight, head\.bias, tail"):
        layer.loss(x, targets, {"weight": Update(0.1)})  # type: ignore[operator]


def test_under_a_compiler_that_may_not_break_the_graph() -> None:
    layer, x, targets = made("group_shared", "cpu")

    def step(x: Tensor) -> Tensor:
        return layer.loss(x, targets, check=False)  # type: ignore[operator, no-any-return]

    wanted = [x, layer.weight]
    compiled = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(x), wanted)  # type: ignore[arg-type]
    assert all(torch.equal(*pair) for pair in zip(compiled, torch.autograd.grad(step(x), wanted), strict=True))  # type: ignore[arg-type]


@pytest.mark.gpu
def test_compiled_captured_and_on_another_stream() -> None:
    layer, x, targets = made("group_shared", "cuda", dtype=torch.bfloat16)
    expected = torch.autograd.grad(layer.loss(x, targets), x)[0]  # type: ignore[operator]

    def step(x: Tensor) -> Tensor:
        return layer.loss(x, targets, check=False)  # type: ignore[operator, no-any-return]

    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x)[0], expected, rtol=0.02, atol=0.02)
    for dx in beside_and_captured(lambda: torch.autograd.grad(step(x), x)[0]):
        torch.testing.assert_close(dx, expected, rtol=0.02, atol=0.02)


def test_batches_of_more_dimensions() -> None:
    layer, x, targets = made("group_shared", "cpu")
    flat, deep = layer.loss(x, targets), layer.loss(x.view(1, B, D), targets)  # type: ignore[operator]
    assert torch.equal(flat, deep)
    assert F.relu(deep) == deep


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["group_shared", "head_tail"])
def test_second_device(kind: str) -> None:
    """Sizes that the kernels for Hopper take."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    torch.manual_seed(0)
    sizes = (64, 32) if kind == "group_shared" else (100, 64, 32)
    layer = {"group_shared": GroupSharedLinear, "head_tail": HeadTailLinear}[kind](128, 1003, *sizes)
    x, results = torch.randn(100, 128), []
    for device in ("cuda:0", "cuda:1"):  # the current device stays 0
        layer.to(device, torch.bfloat16)
        here = x.to(device, torch.bfloat16).requires_grad_()
        loss = layer.loss(here, draw_targets(Shape(100, 128, 1003, 64, 32), device))
        gradients = torch.autograd.grad(loss, [here, *layer.parameters()])
        with torch.no_grad():
            values, labels = layer.topk(here, 20)
        results.append([one.cpu() for one in (loss, *gradients, values, labels)])
    torch.testing.assert_close(results[1], results[0], rtol=0.02, atol=0.02)
