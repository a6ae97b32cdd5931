"""Which implementation computes a pass by default: a pure function of shape, GPU and what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels import dispatch, ops
from gskernels.dispatch import CUDA, TORCH, TRITON, Choice, Gpu, pick
from gskernels.layer import Layer
from gskernels.shape import Shape
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT
from gskernels.topology import GroupTopology

H200 = Gpu("NVIDIA H200", (9, 0), 132, 227 * 1024)
A100 = Gpu("NVIDIA A100", (8, 0), 108, 163 * 1024)
R1 = Shape(256, 768, 655_360, 64, 32)


def measured(pass_: str, shape: Shape, way: str, cuda: int, triton: int, dtype: str = "bf16", deterministic: bool = False):
    """A table of one entry."""
    key = f"{dispatch.kernel_name(pass_, way, deterministic)}|{dispatch.shape_class(shape, dtype)}"
    return {key: {"cuda_ns": cuda, "triton_ns": triton}}


@pytest.mark.parametrize(
    ("pass_", "shape", "dtype", "gpu", "wanted"),
    [
        (FORWARD, R1, "bf16", H200, CUDA),
        (GRAD_INPUT, R1, "bf16", H200, CUDA),
        (GRAD_WEIGHT, R1, "bf16", H200, TRITON),  # Hopper's takes a batch of 128 at the most
        (GRAD_WEIGHT, replace(R1, batch=128), "bf16", H200, CUDA),
        (BACKWARD, R1, "fp16", H200, CUDA),
        (BACKWARD, replace(R1, group_size=128), "bf16", H200, CUDA),
        (BACKWARD, replace(R1, group_size=96), "bf16", H200, TRITON),  # tiles of 64 labels would mix groups
        (FORWARD, replace(R1, batch=8), "bf16", H200, TRITON),
        (FORWARD, replace(R1, batch=0), "bf16", H200, TRITON),
        (FORWARD, R1, "fp32", H200, TRITON),
        (FORWARD, replace(R1, labels=655_361), "bf16", H200, TRITON),
        (FORWARD, R1, "bf16", A100, TRITON),
        (FORWARD, R1, "bf16", replace(H200, capability=(10, 0)), TRITON),
    ],
)
def test_unmeasured_the_hopper_kernels_decide(pass_: str, shape: Shape, dtype: str, gpu: Gpu, wanted: str) -> None:
    choice = pick(pass_, shape, dtype, gpu, {})
    assert choice.implementation == wanted
    assert choice.reason.startswith(f"not measured near this shape on {gpu.name}; {'a' if wanted == CUDA else 'no'} Hopper")


@pytest.mark.parametrize(("cuda", "wanted"), [(50, CUDA), (101, CUDA), (102, CUDA), (103, TRITON), (400, TRITON)])
def test_a_measured_loss_beyond_noise_goes_to_triton(cuda: int, wanted: str) -> None:
    choice = pick(FORWARD, R1, "bf16", H200, measured(FORWARD, R1, "hopper", cuda, 100))
    assert choice == Choice(wanted, f"{CUDA} takes {cuda / 100:.2f} x {TRITON} at this shape class")


def test_a_measured_class_speaks_for_its_neighbours_on_the_same_route() -> None:
    table = measured(FORWARD, R1, "hopper", 300, 100)
    near = pick(FORWARD, replace(R1, batch=512), "bf16", H200, table)
    assert near.implementation == TRITON
    assert near.reason.endswith(f"at the nearest shape class, {dispatch.shape_class(R1, 'bf16')}")
    far = pick(FORWARD, replace(R1, batch=4096), "bf16", H200, table)
    assert far.implementation == CUDA
    assert "not measured near" in far.reason
    assert "not measured near" in pick(FORWARD, R1, "fp32", H200, table).reason
    assert "not measured near" in pick(BACKWARD, R1, "bf16", H200, table).reason
    # one class, two routes: the copy engine does not take this row length
    other = replace(R1, dim=832), replace(R1, dim=840)
    assert dispatch.shape_class(other[0], "bf16") == dispatch.shape_class(other[1], "bf16")
    assert "takes 3.00 x" in pick(FORWARD, other[0], "bf16", H200, table).reason
    assert "not measured near" in pick(FORWARD, other[1], "bf16", H200, table).reason


def test_the_nearest_of_several_counts() -> None:
    table = measured(FORWARD, R1, "hopper", 300, 100) | measured(FORWARD, replace(R1, group_size=64), "hopper", 50, 100)
    assert pick(FORWARD, R1, "bf16", H200, table).implementation == TRITON
    assert pick(FORWARD, replace(R1, group_size=128), "bf16", H200, table).implementation == CUDA


def test_both_gradients_go_apart_where_that_is_measured_to_take_less() -> None:
    both = measured(BACKWARD, R1, "hopper", 380, 450)
    single = measured(GRAD_INPUT, R1, "hopper", 220, 440)
    assert pick(BACKWARD, R1, "bf16", H200, both | single).implementation == CUDA  # half of it is not known
    faster = both | single | measured(GRAD_WEIGHT, R1, "portable", 150, 130)
    assert pick(BACKWARD, R1, "bf16", H200, faster) == Choice(
        dispatch.APART, f"one gradient after the other takes 0.78 x {TRITON} at this shape class"
    )
    slower = both | single | measured(GRAD_WEIGHT, R1, "portable", 180, 160)
    assert pick(BACKWARD, R1, "bf16", H200, slower).implementation == CUDA
    ordered = measured(BACKWARD, R1, "hopper", 380, 450, deterministic=True)
    assert pick(BACKWARD, R1, "bf16", H200, faster | ordered, deterministic=True).implementation != dispatch.APART


def test_in_a_fixed_order() -> None:
    for pass_ in dispatch.PASSES:
        ordered = pick(pass_, R1, "bf16", H200, {}, deterministic=True).implementation
        assert ordered.endswith("_deterministic") == (pass_ in (GRAD_INPUT, BACKWARD))
    wide = replace(R1, group_size=128)  # both gradients: now one after the other, and Hopper's grad_input takes it
    assert pick(BACKWARD, wide, "bf16", H200, {}, deterministic=True).implementation == "group_shared/cuda_deterministic"
    atomic = measured(BACKWARD, R1, "hopper", 300, 100)
    assert "not measured near" in pick(BACKWARD, R1, "bf16", H200, atomic, deterministic=True).reason
    table = measured(BACKWARD, R1, "hopper", 300, 100, deterministic=True)
    assert pick(BACKWARD, R1, "bf16", H200, table, deterministic=True).implementation == "group_shared/triton_deterministic"


def test_what_is_not_installed_is_not_picked() -> None:
    alone = pick(FORWARD, R1, "bf16", replace(H200, cuda=False), {})
    assert alone == Choice(TRITON, f"{CUDA} cannot run: cuda-core is not installed")
    assert pick(FORWARD, replace(R1, batch=8), "bf16", replace(H200, triton=False), {}).implementation == CUDA
    assert pick(FORWARD, R1, "bf16", replace(H200, cuda=False, triton=False), {}).implementation == TORCH


def test_operators_ask_for_their_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def on_device(pass_: str, shape: Shape, dtype: str, index: int, deterministic: bool) -> Choice:
        asked.append((pass_, shape, dtype, deterministic))
        return Choice(TORCH, "")

    monkeypatch.setattr(dispatch, "on_device", on_device)
    monkeypatch.setattr(dispatch, "DECIDED", (("cpu", True),))
    topology, shape = GroupTopology.uniform(37, 40, 8, 4), Shape(5, 40, 37, 8, 4)
    tensors = {"x": torch.randn(5, 40), "weight": torch.randn(37, 8)}

    def asked_by(*wanted: str, deterministic: bool = False) -> list[tuple[str, bool]]:
        asked.clear()
        torch.use_deterministic_algorithms(deterministic)
        try:
            mine = {name: tensor.clone().requires_grad_(name in wanted) for name, tensor in tensors.items()}
            y = ops.linear(mine["x"], mine["weight"], topology)
            y.sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        torch.testing.assert_close(y.detach(), ops.linear(*tensors.values(), topology, implementation=TORCH))
        assert all(bool(mine[name].grad.any()) for name in wanted)
        assert {(one[1], one[2]) for one in asked} == {(shape, "fp32")}
        return [(one[0], one[3]) for one in asked]

    assert asked_by("x", "weight") == [(FORWARD, False), (BACKWARD, False)]
    assert asked_by("x") == [(FORWARD, False), (GRAD_INPUT, False)]
    assert asked_by("weight", deterministic=True) == [(FORWARD, False), (GRAD_WEIGHT, False)]
    assert asked_by("x", "weight", deterministic=True) == [(FORWARD, False), (BACKWARD, True)]


def test_explain_on_a_cpu_and_of_what_was_asked_for() -> None:
    assert ops.explain(R1, "fp32", "cpu") == dict.fromkeys(dispatch.PASSES, Choice(TORCH, "the default on cpu"))
    found = ops.explain(R1, "bf16", "cuda:1", implementation=CUDA, deterministic=True)
    assert found[FORWARD] == found[GRAD_WEIGHT] == Choice(CUDA, "asked for")
    assert found[GRAD_INPUT] == found[BACKWARD] == Choice("group_shared/cuda_deterministic", "asked for")
    with pytest.raises(ValueError, match="dtype must be one of fp32, fp16, bf16, got 'int8'"):
        ops.explain(R1, "int8", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA device here"):
            ops.explain(R1)


@pytest.mark.gpu
def test_the_default_of_this_gpu_runs_and_is_right() -> None:
    shape = Shape(64, 128, 1024, 64, 32)
    topology = GroupTopology.uniform(shape.labels, shape.dim, shape.fan_in, shape.group_size, device="cuda")
    x = torch.randn(shape.batch, shape.dim, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(shape.labels, shape.fan_in, device="cuda", dtype=torch.bfloat16)
    found = ops.explain(shape)
    layer = Layer(weight, topology)
    assert dispatch.implementation_for(dispatch.AUTO, FORWARD, x, layer).name == found[FORWARD].implementation
    right = ops.linear(x, weight, topology, implementation=TORCH)
    torch.testing.assert_close(ops.linear(x, weight, topology), right, rtol=0.02, atol=0.1)
