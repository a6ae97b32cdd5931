"""Every Triton kernel compiles for the GPUs we name, and spills no registers where a configuration can be chosen.

Needs neither a GPU nor a driver. What is launched, with which constants, comes from the launchers themselves: they run
on meta tensors, and a stand-in for `tune.launch` compiles instead of starting.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gskernels import choices, pointwise_triton, tune  # noqa: E402
from gskernels.fixed_fan_in import triton as per_label  # noqa: E402
from gskernels.group_shared import triton as grouped  # noqa: E402
from gskernels.group_shared import triton_step, triton_topk  # noqa: E402
from gskernels.layer import Layer  # noqa: E402
from gskernels.optim import UPDATES, Update  # noqa: E402
from gskernels.positives import ByGroup, Positives  # noqa: E402
from gskernels.steps import Targets  # noqa: E402
from gskernels.topology import GroupTopology  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int16: "i16", torch.int32: "i32",
         torch.int64: "i64", torch.float64: "fp64"}  # fmt: skip
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# B, D, L, K, G, dtype: the suites' default point, its group sizes, the published shapes, and shapes whose rows have no
# 16-byte pieces. Left out: what changes only run-time arguments (B from 64 on, D, L).
GROUPED: list[Shape] = [
    (256, 768, 655_360, 64, 32, BF16), (256, 768, 655_360, 64, 16, BF16), (256, 768, 655_360, 64, 128, BF16),
    (64, 384, 670_091, 64, 16, BF16), (128, 768, 2_812_281, 128, 64, BF16), (100, 300, 2049, 100, 256, FP16),
    (1, 768, 655_360, 33, 7, BF16), (256, 768, 655_360, 64, 32, FP32), (100, 300, 2049, 100, 256, FP32),
]  # fmt: skip
# For the step that stores no logits: small tiles, tiles near the largest that it takes, numbers without tensor cores.
STEPPED: list[Shape] = [GROUPED[1], GROUPED[4], (100, 300, 2049, 100, 128, FP16), (256, 768, 655_360, 64, 32, FP32)]
PER_LABEL: list[Shape] = [(256, 768, 655_360, 64, 1, BF16), (17, 300, 2049, 33, 1, FP16), (1000, 96, 333, 64, 1, FP32)]


Shape = tuple[int, int, int, int, int, torch.dtype]


@pytest.fixture(autouse=True)
def one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before CPython 3.12 threads that parse at once share a count of the tree's depth, and one of them fails."""
    parse, alone = ast.parse, threading.Lock()

    def parse_alone(*args: Any, **options: Any) -> Any:
        with alone:
            return parse(*args, **options)

    monkeypatch.setattr(ast, "parse", parse_alone)


@dataclass(frozen=True)
class Launch:
    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]


def signature(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"


def compiled(launch: Launch, capability: int) -> tuple[str, int]:
    """(PTX, bytes of stack a thread spills to), with arguments specialised as the launcher would."""
    names = launch.kernel.arg_names
    options = {key: launch.constants[key] for key in ("num_warps", "num_stages") if key in launch.constants}
    constants = {key: value for key, value in launch.constants.items() if key in names}
    values = dict(zip([name for name in names if name not in constants], launch.args, strict=True))
    constants |= {name: 1 for name, value in values.items() if isinstance(value, int) and value == 1}
    types = {name: "constexpr" if name in constants else signature(values[name]) for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, value in values.items()
        if name not in constants and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0))
    }
    source = ASTSource(launch.kernel, types, {(names.index(k),): v for k, v in constants.items()}, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", usage)
    assert found, usage
    return binary.asm["ptx"], int(found[1])


def operands(
    batch: int, dim: int, labels: int, fan_in: int, group: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, Layer]:
    indices = torch.empty(-(-labels // group), fan_in, dtype=torch.int16, device="meta")
    layer = Layer(torch.empty(labels, fan_in, dtype=dtype, device="meta"), GroupTopology(indices, labels, dim, group))
    plan = per_label.Plan(*(torch.empty(9, dtype=t, device="meta") for t in (torch.int32, torch.int16, torch.int64)))
    config = per_label.grad_input_config(grouped.Problem.of(batch, layer))
    layer.sparse.memo(per_label.plan_key(config), lambda: plan)
    return (torch.empty(batch, dim, dtype=dtype, device="meta"), torch.empty(batch, labels, dtype=dtype, device="meta"),
            layer)  # fmt: skip


def launch_grouped(shape: Shape, everything: bool = False) -> None:
    """Go through the launchers of group_shared/triton with the default configurations, or with every candidate."""
    x, dy, layer = operands(*shape)
    problem = grouped.Problem.of(x.shape[0], layer)
    most = None if everything else 1
    for engine in (True, False):
        for config in grouped.forward_candidates(problem, engine)[:most]:
            grouped._forward(x, layer, problem, config)
    for with_input, with_weight in ((True, True), (True, False), (False, True)):
        for config in grouped.gradients_candidates(problem, with_input, with_weight)[:most]:
            grouped._gradients(dy, x if with_weight else None, layer, problem, config, with_input)
    grouped._ordered_grad_input(dy, layer, problem)


def launch_step(shape: Shape, everything: bool = False) -> None:
    """The same for the step that stores no logits, with all that it can be asked for, and for topk with exclusions."""
    x, _, layer = operands(*shape)
    problem = grouped.Problem.of(x.shape[0], layer)
    assert triton_step.supports(problem)
    most = None if everything else 1
    number = torch.empty(9, dtype=torch.int32, device="meta")
    lists = ByGroup(number, number, number)
    layer = Layer(layer.weight, layer.topology, bias=torch.empty(shape[2], dtype=shape[5], device="meta"))
    targets = Targets(Positives(number, number), label_weight=torch.empty(shape[2], device="meta"))
    for rounding, config in zip(itertools.cycle(UPDATES[::-1]), triton_step.candidates(problem)[:most]):
        update = Update(0.1, 0.9, 0.1, rounding, 5, layer.weight, layer.weight)
        triton_step.Step(x, layer, targets, lists, problem, config).run({"weight": update}, guard=True)
    for config in triton_topk.candidates(problem)[:most]:
        call = triton_topk.TopK(x, layer, 100, None, problem)
        call.lists, call.constants["EXCLUDE"] = lists, True
        call.run(config)


def launch_pointwise(labels: int) -> None:
    """The kernels over stored logits and weights, with all that they can be asked for."""
    weight, number = (torch.empty(labels, 64, dtype=t, device="meta") for t in (BF16, torch.int32))
    logits, factor = torch.empty(256, labels, dtype=BF16, device="meta"), torch.empty(labels, device="meta")
    lists, losses = ByGroup(number, number, number), torch.empty(9, dtype=torch.float64, device="meta")
    pointwise_triton.loss_in_place(logits, 128, labels, lists, "cross_entropy", factor, losses)
    for rounding, first in (("stochastic", 2**33), ("kahan", 0)):
        lost = weight if rounding == "kahan" else None
        pointwise_triton.update(weight, factor, weight, lost, rounding, (0.1, 0.9, 0.1), 5, first)


def launch_per_label(shape: Shape, everything: bool = False) -> None:
    """The same for fixed_fan_in/triton."""
    x, dy, layer = operands(*shape)
    problem = grouped.Problem.of(x.shape[0], layer)
    most = None if everything else 1
    for config in per_label.forward_candidates(problem)[:most]:
        per_label._forward(x, layer, problem, config)
    for config in per_label.grad_weight_candidates(problem)[:most]:
        per_label._grad_weight(dy, x, layer, problem, config)
    per_label._grad_input(dy, layer, problem, per_label.grad_input_config(problem))


def launch_packaged(kernel: str, shape_class: str, config: tune.Config) -> None:
    """One choice of a packaged table, at the largest shape of its class."""
    *sizes, rows, dtype = shape_class.split()
    batch, dim, labels, fan_in, group = (int(size[1:]) for size in sizes)
    labels -= rows == "ragged" and group >= 16
    x, dy, layer = operands(batch, dim, labels, fan_in, group, getattr(torch, dtype))
    problem = grouped.Problem.of(batch, layer)
    assert problem.shape_class == shape_class
    if kernel in ("group_shared.step", "group_shared.topk"):
        assert config in (triton_step if kernel == "group_shared.step" else triton_topk).candidates(problem)
        launch_step((batch, dim, labels, fan_in, group, getattr(torch, dtype)), everything=True)
        return
    fitted = grouped.fitted if kernel.startswith("group_shared") else per_label.fitted
    assert fitted(problem, config) == config
    family, pass_ = kernel.split(".")
    if (family, pass_) == ("group_shared", "forward"):
        grouped._forward(x, layer, problem, config)
    elif family == "group_shared":
        with_input, with_weight = pass_ != "grad_weight", pass_ != "grad_input"
        grouped._gradients(dy, x if with_weight else None, layer, problem, config, with_input)
    elif pass_ == "forward":
        per_label._forward(x, layer, problem, config)
    else:
        per_label._grad_weight(dy, x, layer, problem, config)


def spilling(launches: list[Launch], capability: int = 90) -> list[str]:
    """Compile on two threads (the assembler is a process of its own); which launches spill, and how much."""
    with ThreadPoolExecutor(2) as pool:
        stacks = [stack for _, stack in pool.map(lambda launch: compiled(launch, capability), launches)]
    pairs = zip(launches, stacks, strict=True)
    return [f"{l.kernel.__name__} {l.constants}: {stack} bytes" for l, stack in pairs if stack]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the launchers would have started."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: Any, args: Any, config: Any, **constants: Any) -> None:
        launch = Launch(kernel, tuple(args), {**config, **constants})
        if all((l.kernel, l.constants) != (kernel, launch.constants) for l in launches):
            launches.append(launch)

    monkeypatch.setattr(tune, "launch", note)
    return launches


@pytest.mark.parametrize("shape", GROUPED, ids=str)
def test_group_shared_defaults_spill_nothing(launched: list[Launch], shape: Shape) -> None:
    launch_grouped(shape)
    assert not spilling(launched)


@pytest.mark.parametrize("shape", PER_LABEL, ids=str)
def test_fixed_fan_in_defaults_spill_nothing(launched: list[Launch], shape: Shape) -> None:
    launch_per_label(shape)
    assert not spilling(launched)


@pytest.mark.parametrize("shape", STEPPED, ids=str)
def test_steps_without_logits_spill_nothing(launched: list[Launch], shape: Shape) -> None:
    launch_step(shape)
    assert not spilling(launched)


def test_pointwise_kernels_spill_nothing(launched: list[Launch]) -> None:
    launch_pointwise(2**20)
    assert not spilling(launched)


def test_the_candidates_of_the_default_point_spill_nothing(launched: list[Launch]) -> None:
    launch_grouped(GROUPED[0], everything=True)
    launch_step(GROUPED[0], everything=True)
    launch_per_label(PER_LABEL[0], everything=True)
    assert not spilling(launched)


@pytest.mark.parametrize("capability", [80, 100])
def test_other_gpus_compile_and_spill_nothing(launched: list[Launch], capability: int) -> None:
    launch_grouped(GROUPED[0])
    launch_step(GROUPED[0])
    launch_pointwise(2**20)
    launch_per_label(PER_LABEL[0])
    suited = [launch for launch in launched if capability >= 90 or not launch.constants.get("TMA")]
    assert len(suited) >= 8
    assert not spilling(suited, capability)


@pytest.mark.parametrize("path", sorted(Path(tune.__file__).with_name("tuned").glob("*.json")), ids=lambda p: p.stem)
def test_packaged_choices_spill_nothing(launched: list[Launch], path: Path) -> None:
    for key, config in choices.parse(path.read_text()).items():
        kernel, shape_class = key.split("|")
        if choices.kind_of(kernel) == "triton":
            launch_packaged(kernel, shape_class, config)
    assert not spilling(launched)


def test_hopper_gets_vectors_and_matrix_instructions(launched: list[Launch]) -> None:
    """What the speed rests on: 16-byte gathers and reductions, and products on warp-group matrix instructions."""
    launch_grouped(GROUPED[0])
    code = {l.kernel.__name__: compiled(l, 90)[0] for l in launched if l.constants.get("WITH_INPUT", True)}
    assert "wgmma.mma_async" in code["forward_kernel"]
    assert "ld.global.v4" in code["forward_kernel"]
    assert "wgmma.mma_async" in code["gradients_kernel"]
    assert "add.v4.f32" in code["gradients_kernel"]
    assert "atom.global.gpu.relaxed.add.f32" not in code["gradients_kernel"]
