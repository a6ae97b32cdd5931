"""Recorded times of one device, and what they say of a case that was not recorded.

A time is the byte model's (the larger of fewest bytes over measured bandwidth and useful FLOPs over measured rate) times a
factor. The factor's logarithm is taken as linear in the logarithms of B, D, L, K and G around the case: weighted least
squares over the implementation's records of that pass, weights falling by e a doubling of distance. How wrong that is, is
measured: each record is estimated from the others (those of the same point left out as well), and the error that this
makes a doubling of distance is stated for the distance of the case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gsbench import costs
from gsbench.case import Case, Point
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import device_name, latest, part
from gsbench.record import Record
from gsbench.store import RunData
from gskernels.shape import Shape
from gskernels.table import Implementation

NEAR = 2.0  # doublings, summed over the axes, beyond which no record speaks for a case
_RIDGE = 0.01  # of the slopes: where records differ on one axis only, the others' slopes are zero
_SAME = 0.01
_LEAST = 0.5  # doublings for which an error is stated at least: what no size tells, such as rows off 16 bytes, matters too
_FEWEST = 3  # records


@dataclass(frozen=True)
class Seen:
    """A timed record. factor: its time over the model's. memory_factor: measured over modelled extra bytes, if counted."""

    id: str
    case: Case
    ms: float
    at: tuple[float, ...]
    factor: float
    memory_factor: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Near:
    """A record beside a case, and how far away: doublings, summed over the axes."""

    id: str
    point: str
    distance: float
    ms: float
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """error: how far off such estimates are at this distance, relative, for half and for nine tenths of the records; None
    where too few records have others near. distance 0: the case itself was recorded."""

    ms: float
    distance: float
    near: tuple[Near, ...]
    error_half: float | None
    error_most: float | None
    records: int


@dataclass(frozen=True)
class Evidence:
    device: str
    memory_bytes: int | None
    bandwidth_gbps: float
    matmul_tflops: Mapping[str, float]
    seen: Mapping[tuple[str, str], Sequence[Seen]]  # (implementation, pass) -> records
    failed: Sequence[Record]
    runs: Sequence[str]

    def model_ms(self, implementation: Implementation, pass_: str, point: Point) -> float:
        return _model_ms(implementation, pass_, point, self.bandwidth_gbps, self.matmul_tflops)

    def estimate(self, implementation: Implementation, pass_: str, point: Point) -> Estimate | None:
        """None where no record is near. Of records of the same point (in several runs) the mean counts."""
        seen = self.of(implementation.name, pass_, point)
        if not seen:
            return None
        at = coordinates(implementation, point.shape)
        distances = [_distance(at, one.at) for one in seen]
        nearest = min(distances)
        if nearest > NEAR:
            return None
        if nearest < _SAME:
            same = [one for one, d in zip(seen, distances, strict=True) if d < _SAME]
            factor = math.exp(sum(math.log(one.factor) for one in same) / len(same))
        else:
            factor = _fitted(seen, at)
        half, most = _errors(seen, nearest)
        order = sorted(zip(distances, seen, strict=True), key=lambda pair: (pair[0], pair[1].id))
        near = tuple(Near(one.id, str(one.case.point), round(d, 2), one.ms, one.flags) for d, one in order[:4] if d <= NEAR)
        ms = factor * self.model_ms(implementation, pass_, point)
        return Estimate(ms, nearest if nearest >= _SAME else 0.0, near, half, most, len(seen))

    def of(self, name: str, pass_: str, point: Point) -> list[Seen]:
        """The records of that implementation and pass with the point's pattern and dtype."""
        return [
            one for one in self.seen.get((name, pass_), ())
            if (one.case.point.pattern, one.case.point.dtype) == (point.pattern, point.dtype)
        ]  # fmt: skip


def gather(runs: Sequence[RunData], implementations: Sequence[Implementation], device: str = "") -> Evidence:
    """The cold records of one device. device: part of its name; else the GPU, or the device, with the most of them.

    Raises UserError that lists the devices if that names none or several, NothingMeasured where no run can be used.
    """
    names = sorted({device_name(run) for run in runs} - {""})
    chosen = [name for name in names if device.lower() in name.lower()] if device else names
    if device and len(chosen) != 1:
        raise UserError(f"--device {device!r}: {'several' if chosen else 'none'} of: {', '.join(names) or 'no device'}")
    usable = {name: [run for run in runs if device_name(run) == name and _ceilings(run)] for name in chosen}
    if not any(usable.values()):
        raise NothingMeasured("no run here has a device and measured ceilings; give run folders that gsbench run wrote")
    name = max(usable, key=lambda n: (_on_gpu(usable[n]), sum(len(run.records) for run in usable[n]), n))
    known = {i.name: i for i in implementations}
    seen: dict[tuple[str, str], list[Seen]] = {}
    failed: list[Record] = []
    for run in usable[name]:
        for record in latest(run.records):
            implementation = known.get(record.case.implementation)
            if implementation is None or record.case.mode != "cold":
                continue
            if record.timing is not None:
                seen.setdefault((implementation.name, record.case.pass_), []).append(_seen(run, record, implementation))
            elif record.status == "oom":
                failed.append(record)
    memory = [part(run.manifest, "device").get("memory_bytes") for run in usable[name]]
    rates = [part(run.manifest, "ceilings") for run in usable[name]]
    matmul = {dtype: float(np.median([r["matmul_tflops"][dtype] for r in rates if dtype in r["matmul_tflops"]]))
              for dtype in {d for r in rates for d in r["matmul_tflops"]}}  # fmt: skip
    bandwidth = float(np.median([r["bandwidth_gbps"] for r in rates]))
    size = next((int(m) for m in memory if m), None)
    return Evidence(name, size, bandwidth, matmul, seen, failed, [run.name for run in usable[name]])


def grouped(implementation: Implementation) -> bool:
    """Whether its labels share lists in groups whose size can be chosen."""
    return implementation.layout in ("sparse", "masked") and implementation.topology_group_size(2) == 2


def coordinates(implementation: Implementation, shape: Shape) -> tuple[float, ...]:
    """log2 of the axes that the implementation's time depends on."""
    axes = [shape.batch, shape.dim, shape.labels]
    if implementation.layout != "dense":
        axes.append(shape.fan_in)
    if grouped(implementation):
        axes.append(shape.group_size)
    return tuple(math.log2(value) for value in axes)


# ---- records ----------------------------------------------------------------------------------------------------


def _seen(run: RunData, record: Record, implementation: Implementation) -> Seen:
    assert record.timing is not None
    rates, case, ms = run.manifest["ceilings"], record.case, record.timing.median_ms
    model = _model_ms(implementation, case.pass_, case.point, rates["bandwidth_gbps"], rates["matmul_tflops"])
    extra = costs.cost(implementation, case.pass_, case.point.shape, case.point.dtype).extra_bytes
    peak = None if record.peak_extra_bytes is None else record.peak_extra_bytes / extra
    at = coordinates(implementation, case.point.shape)
    return Seen(f"{run.name}/{record.key}", case, ms, at, ms / model, peak, record.validity)


def _model_ms(
    implementation: Implementation, pass_: str, point: Point, bandwidth_gbps: float, matmul_tflops: Mapping[str, float]
) -> float:
    cost = costs.cost(implementation, pass_, point.shape, point.dtype)
    rate = matmul_tflops.get(point.dtype)
    return costs.floor_ms(cost, bandwidth_gbps=bandwidth_gbps, matmul_tflops=rate, cache_bytes=0)


def _ceilings(run: RunData) -> bool:
    rates = part(run.manifest, "ceilings")
    return bool(rates.get("bandwidth_gbps")) and isinstance(rates.get("matmul_tflops"), dict)


def _on_gpu(runs: Sequence[RunData]) -> bool:
    return any(part(run.manifest, "device").get("type") == "cuda" for run in runs)


# ---- between them -----------------------------------------------------------------------------------------------


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def _fitted(seen: Sequence[Seen], at: Sequence[float]) -> float:
    """The factor at a point: the constant of a weighted linear fit around it."""
    away = np.array([one.at for one in seen]) - np.array(at)
    columns = np.concatenate([np.ones((len(seen), 1)), away], axis=1)
    weights = np.exp(-np.abs(away).sum(1))
    ridge = np.diag([1e-9, *[_RIDGE] * len(at)])
    values = np.log([one.factor for one in seen])
    solution = np.linalg.solve((columns.T * weights) @ columns + ridge, (columns.T * weights) @ values)
    return float(np.exp(solution[0]))


def _errors(seen: Sequence[Seen], distance: float) -> tuple[float | None, float | None]:
    """Relative errors at that distance, for half and nine tenths of the records: each is estimated from the others, and its
    error divided by its distance from the nearest of them. Records that are alone do not count."""
    rates = []
    for one in seen:
        others = [other for other in seen if _distance(one.at, other.at) >= _SAME]
        nearest = min((_distance(one.at, other.at) for other in others), default=math.inf)
        if len(others) >= _FEWEST and nearest <= NEAR + _SAME:
            rates.append(abs(_fitted(others, one.at) / one.factor - 1) / nearest)
    if len(rates) < _FEWEST:
        return None, None
    reach = max(distance, _LEAST)
    return float(np.quantile(rates, 0.5)) * reach, float(np.quantile(rates, 0.9)) * reach
