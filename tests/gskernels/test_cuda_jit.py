"""Compiling CUDA C++ without a GPU: the cache and its faults, what a failure says, what the assembler reports."""

from __future__ import annotations

import builtins
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")

from gskernels.cuda import jit

SOURCE = """
#include "common.cuh"
#include "beside.cuh"
extern "C" __global__ void scale(float* a) {
  __shared__ float s[32];
  s[threadIdx.x % 32] = a[threadIdx.x];
  __syncthreads();
  a[threadIdx.x] = FACTOR * s[31 - threadIdx.x % 32] + OFFSET;
}
extern "C" __global__ void nothing() {}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GSKERNELS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "beside.cuh").write_text("#define OFFSET 1.0f\n")
    (tmp_path / "scale.cu").write_text(SOURCE)
    return str(tmp_path / "scale.cu")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures that reached the compiler."""
    calls: list[str] = []
    real = jit._compile

    def counted(source: str, arch: str, macros: Any) -> jit.Binary:
        calls.append(arch)
        return real(source, arch, macros)

    monkeypatch.setattr(jit, "_compile", counted)
    return calls


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_kernels_are_named_and_their_needs_known(source: str, arch: str) -> None:
    binary = jit.compile(source, arch, {"FACTOR": "2.0f"})
    assert set(binary.kernels) == {"scale", "nothing"}
    needs = binary.kernels["scale"]
    assert 4 <= needs.registers <= 32
    assert (needs.spills, needs.stack) == (0, 0)
    assert needs.shared_bytes >= 128
    assert binary.cubin.startswith(b"\x7fELF")
    assert len(binary.sha256) == 64


def test_the_second_time_comes_from_the_cache(source: str, compiled: list[str]) -> None:
    first = jit.compile(source, "sm_80", {"FACTOR": 2})
    assert jit.compile(source, "sm_80", {"FACTOR": "2"}) == first
    assert compiled == ["sm_80"]
    assert [path.suffix for path in jit.cache_folder().iterdir()] == [".bin"]


def test_whatever_a_binary_is_made_from_is_in_its_key(source: str, compiled: list[str]) -> None:
    seen = {jit.compile(source, "sm_80", {"FACTOR": 2}).sha256, jit.compile(source, "sm_80", {"FACTOR": 3}).sha256}
    seen.add(jit.compile(source, "sm_90a", {"FACTOR": 2}).sha256)
    Path(source).with_name("beside.cuh").write_text("#define OFFSET 5.0f\n")
    seen.add(jit.compile(source, "sm_80", {"FACTOR": 2}).sha256)
    Path(source).write_text(SOURCE.replace("31 -", "30 -"))
    seen.add(jit.compile(source, "sm_80", {"FACTOR": 2}).sha256)
    assert len(compiled) == len(seen) == 5


def test_headers_of_headers_are_followed(source: str) -> None:
    Path(source).with_name("beside.cuh").write_text('  #  include "deeper.cuh"\n')
    Path(source).with_name("deeper.cuh").write_text("#define OFFSET 1.0f\n#include <cuda_fp16.h>\n")
    names = sorted(Path(path).name for path in jit.texts(source))
    assert names == ["beside.cuh", "common.cuh", "deeper.cuh", "scale.cu"]


@pytest.mark.parametrize(
    "damage", [b"", b"\n", b"{}\n", b"[]\n\x7fELF", b'{"sha256": "", "kernels": {}}\nELF', b"\xff\xfe\n"]
)
def test_a_damaged_file_is_compiled_again(source: str, compiled: list[str], damage: bytes) -> None:
    first = jit.compile(source, "sm_80", {"FACTOR": 2})
    (path,) = jit.cache_folder().iterdir()
    path.write_bytes(damage)
    assert jit.compile(source, "sm_80", {"FACTOR": 2}) == first
    assert jit.compile(source, "sm_80", {"FACTOR": 2}) == first
    assert len(compiled) == 2


def test_half_a_file_is_compiled_again(source: str, compiled: list[str]) -> None:
    first = jit.compile(source, "sm_80", {"FACTOR": 2})
    (path,) = jit.cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert jit.compile(source, "sm_80", {"FACTOR": 2}) == first
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    source: str, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GSKERNELS_CACHE", str(tmp_path / "file"))
    assert jit.compile(source, "sm_80", {"FACTOR": 2}) == jit.compile(source, "sm_80", {"FACTOR": 2})
    assert len(compiled) == 2


def test_a_folder_in_the_place_of_a_file_is_survived(source: str) -> None:
    first = jit.compile(source, "sm_80", {"FACTOR": 2})
    (path,) = jit.cache_folder().iterdir()
    path.unlink()
    path.mkdir()
    assert jit.compile(source, "sm_80", {"FACTOR": 2}) == first
    assert list(jit.cache_folder().iterdir()) == [path]  # no temporary files stay


def test_an_error_in_the_source_is_shown_once_with_its_place(source: str) -> None:
    with pytest.raises(jit.CompileError) as caught:
        jit.compile(source, "sm_80", {"FACTOR": "absent"})
    message = str(caught.value)
    assert message.startswith(f"{source} does not compile for sm_80, FACTOR=absent:\n")
    assert message.count('identifier "absent" is undefined') == 1
    assert "scale.cu(8)" in message


def test_an_unknown_architecture_is_named(source: str) -> None:
    with pytest.raises(jit.CompileError, match="does not compile for sm_1234, FACTOR=2"):
        jit.compile(source, "sm_1234", {"FACTOR": 2})


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is asked once a process is asked again."""
    jit.nvrtc_version.cache_clear()
    jit.cuda_headers.cache_clear()
    yield
    jit.nvrtc_version.cache_clear()
    jit.cuda_headers.cache_clear()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("missing", ["cuda.bindings", "cuda.pathfinder", "cuda.core"])
def test_a_missing_package_says_what_to_install(source: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith(missing):
            raise ImportError(f"No module named {missing!r}")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"pip install cuda-core .*{missing}") as caught:
        jit.compile(source, "sm_80", {"FACTOR": 2})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("forgetful")
def test_a_missing_nvrtc_says_what_to_install(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise RuntimeError("libnvrtc.so.13 not found\nsearched here and there")

    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", types.SimpleNamespace(nvrtcVersion=absent))
    monkeypatch.setattr("cuda.bindings.nvrtc", sys.modules["cuda.bindings.nvrtc"], raising=False)
    with pytest.raises(ImportError, match=r"nvidia-cuda-nvrtc .*\(libnvrtc.so.13 not found\)$"):
        jit.compile(source, "sm_80", {"FACTOR": 2})


@pytest.mark.usefixtures("forgetful")
def test_missing_headers_say_what_to_install(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda.pathfinder.find_nvidia_header_directory", lambda name: None)
    with pytest.raises(ImportError, match=r"nvidia-cuda-runtime \(no CUDA runtime headers\)$"):
        jit.compile(source, "sm_80", {"FACTOR": 2})


def test_a_report_with_spills_is_read() -> None:
    log = (
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'one' for 'sm_90a'\n"
        "ptxas info    : Function properties for one\n"
        "    48 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, "
        "1024 bytes smem, 8 bytes cmem[2]\n"
        "ptxas info    : Compiling entry function 'two' for 'sm_90a'\n"
        "ptxas info    : Used 6 registers, used 0 barriers\n"
    )
    assert jit.parse_log(log) == {"one": jit.Resources(255, 48, 48, 1024), "two": jit.Resources(6, 0, 0, 0)}


@pytest.mark.parametrize(
    ("capability", "arch"), [((8, 0), "sm_80"), ((8, 6), "sm_86"), ((9, 0), "sm_90a"), ((10, 0), "sm_100")]
)
def test_architectures(capability: tuple[int, int], arch: str) -> None:
    assert jit.arch_of(capability) == arch


def test_the_wheel_holds_every_source(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    root = jit.PACKAGE.parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("installed, not a checkout")
    (wheel,) = hatchling.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.endswith((".cu", ".cuh"))}
    assert shipped == {
        f"gskernels/{p.relative_to(jit.PACKAGE)}" for p in jit.PACKAGE.rglob("*.cu*") if p.suffix in (".cu", ".cuh")
    }
