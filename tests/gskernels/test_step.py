"""The pass `step` of every implementation against the float64 oracle, and bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gskernels import chunked, oracle
from gskernels.layer import Layer
from gskernels.optim import UPDATES, Update
from gskernels.positives import Positives
from gskernels.shape import Shape
from gskernels.steps import PARAMETERS, Targets, step
from gskernels.table import IMPLEMENTATIONS, STEP, Implementation, find
from tests.gskernels.test_implementations import DTYPES, SHAPES, TOLERANCE, fitting, make_layer

# Small on purpose, as there: an odd shape, the edges of a tile, an empty batch, a single label.
NAMES = ("odd everything", "past a tile", "empty batch", "one label", "one row, ragged")
EVERY = [
    pytest.param(i, device, marks=[pytest.mark.gpu] if device == "cuda" else [], id=f"{i.name}-{device}")
    for i in IMPLEMENTATIONS if STEP in i.passes for device in i.devices
]  # fmt: skip
LOSSES = ("cross_entropy", "squared_hinge")


def draw_targets(shape: Shape, device: str = "cpu", loss: str = "cross_entropy", weighted: bool = False) -> Targets:
    """A tenth of the labels of each row; the first row has none, the last has all."""
    generator = torch.Generator().manual_seed(3)
    dense = torch.rand(shape.batch, shape.labels, generator=generator) < 0.1
    if shape.batch > 1:
        dense[0], dense[-1] = False, True
    pointers = torch.nn.functional.pad(dense.sum(1).cumsum(0), (1, 0))
    weight = torch.rand(shape.labels, generator=generator).to(device) + 0.5 if weighted else None
    return Targets(Positives(pointers.to(device), dense.nonzero()[:, 1].to(device)), loss, weight)


def draw_x(shape: Shape, dtype: str, device: str) -> Tensor:
    return torch.randn(shape.batch, shape.dim, generator=torch.Generator().manual_seed(1)).to(device, DTYPES[dtype])


def assert_close(got: Tensor | None, truth: Tensor | None, own: Tensor | None, dtype: str) -> None:
    """As in test_implementations, but twice that: errors of the logits reach the gradients through a second product."""
    assert (got is None) == (truth is None)
    if got is None or truth is None or own is None:
        return
    assert got.shape == truth.shape
    if got.numel():
        error, reference = (got.double() - truth).abs().max(), (own.double() - truth).abs().max()
        assert float(error) <= 4 * float(reference) + 2 * TOLERANCE[dtype] * float(truth.abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("implementation", "device"), EVERY)
def test_gradients(implementation: Implementation, device: str, dtype: str, name: str) -> None:
    shape = SHAPES[name]
    reason = implementation.unsupported(fitting(implementation, shape), STEP, dtype, device)
    if reason is not None:
        pytest.skip(reason)
    x, layer = draw_x(shape, dtype, device), make_layer(implementation, shape, dtype, device)
    for loss, weighted in zip(LOSSES, (True, False), strict=True):
        targets = draw_targets(shape, device, loss, weighted)
        got = step(x, layer, targets, implementation=implementation.name)
        truth, own = oracle.step(x, layer, targets), oracle.step(x, layer, targets, dtype=x.dtype)
        assert got.loss.dtype == torch.float32
        assert float(got.loss) == pytest.approx(float(truth.loss), rel=1e-5 if dtype == "fp32" else 1e-2)
        for mine, right, theirs in zip(got[1:], truth[1:], own[1:], strict=True):
            assert mine is None or mine.dtype == x.dtype
            assert_close(mine, right, theirs, dtype)


def draw_update(parameter: Tensor, rounding: str, momentum: float = 0.9) -> Update:
    """One that changes every weight visibly, with a state that is not zero."""
    generator = torch.Generator().manual_seed(5)
    buffer, lost = (torch.randn(parameter.shape, generator=generator).to(parameter) for _ in range(2))
    return Update(
        0.05, momentum, 0.1, rounding, seed=2**40 + 7, momentum_buffer=buffer if momentum else None,
        compensation=lost * 1e-3 if rounding == "kahan" else None,
    )  # fmt: skip


def copied(layer: Layer) -> Layer:
    """The same layer with parameters of its own."""
    one = {name: None if (p := getattr(layer, name)) is None else p.clone() for name in PARAMETERS}
    return replace(layer, **one)  # type: ignore[arg-type]


def state_of(update: Update) -> Update:
    buffer, lost = (None if s is None else s.clone() for s in (update.momentum_buffer, update.compensation))
    return replace(update, momentum_buffer=buffer, compensation=lost)


def assert_updated(layer: Layer, before: Layer, updates: dict[str, Update], start: dict[str, Update], dtype: str,
                   truth: dict[str, Tensor | None]) -> None:  # fmt: skip
    """Parameters and momentum as the oracle has them, to a few roundings of the dtype."""
    for name, update in updates.items():
        parameter, gradient = getattr(layer, name), truth[name]
        assert gradient is not None
        right, buffer = oracle.updated(getattr(before, name), gradient, start[name])
        now = parameter.double() if update.compensation is None else parameter.double() + update.compensation.double()
        for got, want in ((now, right), (update.momentum_buffer, buffer)):
            if got is not None and want is not None:
                error = float((got.double() - want).abs().max())
                assert error <= 4 * TOLERANCE[dtype] * float(want.abs().max()), name


@pytest.mark.parametrize(("rounding", "dtype"), [("nearest", "fp32"), *((one, "bf16") for one in UPDATES)])
@pytest.mark.parametrize(("implementation", "device"), EVERY)
def test_updates(implementation: Implementation, device: str, rounding: str, dtype: str) -> None:
    shape = SHAPES["past a tile"]
    reason = implementation.unsupported(fitting(implementation, shape), STEP, dtype, device)
    if reason is not None:
        pytest.skip(reason)
    x, layer = draw_x(shape, dtype, device), make_layer(implementation, shape, dtype, device)
    before, targets = copied(layer), draw_targets(shape, device)
    updates = {name: draw_update(p, rounding) for name in PARAMETERS if (p := getattr(layer, name)) is not None}
    start = {name: state_of(update) for name, update in updates.items()}
    got = step(x, layer, targets, updates, implementation=implementation.name)
    assert got[2:] == (None, None, None, None)
    truth = oracle.step(x, before, targets)
    assert float(got.loss) == pytest.approx(float(truth.loss), rel=1e-5 if dtype == "fp32" else 1e-2)
    assert_close(got.dx, truth.dx, oracle.step(x, before, targets, dtype=x.dtype).dx, dtype)
    assert_updated(layer, before, updates, start, dtype, {"weight": truth.dw, "bias": truth.db, "down": truth.d_down,
                                                            "head": truth.d_head})  # fmt: skip


@pytest.mark.parametrize(("implementation", "device"), EVERY)
def test_what_is_not_finite_shows_and_can_leave_the_weights_alone(implementation: Implementation, device: str) -> None:
    shape = SHAPES["odd everything"]
    x, layer = draw_x(shape, "fp32", device), make_layer(implementation, shape, "fp32", device)
    targets, before = draw_targets(shape, device), copied(layer)
    sound = {"weight": Update(0.1)}
    assert math.isfinite(float(step(x, layer, targets, sound, guard=True, implementation=implementation.name).loss))
    assert not torch.equal(layer.weight, before.weight)
    before = copied(layer)
    x[3] = math.nan
    updates = {name: draw_update(p, "nearest") for name in PARAMETERS if (p := getattr(layer, name)) is not None}
    start = {name: state_of(update) for name, update in updates.items()}
    assert math.isnan(float(step(x, layer, targets, updates, guard=True, implementation=implementation.name).loss))
    for name, update in updates.items():
        assert torch.equal(getattr(layer, name), getattr(before, name))
        assert torch.equal(update.momentum_buffer, start[name].momentum_buffer)  # type: ignore[arg-type]
    assert math.isnan(float(step(x, layer, targets, updates, implementation=implementation.name).loss))


def tensors() -> tuple[Tensor, Layer, Targets]:
    shape, implementation = SHAPES["odd everything"], find("group_shared/torch")
    return draw_x(shape, "fp32", "cpu"), make_layer(implementation, shape, "fp32", "cpu"), draw_targets(shape)


def with_lists(labels: list[int], pointers: list[int] | None = None) -> dict[str, Any]:
    pointers = pointers or [0, len(labels), len(labels), len(labels), len(labels), len(labels)]
    return {"targets": Targets(Positives(torch.tensor(pointers), torch.tensor(labels)))}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (with_lists([3, 2]), "positives must ascend within a row, but 2 follows 3 in row 0"),
        (with_lists([3, 3]), "positive 3 appears twice in row 0"),
        (with_lists([3, 37]), r"positive 37 of row 0 is outside 0\.\.36"),
        (with_lists([-1, 2]), r"positive -1 of row 0 is outside 0\.\.36"),
        (with_lists([1], [0, 1, 1]), r"pointers must be \[6\] for 5 rows of x, got \[3\]"),
        (with_lists([1], [0, 1, 0, 1, 1, 1]), "pointers must not fall, but do after row 1"),
        (with_lists([1], [0, 0, 0, 0, 0, 2]), "pointers must run from 0 to the number of positives, 1, got 0 to 2"),
        ({"x": torch.zeros(5, 40)}, r"x must be \[B, 41\] for this layer, got \[5, 40\]"),
        ({"x": torch.zeros(5, 41).double()}, "x must be float32, float16 or bfloat16, got torch.float64"),
        ({"x": torch.zeros(5, 41).half()}, "weight must have the dtype of x, torch.float16, got torch.float32"),
        ({"loss": "softmax"}, "loss must be one of cross_entropy, squared_hinge, got 'softmax'"),
        ({"label_weight": torch.ones(5)}, r"label_weight must be \[37\] in torch.float32, got \[5\]"),
        ({"updates": {"weights": Update(0.1)}}, "an update of 'weights', but this layer has the parameters weight, bias"),
        ({"updates": {"down": Update(0.1)}}, "an update of 'down', but this layer has the parameters weight, bias"),
        ({"updates": {"weight": Update(-0.1)}}, "lr, momentum and weight_decay out of range: -0.1"),
        ({"updates": {"weight": Update(0.1, 0.9)}}, "momentum needs a momentum_buffer for weight"),
        ({"updates": {"weight": Update(0.1, rounding="up")}}, "rounding must be one of nearest, stochastic, kahan, got "),
        (
            {"updates": {"weight": Update(0.1, 0.9, momentum_buffer=torch.zeros(37, 7, dtype=torch.bfloat16))}},
            r"the momentum_buffer of weight must be \[37, 7\] in torch.float32 on cpu, got \[37, 7\] in torch.bfloat16",
        ),
        ({"implementation": "dense/torch"}, "implementation 'dense/torch' has no step for a sparse layer; use "),
        ({"implementation": "group_shared/triton"}, "no step can run here: group_shared/triton runs on cuda, not on cpu"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_loses_nothing(wrong: dict[str, Any], message: str) -> None:
    x, layer, targets = tensors()
    before = layer.weight.clone()
    given = {"updates": {"weight": Update(0.1)}, **wrong}
    parts = {name: given.pop(name) for name in ("loss", "label_weight") if name in given}
    arguments = {"x": x, "targets": replace(targets, **parts), **given}
    with pytest.raises(ValueError, match=message) as raised:
        step(arguments.pop("x"), layer, arguments.pop("targets"), **arguments)
    assert "\n" not in str(raised.value)
    assert torch.equal(layer.weight, before)


def test_lists_by_group() -> None:
    """Every pair once, in its group, ordered by row and column."""
    targets = draw_targets(SHAPES["odd everything"]).positives
    rows, labels = targets.rows(), targets.labels
    by_group = targets.by_group(8, 5)
    found = []
    for group in range(5):
        part = slice(int(by_group.pointers[group]), int(by_group.pointers[group + 1]))
        pairs = list(zip(by_group.rows[part].tolist(), by_group.columns[part].tolist(), strict=True))
        assert pairs == sorted(pairs)
        found += [(row, group * 8 + column) for row, column in pairs]
    assert sorted(found) == list(zip(rows.tolist(), labels.tolist(), strict=True))
    part = targets.within(8, 20)
    assert torch.equal(part.dense(12), targets.dense(37)[:, 8:20])


@pytest.mark.parametrize("name", ["dense/chunked", "bottleneck/chunked", "fixed_fan_in/densify", "group_shared/torch"])
def test_many_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of 128 labels give what one gives, the state of each in its place."""
    shape, implementation = Shape(5, 24, 300, 6, 4), find(name)
    x, layer, targets = draw_x(shape, "bf16", "cpu"), make_layer(implementation, shape, "bf16", "cpu"), draw_targets(shape)
    outcomes = []
    for chunk_bytes in (1 << 20, 1):
        for module in (implementation.load(), chunked):
            monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": chunk_bytes})
        mine, updates = copied(layer), {"weight": draw_update(layer.weight, "stochastic")}
        got = step(x, mine, targets, updates, implementation=name)
        outcomes.append((got.loss, got.dx, mine.weight, updates["weight"].momentum_buffer))
    for one, other in zip(*outcomes, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.01  # sums of bf16 parts
    assert float((outcomes[0][2] != outcomes[1][2]).float().mean()) < 0.05  # the same draws
