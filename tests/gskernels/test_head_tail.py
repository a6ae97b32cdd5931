"""The head-tail layer: one buffer of logits, private features, and an order of labels that can be inverted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gskernels import HeadTailLinear
from gskernels.head_tail import head_tail_linear
from gskernels.layer import Layer
from gskernels.loss import binary_cross_entropy
from gskernels.topology import GroupTopology
from tests.allocations import allocations

B, D, L, K, G, H = 5, 40, 37, 8, 4, 6  # 31 labels of the tail: a ragged last group
SMALL = 1200  # bytes of a piece: several pieces of head and tail


def _made() -> HeadTailLinear:
    torch.manual_seed(0)
    layer = HeadTailLinear(D, L, H, K, G, label_order=torch.randperm(L), piece_bytes=SMALL)
    for bias in (layer.head.bias, layer.tail.bias):
        torch.nn.init.normal_(bias)
    return layer


def _gradients(y: Tensor, grad_out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, grad_out)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_head_tail_of_any_shape(data: st.DataObject) -> None:
    labels, dim = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 20))
    head = data.draw(st.integers(1, labels - 1))
    tail_dim, group_size = data.draw(st.integers(1, dim)), data.draw(st.integers(1, labels - head))
    options = {"head_dim": data.draw(st.integers(1, dim)), "tail_dim": tail_dim, "bias": data.draw(st.booleans()),
               "piece_bytes": data.draw(st.integers(1, 4000)),
               "label_order": torch.tensor(data.draw(st.permutations(range(labels))))}  # fmt: skip
    layer = HeadTailLinear(dim, labels, head, data.draw(st.integers(1, tail_dim)), group_size, **options)
    x = torch.randn(data.draw(st.integers(0, 4)), dim, requires_grad=True)
    y, internal = layer(x), layer(x, internal=True)
    assert torch.equal(y, internal[:, layer.label_position])
    dense, grad_out = layer.to_dense(), torch.randn_like(y)
    right = dense(x)
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-5)
    dx = _gradients(right, grad_out, x)[0]
    torch.testing.assert_close(_gradients(y, grad_out, x)[0], dx, rtol=1e-4, atol=1e-5)
    mine = _gradients(internal, grad_out[:, layer.label_order], x)[0]
    torch.testing.assert_close(mine, dx, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 1), (0, 2), (1, 4), (2, 3)])
def test_head_tail_computes_what_is_wanted(wanted: tuple[int, ...]) -> None:
    layer = _made()
    x = torch.randn(B, D, requires_grad=True)
    y = layer(x)
    grad_out = torch.randn_like(y)
    inputs = (x, *layer.parameters())
    every = _gradients(y, grad_out, *inputs)
    for i, tensor in enumerate(inputs):
        tensor.requires_grad_(i in wanted)
    mine = _gradients(layer(x), grad_out, *(inputs[i] for i in wanted))
    torch.testing.assert_close(mine, tuple(every[i] for i in wanted))


def test_head_tail_operators() -> None:
    """Schemas, fake tensors and autograd registration; a whole graph under torch.compile, with two batch sizes."""
    layer = _made()
    x, tail = torch.randn(B, D, requires_grad=True), layer.tail
    rest = (tail.indices, layer.label_order, D, G, SMALL, "group_shared/torch", "group_shared/torch")
    operands = (x, layer.head.weight, tail.weight, layer.head.bias, tail.bias, *rest)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.gskernels.head_tail.default, operands, test_utils=tests)
    detached = tuple(t.detach() if isinstance(t, Tensor) else t for t in operands)
    torch.library.opcheck(
        torch.ops.gskernels.head_tail_backward.default, (torch.randn(B, L), [True, False, True, True, False], *detached),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (B, B + 2):
        x = torch.randn(batch, D, requires_grad=True)
        mine, right = compiled(x), layer(x)
        torch.testing.assert_close(mine, right)
        torch.testing.assert_close(_gradients(mine.square().sum(), torch.tensor(1.0), x, *layer.parameters()),
                                   _gradients(right.square().sum(), torch.tensor(1.0), x, *layer.parameters()))  # fmt: skip


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_buffer_of_logits(internal: bool, dtype: torch.dtype) -> None:
    """Forward: the logits and a piece. Backward: the weights' gradients and a piece. Never a second B x L."""
    batch, dim, labels, piece_bytes = 64, 32, 4096, 64 << 10
    layer = HeadTailLinear(dim, labels, labels // 8, 4, 8, label_order=torch.randperm(labels), bias=True, dtype=dtype,
                           piece_bytes=piece_bytes, implementation="fixed_fan_in/densify")  # fmt: skip
    x = torch.randn(batch, dim, dtype=dtype, requires_grad=True)
    inputs = (x, *layer.parameters())
    logits = batch * labels * dtype.itemsize
    densified = 3 * piece_bytes  # the implementation's own: a piece of W and of its indices
    y = layer(x, internal=internal)
    grad_out = torch.randn_like(y)
    _gradients(y, grad_out, *inputs)
    with torch.no_grad():
        forward = allocations(lambda: layer(x, internal=internal))
    assert forward.sizes[0] == logits
    assert forward.peak <= logits + piece_bytes + densified
    y = layer(x, internal=internal)
    backward = allocations(lambda: _gradients(y, grad_out, *inputs))
    gradients = sum(t.numel() for t in inputs) * dtype.itemsize
    assert backward.sizes[0] < logits / 2
    assert backward.peak <= gradients + piece_bytes + densified + 4 * x.numel() + (16 << 10)


def test_loss_and_layer_keep_one_buffer() -> None:
    """A step with the gradient written over the logits: B x L exists once in all of it."""
    batch, dim, labels, bound = 64, 32, 4096, 64 << 10
    layer = HeadTailLinear(dim, labels, labels // 8, 4, 8, piece_bytes=bound, implementation="fixed_fan_in/densify")
    x, positives = torch.randn(batch, dim, requires_grad=True), torch.arange(batch)
    pointers = torch.arange(batch + 1)

    def step() -> None:
        logits = layer(x, internal=True)
        binary_cross_entropy(logits, pointers, positives, chunk_bytes=bound, in_place=True).backward()

    step()
    mine = [x.grad.clone(), layer.tail.weight.grad.clone()]  # type: ignore[union-attr]
    layer.zero_grad()
    x.grad = None
    gradients = sum(p.numel() for p in layer.parameters()) * 4
    step_allocations = allocations(step)
    assert step_allocations.peak <= batch * labels * 4 + gradients + 6 * bound
    torch.testing.assert_close(mine, [x.grad, layer.tail.weight.grad])


def test_rewired_tail_is_used_by_the_whole_layer() -> None:
    layer, x = _made(), torch.randn(B, D)
    before = layer(x)
    layer.tail.set_topology(GroupTopology.uniform(L - H, D, K, G, seed=8))
    after = layer(x)
    assert torch.equal(before[:, layer.label_order[:H]], after[:, layer.label_order[:H]])
    torch.testing.assert_close(after, layer.to_dense()(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)


def test_from_frequencies() -> None:
    frequencies = torch.tensor([3, 0, 7, 7, 1, 9, 2, 5, 0, 4])
    layer = HeadTailLinear.from_frequencies(frequencies, D, K, 3, head_share=0.3)
    assert layer.label_order.tolist() == [5, 2, 3, 7, 9, 0, 6, 4, 1, 8]
    assert layer.label_position[layer.label_order].tolist() == list(range(10))
    assert layer.head.out_features == 3
    others = torch.tensor([8, 7, 6, 4, 1, 0, 9])
    layer = HeadTailLinear.from_frequencies(frequencies.float(), D, K, 3, head_share=0.3, tail_order=others, bias=False)
    assert layer.label_order.tolist() == [5, 2, 3, *others.tolist()]
    x = torch.randn(B, D)
    torch.testing.assert_close(layer(x), layer.to_dense()(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x)[:, 5], x @ layer.head.weight[0], rtol=1e-4, atol=1e-5)


def test_internal_positives() -> None:
    """The loss is the same in either order."""
    layer, x = _made(), torch.randn(3, D)
    pointers, positives = torch.tensor([0, 3, 3, 5]), torch.tensor([0, 20, 36, 4, 5])
    internal = layer.internal_positives(pointers, positives.int())
    assert [sorted(row.tolist()) for row in layer.label_order[internal].split([3, 0, 2])] == [[0, 20, 36], [], [4, 5]]
    torch.testing.assert_close(binary_cross_entropy(layer(x, internal=True), pointers, internal),
                               binary_cross_entropy(layer(x), pointers, positives))  # fmt: skip


def test_corrupt_checkpoints_are_refused() -> None:
    layer = _made()
    good = {key: value.clone() for key, value in layer.state_dict().items()}

    def refuses(key: str, value: Tensor, message: str) -> None:
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**good, key: value})
        assert all(torch.equal(value, good[key]) for key, value in layer.state_dict().items())

    refuses("tail.indices", good["tail.indices"] + D, r"tail.indices: index outside 0\.\.39 in row 0")
    refuses("tail.indices", good["tail.indices"] * 0, "tail.indices: an input appears twice in row 0")
    refuses("label_order", good["label_order"] * 0, r"label_order must hold each label in 0\.\.36 once")
    refuses("label_position", good["label_position"].flip(0), "label_position is not the inverse of label_order")
    with pytest.raises(RuntimeError, match="size mismatch for label_order"):
        layer.load_state_dict({**good, "label_order": torch.arange(L + 1)})


def test_head_tail_linear_errors() -> None:
    layer, x = _made(), torch.randn(B, D)
    head = Layer(layer.head.weight, bias=layer.head.bias)
    tail = Layer(layer.tail.weight, layer.tail.topology, bias=layer.tail.bias)

    def refuses(message: str, *operands: object, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            head_tail_linear(*operands, **options)  # type: ignore[arg-type]

    refuses(r"x must be \[\*, 40\] or wider for this head and tail, got \[5, 39\]", x[:, 1:], head, tail)
    refuses("float32, float16 or bfloat16, got torch.float64", x.double(), head, tail)
    refuses(r"weight must be \[31, 8\]", x, head, Layer(tail.weight[1:], tail.topology))
    refuses("the head's weight must be .* in torch.float32 on cpu, got .* in torch.float16", x,
            Layer(head.weight.half()), tail)  # fmt: skip
    refuses(r"the head's bias must be \[6\] .* got \[5\]", x, Layer(head.weight, bias=head.bias[1:]), tail)
    refuses(r"label_order must be \[37\] in torch.int64, got \[37\] in torch.int32", x, head, tail, torch.arange(L).int())
    refuses("label_order must be on the device of x, cpu, got meta", x, head, tail, torch.arange(L).to("meta"))
    refuses("piece_bytes must be at least 1, got 0", x, head, tail, piece_bytes=0)
    refuses("this layer has no topology", x, head, head)
    refuses("runs on cuda, not on cpu", x, head, tail, implementation="group_shared/triton")
