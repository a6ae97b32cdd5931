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
SOURCES: tuple[Source, ...] = ()

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
