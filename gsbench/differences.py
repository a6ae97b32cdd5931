"""What is not the same on two sides besides the times: kernel configuration and environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gsbench.frame import part
from gsbench.record import Record
from gsbench.store import RunData


@dataclass(frozen=True)
class Difference:
    """A field whose values are not the same on both sides, in words ("a or b" where runs of one side differ)."""

    field: str
    base: str
    new: str

    def __str__(self) -> str:
        return f"{self.field} {self.base} → {self.new}"


def joined(values: Iterable[str]) -> str:
    return " or ".join(sorted(set(values)))


def of_configuration(base: Sequence[Record], new: Sequence[Record]) -> tuple[Difference, ...]:
    """Tuned tiles, registers, spills, shared memory by dotted names; the binary once, for all kernels of the case."""
    first = base[0]
    if all(r.binary_hash == first.binary_hash and r.config == first.config for r in (*base, *new)):
        return ()
    sides = [[{**_flat(r.config), "binary": r.binary_hash or "none"} for r in side] for side in (base, new)]
    return _differences(sides[0], sides[1], ignore="sha256")


def of_environment(base: Sequence[RunData], new: Sequence[RunData]) -> tuple[Difference, ...]:
    """Versions, device, code, and the suite's timing settings."""
    sides = [[_surroundings(run.manifest) for run in side] for side in (base, new)]
    return _differences(sides[0], sides[1], ignore="uuid")


def _surroundings(manifest: dict[str, Any]) -> dict[str, str]:
    tables = {name: part(manifest, name) for name in ("environment", "device")}
    timing = {"timing": part(part(manifest, "suite"), "timing")}
    return {**_flat(tables), **_flat(timing), "code_fingerprint": str(manifest.get("code_fingerprint", ""))}


def _differences(base: list[dict[str, str]], new: list[dict[str, str]], ignore: str) -> tuple[Difference, ...]:
    """By name, except those that end in `ignore`."""
    found = []
    for name in dict.fromkeys(name for side in (*base, *new) for name in side):
        before, after = ({fields.get(name, "none") for fields in side} for side in (base, new))
        if before != after and name.rpartition(".")[2] != ignore:
            found.append(Difference(name, joined(before), joined(after)))
    return tuple(found)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted names."""
    flat: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat.update(_flat(inner, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(inner)
    return flat
