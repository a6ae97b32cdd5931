"""The pass `topk` of every implementation against the float64 oracle: exact, ties by label, lists left out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gskernels import oracle, ranking
from gskernels.layer import Layer
from gskernels.positives import Positives
from gskernels.ranking import best_of, topk
from gskernels.table import IMPLEMENTATIONS, TOPK, Implementation
from tests.gskernels.test_implementations import DTYPES, SHAPES, fitting, make_layer
from tests.gskernels.test_step import draw_targets

NAMES = ("odd everything", "past a tile", "empty batch", "one label", "one row, ragged")
EVERY = [
    pytest.param(i, device, marks=[pytest.mark.gpu] if device == "cuda" else [], id=f"{i.name}-{device}")
    for i in IMPLEMENTATIONS if TOPK in i.passes for device in i.devices
]  # fmt: skip


def exact(implementation: Implementation, name: str, dtype: str, device: str) -> tuple[Tensor, Layer]:
    """Small whole numbers, so that logits are exact in every type and many are equal."""
    shape = SHAPES[name]
    layer = make_layer(implementation, shape, dtype, device)
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-1, 2, (shape.batch, shape.dim), generator=generator).to(device, DTYPES[dtype])
    for tensor in (layer.weight, layer.bias, layer.down, layer.head):
        if tensor is not None:
            tensor.copy_(torch.randint(-1, 2, tensor.shape, generator=generator))
    return x, layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("implementation", "device"), EVERY)
def test_ties_and_exclusions(implementation: Implementation, device: str, dtype: str, name: str) -> None:
    shape = SHAPES[name]
    reason = implementation.unsupported(fitting(implementation, shape), TOPK, dtype, device)
    if reason is not None:
        pytest.skip(reason)
    x, layer = exact(implementation, name, dtype, device)
    assert float(oracle.outputs("forward", x, x, layer)[0].abs().amax() if len(x) else 0) <= 256  # exact in bf16
    exclude = draw_targets(shape, device).positives  # a tenth; all of the last row's
    for k in {1, min(5, shape.labels), min(128, shape.labels)}:
        for left_out in (None, exclude):
            values, labels = topk(x, layer, k, left_out, implementation=implementation.name)
            right_values, right_labels = oracle.topk(x, layer, k, left_out)
            assert values.dtype == torch.float32
            assert torch.equal(values.double(), right_values)
            assert torch.equal(labels, right_labels)


@pytest.mark.parametrize(("implementation", "device"), EVERY)
def test_nan_shows(implementation: Implementation, device: str) -> None:
    """A row of NaN is all NaN; the others are as they were."""
    x, layer = exact(implementation, "odd everything", "fp32", device)
    clean = topk(x, layer, 5, implementation=implementation.name)
    x[2] = math.nan
    values, labels = topk(x, layer, 5, implementation=implementation.name)
    assert bool(values[2].isnan().all())
    others = [0, 1, 3, 4]
    assert torch.equal(values[others], clean[0][others])
    assert torch.equal(labels[others], clean[1][others])


def test_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = exact(next(i for i in IMPLEMENTATIONS if i.name == "dense/torch"), "past a tile", "fp32", "cpu")
    whole = topk(x, layer, 20)
    monkeypatch.setattr(ranking, "CHUNK_BYTES", {"cpu": 1 << 15})
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(topk(x, layer, 20), whole, strict=True))


SPECIAL = st.sampled_from([0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 1e-40, -3e38])


@settings(max_examples=50, deadline=None)
@given(st.lists(SPECIAL, min_size=6, max_size=12), st.integers(1, 6))
def test_the_order_of_special_values(row: list[float], k: int) -> None:
    values, labels = best_of(torch.tensor([row]), torch.arange(len(row))[None], k)
    rank = {label: (math.inf if math.isnan(v) else v, math.isnan(v)) for label, v in enumerate(row)}
    order = sorted(rank, key=lambda label: (not rank[label][1], -rank[label][0], label))[:k]
    assert labels[0].tolist() == [-1 if row[label] == -math.inf else label for label in order]
    torch.testing.assert_close(values[0], torch.tensor([row[label] for label in order]), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("k", "exclude", "message"),
    [
        (0, None, r"k must lie in 1\.\.37 for 37 labels, got 0"),
        (38, None, r"k must lie in 1\.\.37 for 37 labels, got 38"),
        (5, Positives(torch.tensor([0, 1]), torch.tensor([1])), r"pointers must be \[6\] for 5 rows of x, got \[2\]"),
        (5, Positives(torch.tensor([0, 1, 1, 1, 1, 1]), torch.tensor([37])), r"positive 37 of row 0 is outside 0\.\.36"),
    ],
)
def test_bad_input(k: int, exclude: Positives | None, message: str) -> None:
    x, layer = exact(next(i for i in IMPLEMENTATIONS if i.name == "group_shared/torch"), "odd everything", "fp32", "cpu")
    with pytest.raises(ValueError, match=message) as raised:
        topk(x, layer, k, exclude)
    assert "\n" not in str(raised.value)
