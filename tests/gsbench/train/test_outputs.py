"""Output layers in the numbering of the data set, against dense autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gsbench.train import config
from gsbench.train.encoders import Batch
from gsbench.train.outputs import Auxiliary, ChunkedDense, LinearOutput, by_position, new_down, new_layer
from gsbench.train.updates import Updater, can_update
from gskernels.optim import SGD
from gskernels.positives import Positives
from tests.allocations import allocations

B, D, L = 7, 12, 40


def batch(seed: int = 0, labels: int = L, rows: int = B) -> tuple[Tensor, Batch]:
    draw = np.random.default_rng(seed)
    found = [np.sort(draw.choice(labels, draw.integers(0, 6), replace=False)) for _ in range(rows)]
    pointers = torch.tensor(np.cumsum([0, *map(len, found)]))
    hidden = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))
    return hidden, Batch({}, pointers, torch.from_numpy(np.concatenate(found).astype(np.int64)))


def dense_target(some: Batch, labels: int = L) -> Tensor:
    target = torch.zeros(some.rows, labels, dtype=torch.float64)
    rows = torch.arange(some.rows).repeat_interleave(some.pointers.diff())
    target[rows, some.positives] = 1
    return target


def output(method: str, seed: int = 0, fused: bool = False, **options: object) -> LinearOutput:
    settings = config.Output.model_validate({"method": method, "fan_in": 4, "group_size": 8, **options})
    torch.manual_seed(seed)
    grouped = method in config.GROUPED
    order = torch.randperm(L, generator=torch.Generator().manual_seed(9)) if grouped else None
    down = new_down(settings, D, L)
    return LinearOutput(new_layer(settings, D, L, order, 6, 0), L, order, settings.loss, fused, down)


def dense_of(made: LinearOutput) -> tuple[Tensor, Tensor]:
    """Weight [L, D] and bias [L] of the same function, labels as in the data set."""
    layer = made.layer
    if isinstance(layer, torch.nn.Linear):
        return layer.weight if made.down is None else layer.weight @ made.down.weight, layer.bias
    dense = layer.to_dense()  # type: ignore[operator]
    if made.layer.__class__.__name__ == "HeadTailLinear":  # knows the order itself
        return dense.weight, dense.bias
    return dense.weight[made.label_position], dense.bias[made.label_position]


METHODS = ["dense", "bottleneck", "fixed_fan_in", "group_shared", "head_tail"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_ranking_in_the_data_sets_numbering(method: str, fused: bool) -> None:
    made, (hidden, some) = output(method, fused=fused), batch()
    for name, parameter in made.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    weight, bias = (part.detach().double() for part in dense_of(made))
    x = hidden.clone().requires_grad_()
    loss = made.loss(x, some)
    loss.backward()
    exact = hidden.double().requires_grad_()
    z = exact @ weight.t() + bias
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, dense_target(some), reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    scores, labels = made.top(hidden, 5)
    best = z.detach().topk(5)
    assert torch.equal(labels, best.indices)
    torch.testing.assert_close(scores.double(), best.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [5, 200])
def test_ranking_without_excluded_labels(method: str, k: int) -> None:
    """k above what one pass finds goes through the logits."""
    labels = 300
    settings = config.Output.model_validate({"method": method, "fan_in": 4, "group_size": 8})
    order = torch.randperm(labels, generator=torch.Generator().manual_seed(9)) if method in config.GROUPED else None
    layer, down = new_layer(settings, D, labels, order, 30, 0), new_down(settings, D, labels)
    made = LinearOutput(layer, labels, order, "cross_entropy", down=down)
    hidden, some = batch(labels=labels)
    everything = made.top(hidden, labels)[1]
    exclude = Positives(some.pointers, some.positives)
    scores, found = made.top(hidden, k, exclude)
    for row in range(B):
        gone = set(some.positives[some.pointers[row] : some.pointers[row + 1]].tolist())
        assert found[row].tolist() == [label for label in everything[row].tolist() if label not in gone][:k]
    assert bool((scores.diff(dim=1) <= 0).all())


@pytest.mark.parametrize("kind", ["torch", "gskernels"])
@pytest.mark.parametrize("method", METHODS)
def test_a_fused_step_updates_as_the_optimizer_would(method: str, kind: str) -> None:
    """Three steps with momentum and decay: weights, biases and momentum as without fusing."""
    pairs = []
    for fused in (False, True):
        made = output(method, fused=fused)
        parameters = list(made.layer.parameters())
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, 0.1, 0.9, weight_decay=0.01) if kind == "torch"
            else SGD(parameters, 0.1, momentum=0.9, weight_decay=0.01)
        )  # fmt: skip
        made.updater = Updater(optimizer) if fused else None
        for seed in range(3):
            hidden, some = batch(seed)
            made.loss(hidden.requires_grad_(), some).backward()
            assert all((p.grad is None) == fused for p in parameters)
            optimizer.step()
            optimizer.zero_grad()
        momentum = [optimizer.state[p]["momentum_buffer"] for p in parameters]
        pairs.append([*parameters, *momentum])
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_fp32_weights_under_autocast_are_not_updated_by_the_step() -> None:
    made, (hidden, some) = output("head_tail", fused=True), batch()
    made.updater = Updater(torch.optim.SGD(made.parameters(), 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        made.loss(hidden.requires_grad_(), some).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())


def test_what_cannot_be_fused() -> None:
    assert not can_update(torch.optim.AdamW([torch.zeros(1)], 0.1))
    assert not can_update(torch.optim.SGD([torch.zeros(1)], 0.1, 0.9, nesterov=True))
    with pytest.raises(ValueError, match="a fused step updates by SGD, not by AdamW"):
        Updater(torch.optim.AdamW([torch.zeros(1)], 0.1))
    made, (hidden, _) = output("head_tail", fused=True), batch()
    assert made.fuses(hidden)
    made.keep_gradients = True
    assert not made.fuses(hidden)


@pytest.mark.parametrize("method", ["group_shared", "head_tail"])
def test_the_order_of_the_labels_survives_a_reload(method: str) -> None:
    """Fault 7: a permutation that cannot be inverted after a reload."""
    made, (hidden, _) = output(method), batch()
    settings = config.Output(method=method, fan_in=4, group_size=8)  # type: ignore[arg-type]
    blank = LinearOutput(new_layer(settings, D, L, torch.arange(L), 6, 5), L, torch.arange(L), "cross_entropy")
    blank.load_state_dict(made.state_dict())
    assert torch.equal(blank.label_order[blank.label_position], torch.arange(L))
    assert torch.equal(blank.label_position[blank.label_order], torch.arange(L))
    assert torch.equal(blank.top(hidden, 9)[1], made.top(hidden, 9)[1])


@pytest.mark.parametrize(("fused", "buffers"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("method", METHODS)
def test_no_second_buffer_of_logits(method: str, fused: bool, buffers: int) -> None:
    """Fault 5: full B x L temporaries. Logits are made once, and the loss writes its gradient over them; or never."""
    labels, rows = 40_000, 256  # logits of 41 MB: more than any operator's chunks
    settings = config.Output.model_validate({"method": method, "fan_in": 4, "group_size": 8})
    order = torch.randperm(labels) if method in config.GROUPED else None
    layer, down = new_layer(settings, D, labels, order, 4000, 0), new_down(settings, D, labels)
    made = LinearOutput(layer, labels, order, "cross_entropy", fused, down)
    hidden, some = batch(labels=labels, rows=rows)
    hidden.requires_grad_()

    def step() -> None:
        made.loss(hidden, some).backward()

    step()
    logits = rows * labels * 4
    sizes = allocations(step).sizes
    found = sum(size >= logits for size in sizes)
    assert found == (1 if method == "fixed_fan_in" else buffers)  # per-label layers have no step of their own on a CPU


def test_gradients_for_growth_are_those_of_the_logits() -> None:
    made, (hidden, some) = output("head_tail"), batch()
    made.keep_gradients = True
    made.loss(hidden.requires_grad_(), some).backward()
    x, grad_out = made.kept_gradients()
    weight, bias = (part.detach() for part in dense_of(made))
    z = hidden.detach() @ weight.t() + bias
    expected = (torch.sigmoid(z) - dense_target(some).float())[:, made.label_order[6:]]
    torch.testing.assert_close(grad_out, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, hidden.detach())
    with pytest.raises(RuntimeError, match="keep_gradients was not set"):
        made.kept_gradients()


def test_private_features() -> None:
    settings = config.Output(method="head_tail", fan_in=4, group_size=8, private_features=True)
    made = LinearOutput(new_layer(settings, D, L, torch.arange(L), 6, 0), L, torch.arange(L), "cross_entropy")
    made.keep_gradients = True
    hidden, some = batch()
    made.loss(hidden.requires_grad_(), some).backward()
    assert torch.equal(made.kept_gradients()[0], hidden.detach()[:, D // 2 :])


def test_by_position() -> None:
    position = torch.tensor([3, 0, 2, 1])
    assert by_position(torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 0, 2, 3]), position).tolist() == [0, 3, 1, 2, 3]


# ---- chunked dense ------------------------------------------------------------------------------------------------


def chunked(chunk: int, dtype: torch.dtype = torch.float32, **options: object) -> ChunkedDense:
    torch.manual_seed(0)
    made = ChunkedDense(D, L, chunk, dtype, **{"stochastic": False, "weight_decay": 0.0, "seed": 0, **options})  # type: ignore[arg-type]
    torch.nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("chunk", [1, 7, 40, 99])
def test_chunked_dense_is_dense_with_sgd(chunk: int) -> None:
    made, (hidden, some) = chunked(chunk, weight_decay=0.01), batch()
    weight, bias = (torch.nn.Parameter(p.detach().clone()) for p in (made.weight, made.bias))
    optimizer = torch.optim.SGD([{"params": [weight], "weight_decay": 0.01}, {"params": [bias]}], lr=0.1)
    made.lr = 0.1
    for step in range(3):
        hidden, some = batch(step)
        mine, theirs = (hidden.clone().requires_grad_() for _ in range(2))
        loss = made.loss(mine, some)
        (loss * 2).backward()  # the layer's update does not see the factor, hidden's gradient does
        z = theirs @ weight.t() + bias
        expected = torch.nn.functional.binary_cross_entropy_with_logits(z, dense_target(some).float(), reduction="sum")
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(loss.detach(), expected.detach())
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, 2 * theirs.grad)  # type: ignore[operator]
        torch.testing.assert_close(made.weight, weight)
        torch.testing.assert_close(made.bias, bias)
    best = (hidden @ weight.t() + bias).topk(6)
    torch.testing.assert_close(made.top(hidden, 6), (best.values, best.indices))


def test_evaluation_updates_nothing() -> None:
    made, (hidden, some) = chunked(7), batch()
    made.lr = 0.1
    before = made.weight.clone()
    made.train(False)
    made.loss(hidden, some)
    assert torch.equal(made.weight, before)
    assert made.step == 0


def test_stochastic_rounding_goes_on_after_a_reload() -> None:
    def run(steps: range, made: ChunkedDense) -> Tensor:
        made.lr = 1e-3
        for step in steps:
            made.loss(*batch(step))
        return made.weight.detach().clone()

    whole = chunked(7, torch.bfloat16, stochastic=True)
    nearest = chunked(7, torch.bfloat16)
    first = chunked(7, torch.bfloat16, stochastic=True)
    run(range(3), first)
    second = chunked(7, torch.bfloat16, stochastic=True)
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(range(3, 6), second), run(range(6), whole))
    assert not torch.equal(run(range(6), nearest), whole.weight)


def test_memory_of_chunked_dense_is_the_chunks() -> None:
    labels, rows = 4096, 64
    made = ChunkedDense(D, labels, 64, torch.float32, stochastic=False, weight_decay=0.0, seed=0)
    hidden, some = batch(labels=labels, rows=rows)
    assert allocations(lambda: made.loss(hidden, some)).peak < rows * labels * 4 / 8


# ---- Spartex ------------------------------------------------------------------------------------------------------


def test_auxiliary_loss_is_over_clusters_and_decays() -> None:
    torch.manual_seed(0)
    cluster = torch.arange(L) // 8
    auxiliary, (hidden, some) = Auxiliary(D, cluster, 0.5, 100), batch()
    target = torch.zeros(B, 5)
    rows = torch.arange(B).repeat_interleave(some.pointers.diff())
    target[rows, cluster[some.positives]] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(auxiliary.layer(hidden), target, reduction="sum")
    for step, factor in ((0, 0.5), (50, 0.25), (100, 0.0), (10**6, 0.0)):
        assert auxiliary.factor(step) == factor
        torch.testing.assert_close(auxiliary.loss(hidden, some, step), factor * expected)
