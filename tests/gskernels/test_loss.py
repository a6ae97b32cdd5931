"""Losses with sparse positives against the dense formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gskernels import loss as losses
from gskernels.loss import binary_cross_entropy, squared_hinge
from tests.allocations import allocations

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LOSSES = [binary_cross_entropy, squared_hinge]
# relative rounding of one number, from fp32 sums
EPS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def _dense(loss: Callable[..., Tensor], logits: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """The definition."""
    if loss is binary_cross_entropy:
        return F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")
    each = (1 - (2 * targets - 1) * logits).clamp(min=0).square()
    return (each if weight is None else each * weight).sum()


def _sparse(targets: Tensor) -> tuple[Tensor, Tensor]:
    pointers = F.pad(targets.count_nonzero(1).cumsum(0), (1, 0))
    return pointers, targets.nonzero()[:, 1]


def _problem(batch: int = 6, labels: int = 50, seed: int = 0, share: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, labels, generator=generator, dtype=torch.float64)
    targets = (torch.rand(batch, labels, generator=generator) < share).double()
    return logits, targets, torch.rand(labels, generator=generator, dtype=torch.float64)


def _truth(
    loss: Callable[..., Tensor], logits: Tensor, targets: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    z = logits.detach().double().requires_grad_()
    value = _dense(loss, z, targets, weight)
    return value.detach(), torch.autograd.grad(value, z)[0]


def _assert_right(
    loss: Callable[..., Tensor], logits: Tensor, targets: Tensor, weight: Tensor | None = None, **options: bool | int
) -> None:
    """Value and gradient, each number within the rounding of the logits' type."""
    expected, gradient = _truth(loss, logits, targets, weight)
    eps = EPS[logits.dtype]
    z = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = z.mul(1) if options.get("in_place") else z
    value = loss(output, *_sparse(targets), weight, **options)
    assert value.dtype == torch.promote_types(logits.dtype, torch.float32)
    torch.testing.assert_close(value.double(), expected, rtol=max(EPS[value.dtype], 1e-12), atol=1e-5)
    (mine,) = torch.autograd.grad(3 * value, z)
    torch.testing.assert_close(mine.double(), 3 * gradient, rtol=2 * eps, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_against_dense(
    loss: Callable[..., Tensor], dtype: torch.dtype, weighted: bool, in_place: bool, device: str
) -> None:
    logits, targets, weight = (tensor.to(device) for tensor in _problem())
    _assert_right(loss, logits.to(dtype), targets, weight if weighted else None, in_place=in_place, chunk_bytes=999)


@settings(max_examples=60, deadline=None)
@given(
    loss=st.sampled_from(LOSSES), batch=st.integers(0, 7), labels=st.integers(1, 40), share=st.sampled_from([0, 0.2, 1]),
    chunk_bytes=st.integers(1, 3000), in_place=st.booleans(), check=st.booleans(), turned=st.booleans(),
)  # fmt: skip
def test_any_shape(
    loss: Callable[..., Tensor], batch: int, labels: int, share: float, chunk_bytes: int, in_place: bool, check: bool,
    turned: bool,
) -> None:  # fmt: skip
    logits, targets, _ = _problem(batch, labels, seed=batch, share=share)
    logits = logits.float().t().contiguous().t() if turned else logits.float()
    _assert_right(loss, logits, targets, chunk_bytes=chunk_bytes, in_place=in_place, check=check)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Callable[..., Tensor]) -> None:
    logits, targets, weight = _problem(3, 7)
    lists = _sparse(targets)
    assert torch.autograd.gradcheck(lambda z: loss(z, *lists, weight, chunk_bytes=64), logits.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("in_place", [False, True])
def test_slices_of_a_wider_buffer(loss: Callable[..., Tensor], in_place: bool) -> None:
    logits, targets, _ = _problem()
    expected, gradient = _truth(loss, logits[:, 10:30], targets[:, 10:30], None)
    buffer = logits.float()
    view = buffer[:, 10:30].detach().requires_grad_()
    value = loss(view, *_sparse(targets[:, 10:30]), in_place=in_place)
    (mine,) = torch.autograd.grad(value, view)
    torch.testing.assert_close((value.double(), mine.double()), (expected, gradient), rtol=1e-5, atol=1e-5)
    assert (mine.data_ptr() == view.data_ptr()) == in_place
    torch.testing.assert_close(buffer[:, :10], logits[:, :10].float())
    torch.testing.assert_close(buffer[:, 30:], logits[:, 30:].float())


@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_stay_exact(loss: Callable[..., Tensor]) -> None:
    logits = torch.tensor([[80.0, -80.0, 200.0, -200.0]])
    for targets in ([[0.0, 0, 0, 0]], [[1.0, 1, 1, 1]], [[1.0, 0, 1, 0]]):
        _assert_right(loss, logits, torch.tensor(targets, dtype=torch.float64))


def test_positive_gradient_is_rounded_once() -> None:
    """sigmoid(9) - 1 is -1.2e-4; in bf16, sigmoid(9) is 1."""
    logits = torch.full((1, 3), 9.0, dtype=torch.bfloat16, requires_grad=True)
    binary_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1])).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == pytest.approx(-1.2339e-4, rel=2**-8)


def test_nan_is_not_hidden() -> None:
    logits = torch.tensor([[0.0, float("nan")]])
    assert bool(binary_cross_entropy(logits, torch.tensor([0, 0]), torch.tensor([], dtype=torch.long)).isnan())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_memory_is_bounded(loss: Callable[..., Tensor], dtype: torch.dtype, weighted: bool) -> None:
    batch, labels, chunk_bytes, slack = 32, 20_000, 64 << 10, 16 << 10  # positives and scalars
    logits = torch.randn(batch, labels).to(dtype).requires_grad_()
    pointers, positives = torch.arange(batch + 1) * 3, torch.arange(3 * batch)
    weight = torch.rand(labels) if weighted else None

    def forward(in_place: bool = False) -> Tensor:
        return loss(logits.view_as(logits), pointers, positives, weight, chunk_bytes=chunk_bytes, in_place=in_place)

    forward()
    assert allocations(forward).peak <= chunk_bytes + slack
    value = forward()
    size = logits.numel() * logits.element_size()
    peak = allocations(lambda: torch.autograd.grad(value, logits)).peak
    assert size <= peak <= size + chunk_bytes + slack
    value = forward(in_place=True)
    assert allocations(lambda: torch.autograd.grad(value, logits)).peak <= chunk_bytes + slack


def test_in_place_refuses_what_would_be_wrong() -> None:
    leaf, targets, _ = _problem()
    lists = _sparse(targets)
    value = binary_cross_entropy(leaf.requires_grad_().mul(1), *lists, in_place=True)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    logits = leaf.sigmoid()  # keeps its output for its gradient
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        binary_cross_entropy(logits, *lists, in_place=True).backward()


def test_errors() -> None:
    logits, pointers, positives = torch.randn(3, 5), torch.tensor([0, 2, 2, 3]), torch.tensor([1, 4, 0])

    def refuses(message: str, **changed: object) -> None:
        arguments = {"logits": logits, "pointers": pointers, "positives": positives, **changed}
        for loss in LOSSES:
            with pytest.raises(ValueError, match=message):
                loss(**arguments)  # type: ignore[arg-type]

    refuses(r"logits must be \[B, L\] in float32, .* got \[5\] in torch.float32", logits=logits[0])
    refuses(r"logits must be .* got \[3, 5\] in torch.int64", logits=logits.long())
    refuses(r"pointers must be \[4\] for 3 rows of logits, got \[3\]", pointers=pointers[1:])
    refuses(r"pointers must be 1-d int32 or int64, got \[4\] in torch.float32", pointers=pointers.float())
    refuses(r"positives must be 1-d int32 or int64, got \[3, 1\] in torch.int64", positives=positives[:, None])
    refuses("from 0 to the number of positives, 3, got 0 to 2", pointers=torch.tensor([0, 2, 2, 2]))
    refuses("from 0 to the number of positives, 3, got 1 to 3", pointers=torch.tensor([1, 2, 2, 3]))
    refuses("pointers must not fall, but do after row 1", pointers=torch.tensor([0, 2, 1, 3]))
    refuses(r"positive 5 of row 0 is outside 0\.\.4", positives=torch.tensor([1, 5, 0]))
    refuses(r"positive -1 of row 2 is outside 0\.\.4", positives=torch.tensor([1, 4, -1]))
    refuses("positive 4 appears twice in row 0", positives=torch.tensor([4, 4, 0]))
    refuses("must ascend within a row, but 1 follows 4 in row 0", positives=torch.tensor([4, 1, 0]))
    refuses(r"weight must be \[5\] floating, got \[4\] in torch.float32", weight=torch.ones(4))
    refuses(r"weight must be \[5\] floating, got \[5\] in torch.int64", weight=torch.ones(5).long())
    refuses("weight requires a gradient", weight=torch.ones(5, requires_grad=True))
    refuses("positives must be on the device of logits, cpu, got meta", positives=positives.to("meta"))
    refuses("chunk_bytes must be at least 1, got 0", chunk_bytes=0)
    refuses("in_place needs logits with memory of their own", logits=logits[:1].expand(3, 5), in_place=True)


def test_check_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_lists",):
        monkeypatch.setattr(losses, name, lambda *a: pytest.fail("looked at the contents"))
    logits, targets, _ = _problem()
    binary_cross_entropy(logits, *_sparse(targets), check=False)


def test_int32_lists() -> None:
    logits, targets, _ = _problem()
    pointers, positives = _sparse(targets)
    torch.testing.assert_close(
        binary_cross_entropy(logits, pointers.int(), positives.int()), binary_cross_entropy(logits, pointers, positives)
    )
