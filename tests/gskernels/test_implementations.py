"""One body over every implementation of the table: being in the table is being tested.

An error is judged against the error that a dense layer of the same dtype makes, both from the float64 oracle.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gskernels import oracle
from gskernels.layer import Layer
from gskernels.shape import Shape
from gskernels.table import ALL_PASSES, FLOATS, IMPLEMENTATIONS, LINEAR_PASSES, RULE_PASSES, Implementation
from gskernels.topology import GroupTopology

# B, D, L, K, G. Small on purpose: what differs between implementations is the edges, and chunking is tested below.
SHAPES = {
    "even": Shape(4, 32, 24, 8, 4),
    "one row, ragged": Shape(1, 16, 10, 4, 3),
    "empty batch": Shape(0, 16, 10, 4, 3),
    "odd everything": Shape(5, 41, 37, 7, 8),
    "one label in the last group": Shape(33, 64, 129, 16, 32),
    "one group that reads all": Shape(3, 24, 9, 24, 9),
    "groups of one, one input": Shape(2, 8, 5, 1, 1),
    "one label": Shape(3, 16, 1, 4, 1),
    "tile sizes": Shape(64, 128, 96, 32, 16),
    "past a tile": Shape(65, 136, 257, 40, 64),
}
# Units in the last place of the largest output, on top of twice the dense layer's error: partial sums are rounded to
# the dtype before they are added in fp32, and the order of sums differs.
TOLERANCE = {"fp32": 2**-21, "fp16": 2**-10, "bf16": 2**-7}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


EVERY_PASS = [
    pytest.param(
        implementation, pass_, device,
        marks=[pytest.mark.gpu] if device == "cuda" else [], id=f"{implementation.name}-{pass_}-{device}",
    )
    for implementation in IMPLEMENTATIONS for device in implementation.devices for pass_ in LINEAR_PASSES
    if pass_ in implementation.passes
]  # fmt: skip


def fitting(implementation: Implementation, shape: Shape) -> Shape:
    """The shape, with a head where the implementation needs one."""
    return replace(shape, head_share=0.3) if implementation.layout == "head_tail" else shape


def make_layer(implementation: Implementation, shape: Shape, dtype: str, device: str, seed: int = 0) -> Layer:
    """A layer in the implementation's layout, with a bias. The last list is out of order: order is free."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, DTYPES[dtype])

    labels, dim, fan_in = shape.labels, shape.dim, shape.fan_in
    bias = draw(labels)
    if implementation.layout == "dense":
        return Layer(draw(labels, dim), bias=bias)
    if implementation.layout == "bottleneck":
        return Layer(draw(labels, shape.bottleneck_rank), down=draw(shape.bottleneck_rank, dim), bias=bias)
    group_size = implementation.topology_group_size(shape.group_size)
    topology = GroupTopology.uniform(labels, dim, fan_in, group_size, seed=seed)
    if implementation.layout == "masked":
        return Layer(draw(labels, dim), topology.to(device), bias=bias)
    if implementation.layout == "head_tail":
        shape = fitting(implementation, shape)
        topology = GroupTopology.uniform(shape.tail.labels, dim, fan_in, group_size, seed=seed)
        return Layer(draw(shape.tail.labels, fan_in), topology.to(device), bias=bias, head=draw(shape.head, dim))
    topology.indices[-1] = topology.indices[-1].flip(0)
    return Layer(draw(labels, fan_in), topology.to(device), bias=bias)


def dense_reference(pass_: str, x: Tensor, grad_out: Tensor, layer: Layer) -> tuple[Tensor, ...]:
    """The pass by plain dense products in the layer's own dtype."""
    if layer.down is not None:
        hidden, grad_hidden = x @ layer.down.t(), grad_out @ layer.weight
        y, dx, dw = hidden @ layer.weight.t(), grad_hidden @ layer.down, grad_out.t() @ hidden
        every = (dx, dw, grad_hidden.t() @ x)
    else:
        weight = oracle.dense_weight(layer).to(x.dtype)
        y, dx, dw = x @ weight.t(), grad_out @ weight, grad_out[:, layer.head_labels :].t() @ x
        if layer.topology is not None:
            masked = oracle.is_masked(layer)
            dw = dw * layer.topology.mask() if masked else dw.gather(1, layer.topology.label_indices())
        every = (dx, dw) if layer.head is None else (dx, dw, grad_out[:, : layer.head_labels].t() @ x)
    assert layer.bias is not None
    return {"forward": (y + layer.bias,), "grad_input": (dx,), "grad_weight": (dw,), "backward": every}[pass_]


def run(implementation: Implementation, pass_: str, x: Tensor, grad_out: Tensor, layer: Layer) -> tuple[Tensor, ...]:
    function = getattr(implementation.load(), pass_)
    inputs = {"forward": (x, layer), "grad_input": (grad_out, layer)}.get(pass_, (grad_out, x, layer))
    outputs = function(*inputs, **implementation.options)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_right(implementation: Implementation, pass_: str, x: Tensor, grad_out: Tensor, layer: Layer) -> None:
    truth = oracle.outputs(pass_, x, grad_out, layer)
    reference = dense_reference(pass_, x, grad_out, layer)
    got = run(implementation, pass_, x, grad_out, layer)
    assert len(got) == len(truth)
    dtype = next(name for name, value in DTYPES.items() if value == x.dtype)
    for mine, theirs, right in zip(got, reference, truth, strict=True):
        assert mine.shape == right.shape
        assert mine.dtype == x.dtype
        assert mine.is_contiguous()
        if mine.numel():
            error, own = (mine.double() - right).abs().max(), (theirs.double() - right).abs().max()
            assert float(error) <= 2 * float(own) + TOLERANCE[dtype] * float(right.abs().max())


def _activations(shape: Shape, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape.batch, shape.dim, generator=generator)
    grad_out = torch.randn(shape.batch, shape.labels, generator=generator)
    return x.to(device, DTYPES[dtype]), grad_out.to(device, DTYPES[dtype])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("implementation", "pass_", "device"), EVERY_PASS)
def test_against_oracle(implementation: Implementation, pass_: str, device: str, dtype: str, shape: Shape) -> None:
    reason = implementation.unsupported(fitting(implementation, shape), pass_, dtype, device)
    if reason is not None:
        pytest.skip(reason)
    layer = make_layer(implementation, shape, dtype, device)
    assert_right(implementation, pass_, *_activations(shape, dtype, device), layer)


@pytest.mark.parametrize(("implementation", "pass_", "device"), EVERY_PASS)
def test_non_contiguous(implementation: Implementation, pass_: str, device: str) -> None:
    """Activations that are columns of something wider, weights that are transposed."""
    shape = SHAPES["odd everything"]
    x, grad_out = (t.t().contiguous().t() for t in _activations(shape, "fp32", device))
    layer = make_layer(implementation, shape, "fp32", device)
    layer = replace(layer, weight=layer.weight.t().contiguous().t())
    if implementation.devices == ("cuda",):  # the launchers take what the operators hand them: contiguous tensors
        x, grad_out, layer = x.contiguous(), grad_out.contiguous(), make_layer(implementation, shape, "fp32", device)
    assert_right(implementation, pass_, x, grad_out, layer)


@pytest.mark.parametrize(("implementation", "pass_", "device"), EVERY_PASS)
def test_many_chunks(
    implementation: Implementation, pass_: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a few labels give the same results as one chunk."""
    module = implementation.load()
    monkeypatch.setattr("gskernels.fixed_fan_in.CHUNK_LABELS", {"cpu": 7, "cuda": 7})
    if hasattr(module, "CHUNK_BYTES"):
        monkeypatch.setattr(module, "CHUNK_BYTES", {"cpu": 4096, "cuda": 4096})
    shape = SHAPES["odd everything"]
    layer = make_layer(implementation, shape, "fp32", device)
    assert_right(implementation, pass_, *_activations(shape, "fp32", device), layer)


@pytest.mark.parametrize(("implementation", "pass_", "device"), EVERY_PASS)
def test_every_output_is_written(implementation: Implementation, pass_: str, device: str) -> None:
    """Memory that nobody wrote holds NaN here, instead of what happened to be there."""
    shape = SHAPES["one label in the last group"]
    layer = make_layer(implementation, shape, "fp32", device)
    x, grad_out = _activations(shape, "fp32", device)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # with it, torch.empty fills with NaN
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        got = run(implementation, pass_, x, grad_out, layer)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert all(bool(t.isfinite().all()) for t in got)


def test_bottleneck_takes_what_forward_kept() -> None:
    implementation = next(i for i in IMPLEMENTATIONS if i.name == "bottleneck/torch")
    module, shape = implementation.load(), SHAPES["even"]
    layer = make_layer(implementation, shape, "fp32", "cpu")
    x, grad_out = _activations(shape, "fp32", "cpu")
    kept = module.saved(x, layer)
    assert kept["hidden"].shape == (shape.batch, shape.bottleneck_rank)
    for pass_ in ("grad_weight", "backward"):
        function = getattr(module, pass_)
        torch.testing.assert_close(function(grad_out, x, layer, **kept), function(grad_out, x, layer))


def test_table_is_consistent() -> None:
    assert len({i.name for i in IMPLEMENTATIONS}) == len(IMPLEMENTATIONS)
    for implementation in IMPLEMENTATIONS:
        assert set(implementation.passes) <= {*ALL_PASSES, *RULE_PASSES}
        if "cpu" in implementation.devices:  # the others may need a toolkit that is not here
            module = implementation.load()
            assert all(callable(getattr(module, pass_)) for pass_ in implementation.passes if pass_ in LINEAR_PASSES)
