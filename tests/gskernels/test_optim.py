"""bf16 weights: what stochastic rounding and Kahan sums keep, in distribution and over many steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gskernels import optim
from gskernels.optim import SGD, stochastic_round
from gskernels.rewire import resettable_state


def test_the_mean_of_the_draws_is_the_value() -> None:
    value = torch.tensor([1.0 + 1 / 1024, -3.3, 1e-20, -0.7, 257.5])
    drawn = stochastic_round(value.expand(200_000, -1).contiguous(), torch.Generator().manual_seed(0)).float()
    neighbours = [sorted(set(column.tolist())) for column in drawn.t()]
    assert all(len(pair) == 2 and pair[0] <= v <= pair[1] for pair, v in zip(neighbours, value.tolist(), strict=True))
    gap = torch.tensor([pair[1] - pair[0] for pair in neighbours])
    # the mean of n draws from two points a gap apart: standard error at most gap / (2 sqrt(n)); five of them
    assert bool(((drawn.double().mean(0) - value).abs() < 5 * gap / 2 / 200_000**0.5).all())


def test_up_and_down_come_with_the_right_shares() -> None:
    low, high = torch.tensor(1.0), torch.tensor(1.0 + 2**-7)
    for share in (0.1, 0.5, 0.9):
        drawn = stochastic_round((low + share * (high - low)).expand(100_000).contiguous(), torch.Generator().manual_seed(1))
        assert float((drawn.float() == high).double().mean()) == pytest.approx(share, abs=0.01)


def test_exact_and_special_values_stay() -> None:
    value = torch.tensor([0.0, -0.0, 1.5, -2.0**-130, torch.inf, -torch.inf])
    assert torch.equal(stochastic_round(value).float(), value.bfloat16().float())
    assert bool(stochastic_round(torch.tensor([torch.nan])).isnan().all())
    with pytest.raises(ValueError, match=r"takes float32, got torch.bfloat16"):
        stochastic_round(value.bfloat16())


def trained(update: str, steps: int, lr: float = 1e-3, dtype: torch.dtype = torch.bfloat16, **options: float) -> Tensor:
    """A constant gradient of 1 on weights that start at 1."""
    weight = torch.nn.Parameter(torch.ones(64, 32, dtype=dtype))
    optimizer = SGD([weight], lr, update=update, **options)  # type: ignore[arg-type]
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.detach().float()


def test_small_updates_are_lost_only_by_rounding_to_nearest() -> None:
    assert torch.equal(trained("nearest", 400), torch.ones(64, 32))  # 0.001 is under half of bf16's step below 1
    assert float(trained("stochastic", 400).mean()) == pytest.approx(0.6, abs=0.005)
    kahan = trained("kahan", 400)
    assert bool(((kahan - 0.6).abs() < 0.004).all())  # every weight, to bf16's step


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}])
def test_fp32_is_as_torchs(options: dict[str, float]) -> None:
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    pair = SGD([mine], 0.1, **options), torch.optim.SGD([theirs], 0.1, **options)  # type: ignore[arg-type]
    for step in range(5):
        for weight, optimizer in zip((mine, theirs), pair, strict=True):
            weight.grad = weight.detach() * step + 1
            optimizer.step()
    torch.testing.assert_close(mine, theirs)


def test_the_mean_follows_fp32_with_momentum() -> None:
    exact = trained("nearest", 60, 1e-3, torch.float32, momentum=0.9)
    assert float(trained("stochastic", 60, 1e-3, momentum=0.9).mean()) == pytest.approx(float(exact.mean()), abs=0.01)
    assert float(trained("kahan", 60, 1e-3, momentum=0.9).mean()) == pytest.approx(float(exact.mean()), abs=0.01)


def test_draws_depend_on_seed_step_and_place_alone() -> None:
    """Among them, that no two steps round alike: a constant seed would add up its errors."""
    def run(
        steps: int, seed: int, state: dict[str, object] | None = None, start: Tensor = torch.ones(2, 40, 8)  # noqa: B008
    ) -> tuple[Tensor, SGD]:
        weights = [torch.nn.Parameter(part.clone().bfloat16()) for part in start]
        optimizer = SGD(weights, 1e-3, momentum=0.9, seed=seed)
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            torch.rand(3)  # other draws in between
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            optimizer.step()
        return torch.stack([weight.detach() for weight in weights]), optimizer

    whole, _ = run(6, 5)
    half, optimizer = run(3, 5)
    assert torch.equal(run(3, 5, optimizer.state_dict(), half)[0], whole)
    assert not torch.equal(run(6, 6)[0], whole)
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("update", ["stochastic", "kahan"])
def test_state_can_be_reset_for_regrown_slots(update: str) -> None:
    weight = torch.nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16))
    optimizer = SGD([weight], 1e-3, momentum=0.9, update=update)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    found = resettable_state(optimizer, weight)
    assert len(found) == (2 if update == "kahan" else 1)
    assert all(tensor.dtype == torch.bfloat16 and value == 0 for tensor, value in found)


def test_closure_scalars_and_missing_gradients() -> None:
    scalar, still = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([scalar, still], 0.5)

    def closure() -> float:
        scalar.grad = torch.tensor(1.0)
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert scalar.item() == 0.5
    assert torch.equal(still, torch.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD([p], -1.0), "out of range: -1.0"),
        (lambda p: SGD([p], 0.1, momentum=1.0), "out of range"),
        (lambda p: SGD([p], 0.1, update="up"), "update must be one of nearest, stochastic, kahan, got 'up'"),
        (lambda p: SGD([p.half()], 0.1), "must be float32 or bfloat16, got torch.float16"),
    ],
)
def test_errors(make: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(torch.ones(2))


def mixed(word: int) -> int:
    """lowbias32, in Python's own integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word = word * 0x846CA68B % 2**32
    return word ^ word >> 16


@pytest.mark.parametrize("first", [0, 12345, 2**31 - 3, 2**32 - 2, 2**33 + 1])
@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345678901])
def test_the_noise_is_the_documented_hash(seed: int, first: int) -> None:
    expected = []
    for place in range(first, first + 5):
        word = mixed((place % 2**32) ^ (seed % 2**32)) + (seed >> 32) + (place >> 32) * 0x9E3779B9
        expected.append(mixed(word % 2**32) >> 16)
    assert optim.noise(seed, first, 5).tolist() == expected


def test_the_noise_is_uniform_and_knows_its_seed() -> None:
    n = 1 << 18
    drawn = [optim.noise(seed, 0, n).double() / 65536 for seed in (0, 1, 2**32)]
    for one in drawn:
        assert abs(float(one.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / n)  # five standard errors
        counts = torch.histc(one, 64, 0, 1)
        assert float(((counts - n / 64) ** 2 / (n / 64)).sum()) < 63 + 5 * math.sqrt(2 * 63)  # chi-squared
        assert abs(float(((one[1:] - 0.5) * (one[:-1] - 0.5)).mean()) * 12) < 5 / math.sqrt(n)  # neighbours
    assert abs(float(((drawn[0] - 0.5) * (drawn[1] - 0.5)).mean()) * 12) < 5 / math.sqrt(n)  # seeds
    assert abs(float(((drawn[0] - 0.5) * (drawn[2] - 0.5)).mean()) * 12) < 5 / math.sqrt(n)


@pytest.mark.gpu
@pytest.mark.parametrize("update", optim.UPDATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernel_updates_as_torch_does(dtype: torch.dtype, update: str) -> None:
    """But for a few last bits: the kernel multiplies and adds without rounding in between."""
    generator = torch.Generator().manual_seed(0)
    w, g, buffer, lost = (torch.randn(300, 70, generator=generator).to(dtype) for _ in range(4))
    results = []
    for device in ("cpu", "cuda"):
        mine, state, kept = (t.to(device, copy=True) for t in (w, buffer, lost * 1e-3))
        one = optim.Update(0.01, 0.9, 0.1, update, 2**40 + 9, state, kept if update == "kahan" else None)
        one.apply(mine, g.to(device), first=2**33 + 7)
        results.append([t.cpu().float() for t in (mine, state, kept)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
        assert dtype == torch.float32 or float((ours != theirs).float().mean()) < 5e-3  # an H200: 2.3e-3


@pytest.mark.parametrize("update", optim.UPDATES)
def test_pieces_change_nothing(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(update, 3, momentum=0.9)
    monkeypatch.setattr(optim, "PIECE", 200)
    assert torch.equal(trained(update, 3, momentum=0.9), whole)


@pytest.mark.parametrize("update", optim.UPDATES)
def test_an_update_taken_from_the_optimizer_is_its_step(update: str) -> None:
    """What a fused step does to the weights is, to the last bit, what the optimizer does with the gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 60).view(12, 5).bfloat16()) for _ in range(2)]
    optimizers = [SGD([weight], 0.01, momentum=0.9, weight_decay=0.1, update=update, seed=3) for weight in weights]
    for _ in range(3):
        grad = torch.randn(12, 5, generator=generator)
        weights[0].grad = grad.bfloat16()
        optimizers[0].step()
        optimizers[1].update_of(weights[1]).apply(weights[1], grad.bfloat16())
        assert torch.equal(*weights)
