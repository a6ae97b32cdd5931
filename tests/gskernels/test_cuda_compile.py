"""Every CUDA kernel compiles for the GPUs we name, and keeps everything in registers. Needs neither a GPU nor a driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels.cuda import jit

PORTABLE = ("sm_80", "sm_90a", "sm_100")
HOPPER = ("sm_90a",)


@dataclass(frozen=True)
class Source:
    """A source, the kernels it must define, and every value of its macros; all combinations are compiled."""

    path: str
    kernels: tuple[str, ...]
    defines: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    archs: tuple[str, ...] = PORTABLE

    def variants(self) -> Iterator[dict[str, int | str]]:
        for values in product(*self.defines.values()):
            yield dict(zip(self.defines, values, strict=True))


# One line a source; several where different kernels take different macros.
# Of the portable kernels of group_shared, one variant a type; test_group_shared_cuda.py compiles what plans ask for.
ALIGNED: dict[str, tuple[int | str, ...]] = {"INDEX": ("short",), "PART": (32,), "W_ALIGNED": (1,), "Y_ALIGNED": (1,)}
SOURCES: tuple[Source, ...] = (
    Source("group_shared/portable_transpose.cu", ("portable_transpose", "portable_sum"), {"ELEMENT": ("float", "bf16")}),
    Source("group_shared/portable_forward.cu", ("portable_forward",),
           {**ALIGNED, "ELEMENT": ("fp16", "bf16"), "SLICE": (64,), "TEAM": (4,), "WARPS": (12,), "BLOCKS": (1,),
            "RESIDENT": (1,)}),
    Source("group_shared/portable_gradients.cu", ("portable_gradients",),
           {**ALIGNED, "ELEMENT": ("float", "bf16"), "WARPS": (4,), "BLOCKS": (3,), "SHARE": (1,),
            "WITH_INPUT": (1,), "WITH_WEIGHT": (1,)}),
    Source("group_shared/portable_ordered.cu", ("portable_ordered_grad_input",),
           {**ALIGNED, "ELEMENT": ("bf16",), "SLICE": (64,), "SPLIT": (4,), "ACCUMULATE_SHARED": (1,)}),
    # Of the Hopper kernels; test_hopper_plans.py compiles what plans ask for.
    Source("group_shared/hopper_forward.cu", ("hopper_forward",),
           {"ELEMENT": ("fp16", "bf16"), "K": (64,), "G": (16, 64), "LIST": (64,), "WARPGROUPS": (3,), "STAGES": (2,),
            "BIAS": (1,), "WIDE": (1, 2)}, HOPPER),
    Source("group_shared/hopper_grad_weight.cu", ("hopper_grad_weight",),
           {"ELEMENT": ("fp16", "bf16"), "K": (64,), "G": (16, 32), "LIST": (32,), "ROWS": (128,), "ALIGNED": (0, 1, 2)},
           HOPPER),
    Source("group_shared/hopper_grad_input.cu", ("hopper_grad_input", "hopper_grad_input_sum"),
           {"ELEMENT": ("fp16", "bf16"), "K": (64,), "G": (16, 32, 64, 128), "LIST": (128,), "RING_Y": (2,),
            "RING_W": (2,), "FEW": (0, 1)}, HOPPER),
    *(Source("group_shared/hopper_backward.cu", ("hopper_backward", "hopper_backward_prepare"),
             {"ELEMENT": ("fp16", "bf16"), "K": (64,), "G": (16, 64), "LIST": (128,), "RING_Y": (2,), "RING_W": (2,),
              "SLICES": (slices,), "DEEP": (deep,), "RING": (8,)}, HOPPER)
      for slices, deep in ((1, 3), (2, 1), (3, 2))),
    # test_hopper_step.py compiles what its plans ask for.
    Source("group_shared/hopper_step.cu", ("hopper_step", "hopper_step_clear", "hopper_step_prepare", "hopper_step_finish"),
           {"ELEMENT": ("fp16", "bf16"), "INDEX": ("int",), "K": (64,), "G": (16, 32), "LIST": (64,), "SLICES": (1, 4),
            "STAGES": (4,), "BIAS": (1,), "UPDATE": (1,), "LOSS": (0,), "FACTOR": (0,), "MOMENTUM": (1,), "ROUNDING": (0,)},
           HOPPER),
    # test_hopper_topk.py likewise.
    Source("group_shared/hopper_topk.cu", ("hopper_topk_maxima",),
           {"ELEMENT": ("fp16", "bf16"), "K": (64,), "G": (16, 64), "LIST": (64,), "WARPGROUPS": (4,), "STAGES": (2,),
            "BIAS": (1,), "HINTS": (0, 1)}, HOPPER),
    Source("group_shared/topk_choose.cu", ("topk_choose",),
           {"ELEMENT": ("fp16", "bf16"), "K": (64,), "LIST": (16, 32), "BIAS": (1,), "HINTS": (0, 1)}),
    # Of fixed_fan_in, likewise; test_fixed_fan_in_cuda.py compiles what its launchers ask for.
    Source("fixed_fan_in/cuda_expand.cu", ("expand", "collect", "transpose"),
           {"ELEMENT": ("float", "bf16"), "INDEX": ("short", "int"), "WARPS": (4,)}),
    Source("fixed_fan_in/cuda_forward.cu", ("forward",),
           {"ELEMENT": ("float", "bf16"), "INDEX": ("short",), "SHARE": (2,), "RESIDENT": (1,), "WARPS": (16,),
            "FAN_IN": (64,), "AHEAD": (2,), "HAS_BIAS": (0,)}),
    Source("fixed_fan_in/cuda_grad_weight.cu", ("grad_weight",),
           {"ELEMENT": ("float", "bf16"), "INDEX": ("short",), "SHARE": (2,), "RESIDENT": (1,), "WARPS": (16,),
            "FAN_IN": (64,)}),
    Source("fixed_fan_in/cuda_grad_input.cu", ("grad_input", "take"),
           {"ELEMENT": ("float", "bf16"), "INDEX": ("short",), "SOURCE": ("int", "i64"), "SHARE": (4,), "RESIDENT": (1,),
            "CHUNK": (768,), "WARPS": (8,)}),
)  # fmt: skip

CASES = [
    pytest.param(source, arch, defines, id=f"{source.path}-{arch}-{','.join(f'{k}={v}' for k, v in defines.items())}")
    for source in SOURCES for arch in source.archs for defines in source.variants()
]  # fmt: skip


@pytest.mark.parametrize(("source", "arch", "defines"), CASES)
def test_it_compiles_and_spills_nothing(source: Source, arch: str, defines: dict[str, int | str]) -> None:
    binary = jit.compile(source.path, arch, defines)
    assert set(source.kernels) <= set(binary.kernels)
    spilling = {name: needs for name, needs in binary.kernels.items() if needs.spills or needs.stack}
    assert not spilling


def test_every_source_is_in_the_table() -> None:
    assert {str(path.relative_to(jit.PACKAGE)) for path in jit.PACKAGE.rglob("*.cu")} == {s.path for s in SOURCES}
