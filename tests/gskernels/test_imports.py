"""Reading the table of implementations stays light, and gskernels knows nothing of gsbench."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import gskernels

ROOT = Path(gskernels.__file__).parents[1]
NOT_ON_EVERY_MACHINE = ("triton", "cuda")  # modules that need triton or a CUDA toolkit to be imported


def _modules() -> list[str]:
    found = pkgutil.walk_packages(gskernels.__path__, "gskernels.")
    return [m.name for m in found if not set(NOT_ON_EVERY_MACHINE) & set(m.name.split("."))]


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import gskernels", "import gskernels.table", "from gskernels import Shape"])
def test_table_needs_no_torch(statement: str) -> None:
    assert not {"torch", "triton", "numpy"} & _loaded_after(statement)


def test_gskernels_never_imports_gsbench() -> None:
    loaded = _loaded_after("import " + ", ".join(_modules()))
    assert "gskernels.ops" in loaded
    assert not any(name.split(".")[0] == "gsbench" for name in loaded)


def test_no_source_names_gsbench() -> None:
    naming = [p.name for p in (ROOT / "gskernels").rglob("*.py") if "import gsbench" in p.read_text()
              or "from gsbench" in p.read_text()]  # fmt: skip
    assert naming == []


def test_public_names_load() -> None:
    for name in gskernels.__all__:
        assert getattr(gskernels, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gskernels.nothing
