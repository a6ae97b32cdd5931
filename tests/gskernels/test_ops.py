"""gskernels.linear: an ordinary differentiable torch function, whatever computes it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from gskernels import ops, oracle
from gskernels.layer import Layer
from gskernels.ops import linear
from gskernels.table import FORWARD, IMPLEMENTATIONS, find
from gskernels.topology import GroupTopology

B, D, L, K, G = 5, 40, 37, 8, 4  # ragged last group
SPARSE = [
    pytest.param(i.name, device, marks=[pytest.mark.gpu] if device == "cuda" else [], id=f"{i.name}-{device}")
    for i in IMPLEMENTATIONS if i.layout == "sparse" and FORWARD in i.passes for device in i.devices
]  # fmt: skip
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# The default of each device, and the two that a GPU's default picks from.
ON_GPU = [None, "group_shared/cuda", "group_shared/triton"]
CHOICES = [("cpu", None), *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ON_GPU)]


def _topology(implementation: str | None, device: str = "cpu") -> GroupTopology:
    group_size = G if implementation is None else find(implementation).topology_group_size(G)
    return GroupTopology.uniform(L, D, K, group_size, seed=2).to(device)


def _tensors(device: str = "cpu", batch: int = B, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((batch, D), (L, K), (L,))
    x, weight, bias = (torch.randn(*size, generator=generator).to(device, dtype).requires_grad_() for size in sizes)
    return x, weight, bias


def _gradients(y: Tensor, grad_out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, grad_out)


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("implementation", "device"), SPARSE)
def test_against_oracle(implementation: str, device: str) -> None:
    topology, (x, weight, bias) = _topology(implementation, device), _tensors(device)
    layer = Layer(weight.detach(), topology, bias=bias.detach())
    y = linear(x, weight, topology, bias, implementation)
    grad_out = torch.randn_like(y)
    truth = [oracle.outputs(p, x.detach(), grad_out, layer) for p in ("forward", "backward", "grad_bias")]
    expected = [t.float() for results in truth for t in results]
    torch.testing.assert_close([y.detach(), *_gradients(y, grad_out, x, weight, bias)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group_size", [1, G])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_defaults(device: str, group_size: int, dtype: torch.dtype) -> None:
    topology = GroupTopology.uniform(L, D, K, group_size).to(device)
    x, weight, bias = _tensors(device, dtype=dtype)
    y = linear(x, weight, topology, bias)
    right = oracle.outputs("forward", x.detach(), x, Layer(weight.detach(), topology, bias=bias.detach()))[0]
    torch.testing.assert_close(y.detach().double(), right, rtol=0.02, atol=0.1)
    assert all(bool(g.isfinite().all()) for g in _gradients(y, torch.ones_like(y), x, weight, bias))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_wanted_gradients_are_computed(wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    module, called = find("group_shared/torch").load(), []
    for pass_ in ("grad_input", "grad_weight", "backward"):
        original = getattr(module, pass_)
        monkeypatch.setattr(module, pass_, lambda *a, p=pass_, f=original: (called.append(p), f(*a))[1])
    topology, every = _topology(None), _tensors()
    x, weight, bias = (t if i in wanted else t.detach() for i, t in enumerate(every))
    y = linear(x, weight, topology, bias, "group_shared/torch")
    grad_out = torch.randn(B, L)
    got = _gradients(y, grad_out, *(every[i] for i in wanted))
    assert called == {(0,): ["grad_input"], (1,): ["grad_weight"], (2,): [], (0, 1): ["backward"]}.get(
        wanted, ["grad_weight"]
    )
    layer = Layer(weight.detach(), topology, bias=bias.detach())
    right = (*oracle.outputs("backward", x.detach(), grad_out, layer), grad_out.double().sum(0))
    for i, mine in zip(wanted, got, strict=True):
        torch.testing.assert_close(mine, right[i].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("implementation", "device"), SPARSE)
def test_opcheck(implementation: str, device: str) -> None:
    topology, (x, weight, bias) = _topology(implementation, device), _tensors(device)
    shape = (topology.dim, topology.group_size)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.gskernels.forward.default,
        (x, weight, topology.indices, bias, *shape, implementation, implementation), test_utils=tests,
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    grad_out, x, weight = torch.randn(B, L, device=device), x.detach(), weight.detach()
    rest = (topology.indices, topology.group_size, implementation)
    for operator, inputs in (
        (torch.ops.gskernels.grad_input, (grad_out, weight, topology.indices, *shape, implementation)),
        (torch.ops.gskernels.grad_weight, (grad_out, x, weight, *rest)),
        (torch.ops.gskernels.backward, (grad_out, x, weight, *rest)),
    ):
        torch.library.opcheck(operator.default, inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("device", "implementation"), CHOICES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(device: str, implementation: str | None, dynamic: bool) -> None:
    """fullgraph, with two uses of the layer in one graph and a second batch size."""
    torch._dynamo.reset()  # what other parameters compiled counts against the limit of this code
    topology = _topology(None, device)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        first = linear(x, weight, topology, bias, implementation)
        return (first.relu() + linear(2 * x, weight, topology, None, implementation)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (B, B + 3):
        inputs = _tensors(device, batch)
        mine = torch.autograd.grad(compiled(*inputs), inputs)
        torch.testing.assert_close(mine, torch.autograd.grad(loss(*inputs), inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_and_leading_dimensions(device: str) -> None:
    topology, (_, weight, bias) = _topology(None, device), _tensors(device)
    x = torch.randn(D, 2, 3, device=device).permute(2, 1, 0).requires_grad_()
    turned = weight.detach().t().contiguous().t().requires_grad_()
    y = linear(x, turned, topology, bias)
    assert y.shape == (3, 2, L)
    assert y.is_contiguous()
    grad_out = torch.randn(L, 2, 3, device=device).permute(2, 1, 0)
    flat = linear(x.reshape(6, D), weight, topology, bias)
    torch.testing.assert_close(y.reshape(6, L), flat)
    mine, right = _gradients(y, grad_out, x, turned), _gradients(flat, grad_out.reshape(6, L), x, weight)
    torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    assert linear(x[0, 0], weight, topology).shape == (L,)
    expanded = linear(x[:1, :1].expand(3, 2, D), weight, topology).sum()  # its gradient is an expanded scalar
    assert bool(torch.autograd.grad(expanded, x)[0].isfinite().all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_empty_batch(device: str, leading: tuple[int, ...]) -> None:
    topology, (_, weight, bias) = _topology(None, device), _tensors(device)
    x = torch.randn(*leading, D, device=device, requires_grad=True)
    y = linear(x, weight, topology, bias)
    assert y.shape == (*leading, L)
    dx, dw, db = _gradients(y, torch.empty_like(y), x, weight, bias)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_casts_as_linear_does(device: str) -> None:
    topology, (x, weight, bias) = _topology(None, device), _tensors(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = linear(x, weight, topology, bias)
    assert y.dtype == torch.bfloat16
    mine = _gradients(y, torch.ones_like(y), x, weight, bias)
    assert [g.dtype for g in mine] == [torch.float32] * 3
    full = linear(x, weight, topology, bias)
    torch.testing.assert_close(mine, _gradients(full, torch.ones_like(full), x, weight, bias), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("device", "implementation"), CHOICES)
def test_deterministic_gradients_repeat(device: str, implementation: str | None) -> None:
    topology, (x, weight, bias) = _topology(None, device), _tensors(device, batch=64)
    with _deterministic():
        y = linear(x, weight, topology, bias, implementation)
        grad_out = torch.randn_like(y)
        first, *others = (torch.autograd.grad(y, (x, weight), grad_out, retain_graph=True) for _ in range(4))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_what_is_derived_lives_with_the_indices() -> None:
    gc.collect()
    before = len(ops._memos)
    topology, (x, weight, _) = _topology(None), _tensors()
    linear(x, weight, topology).sum().backward()
    (kept,) = [memo for indices, (_, memo) in ops._memos.items() if indices is topology.indices]
    derived = kept["int32"]
    linear(x, weight, topology)
    assert kept["int32"] is derived
    topology.indices.copy_(_topology("fixed_fan_in/gather").indices[: topology.groups])  # as rewiring does
    right = oracle.outputs("forward", x.detach(), x, Layer(weight.detach(), topology))[0].float()
    torch.testing.assert_close(linear(x, weight, topology).detach(), right, rtol=1e-4, atol=1e-4)
    del topology
    gc.collect()
    assert len(ops._memos) == before


def test_errors() -> None:
    topology, (x, weight, bias) = _topology(None), _tensors()

    def refuses(message: str, *inputs: object, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            linear(*inputs, **options)  # type: ignore[arg-type]

    refuses(r"x must be \[\*, 40\] for this topology, got \[5, 39\]", x[:, 1:], weight, topology)
    refuses(r"x must be \[\*, 40\] for this topology, got \[\]", x[0, 0], weight, topology)
    refuses(r"weight must be \[37, 8\] for this topology, got \[36, 8\]", x, weight[1:], topology)
    refuses(r"bias must be \[37\] for this topology, got \[36\]", x, weight, topology, bias[1:])
    refuses("float32, float16 or bfloat16, got torch.float64", x.double(), weight.double(), topology)
    refuses("weight must have the dtype of x, torch.float16, got torch.float32", x.half(), weight, topology)
    refuses("bias must have the dtype of x, torch.float32, got torch.float16", x, weight, topology, bias.half())
    refuses("weight must be on the device of x, cpu, got meta", x, weight.to("meta"), topology)
    refuses("topology must be on the device of x, cpu, got meta", x, weight, topology.to("meta"))
    refuses("'group_shared/magic' is no sparse layer .* group_shared/torch", x, weight, topology,
            implementation="group_shared/magic")  # fmt: skip
    refuses("'dense/torch' is no sparse layer", x, weight, topology, implementation="dense/torch")
    refuses("runs on cuda, not on cpu", x, weight, topology, implementation="group_shared/triton")
    refuses("fp32 only, not bf16", x.bfloat16(), weight.bfloat16(), topology, implementation="fixed_fan_in/csr")


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ON_GPU)
def test_side_stream(implementation: str | None) -> None:
    topology, (x, weight, bias) = _topology(None, "cuda"), _tensors("cuda", batch=512)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what ran on the default stream would be done before x is written
        moved = 2 * x
        y = linear(moved, weight, topology, bias, implementation)
        dx = torch.autograd.grad(y.sum(), x)[0]
    torch.cuda.current_stream().wait_stream(stream)
    right = linear(2 * x, weight, topology, bias, implementation)
    torch.testing.assert_close(y, right)
    torch.testing.assert_close(dx, torch.autograd.grad(right.sum(), x)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ON_GPU)
def test_cuda_graph(implementation: str | None) -> None:
    topology, (x, weight, bias) = _topology(None, "cuda"), _tensors("cuda")

    def step() -> tuple[Tensor, ...]:
        y = linear(x, weight, topology, bias, implementation)
        return (y.detach(), *_gradients(y, y.detach(), x, weight, bias))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, step(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ON_GPU)
def test_second_device(implementation: str | None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    results = []
    for device in ("cuda:0", "cuda:1"):  # the current device stays 0
        topology, (x, weight, bias) = _topology(None, device), _tensors(device)
        y = linear(x, weight, topology, bias, implementation)
        results.append([t.cpu() for t in (y, *_gradients(y, torch.ones_like(y), x, weight, bias))])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.gpu
def test_more_outputs_than_32_bits_count() -> None:
    """L * B past 2^32: offsets into Y and dY are 64-bit. Labels of the last chunk against the oracle."""
    batch, labels, dim, fan_in, group_size = 512, 2**23 + 2**10, 64, 8, 32
    if torch.cuda.mem_get_info()[0] < 4 * 2 * batch * labels:
        pytest.skip("needs 36 GB of free GPU memory")
    topology = GroupTopology.uniform(labels, dim, fan_in, group_size, device="cuda")
    x = torch.randn(batch, dim, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(labels, fan_in, device="cuda", dtype=torch.bfloat16)
    y = linear(x, weight, topology)
    last = slice(labels - group_size, labels)
    part = Layer(weight[last], topology.rows(last.start, last.stop))
    right = oracle.outputs("forward", x, x, part)[0]
    torch.testing.assert_close(y[:, last].double(), right, rtol=0.02, atol=0.05)
    y.zero_()[:, last] = 1  # now dY: only the last labels count
    module = find("group_shared/triton").load()
    dx, dw = module.backward(y, x, Layer(weight, topology))
    truth = oracle.outputs("backward", x, y[:, last], part)
    torch.testing.assert_close(dx.double(), truth[0], rtol=0.02, atol=0.1)
    torch.testing.assert_close(dw[last].double(), truth[1], rtol=0.02, atol=0.5)
    assert not dw[: last.start].any()
