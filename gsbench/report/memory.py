"""Memory of one call by phase: what the model says beside what the allocator saw.

Weights, indices, inputs and outputs follow from the shapes; the temporaries are what the modelled extra memory of the
record holds beside the outputs. Measured is what the case holds before the call plus the allocator's peak above it.
"""

from __future__ import annotations

from collections.abc import Iterator

from gsbench import costs
from gsbench.record import Record
from gsbench.report.ratios import Comparison
from gsbench.report.sweeps import AXIS_TITLES, describe
from gsbench.report.views import Data, Group, View
from gskernels import table

LINEAR = (table.FORWARD, table.GRAD_INPUT, table.GRAD_WEIGHT, table.BACKWARD)  # they hold or return all logits
PHASES = ("weights", "indices", "optimizer state", "logits", "gradients", "input", "temporaries")


def phases(record: Record) -> dict[str, int] | None:
    """Modelled bytes of each phase; None where the record holds no model, or its implementation is not in the table.

    Of other passes than the linear ones, outputs and stored logits count as temporaries.
    """
    case, extra, layer = record.case, record.modelled_extra_bytes, record.layer_bytes
    known = {implementation.name: implementation for implementation in table.IMPLEMENTATIONS}
    if extra is None or layer is None or case.implementation not in known or case.point.dtype not in costs.ITEM_BYTES:
        return None
    implementation, shape, dtype = known[case.implementation], case.point.shape, case.point.dtype
    weights = costs.cost(implementation, table.GRAD_WEIGHT, shape, dtype).writes
    linear = case.pass_ in LINEAR
    outputs = costs.cost(implementation, case.pass_, shape, dtype).writes if linear else 0
    forward = case.pass_ == table.FORWARD
    item = costs.ITEM_BYTES[dtype]
    return {
        "weights": weights, "indices": max(0, layer - weights), "optimizer state": 0,
        "logits": shape.batch * shape.labels * item if linear else 0, "gradients": 0 if forward else outputs,
        "input": shape.batch * shape.dim * item, "temporaries": max(0, extra - outputs),
    }  # fmt: skip


def measured(record: Record) -> int | None:
    """Bytes held before the call by the model, plus the allocator's peak above them; None if that was not measured."""
    modelled = phases(record)
    if modelled is None or record.peak_extra_bytes is None or record.modelled_extra_bytes is None:
        return None
    return sum(modelled.values()) - record.modelled_extra_bytes + record.peak_extra_bytes


def stacks(group: Group) -> Iterator[View]:
    """Memory at the default point, and at every point that the suite names."""
    for c in group.comparisons:
        if c.point != group.naming.centre and c.point.shape not in group.naming.named:
            continue
        rows = sorted(_rows(group, c), key=lambda row: float(sum(row["model"])))
        if rows:
            name = group.naming.of(c.point)
            used = [phase for i, phase in enumerate(PHASES) if any(row["model"][i] for row in rows)]
            for row in rows:
                row["model"] = [size for phase, size in zip(PHASES, row["model"], strict=True) if phase in used]
            caption = f"{name}: {describe(c.point, AXIS_TITLES)}. " + (
                "Diamond: measured." if any(row["measured"] for row in rows) else "The device has no allocator to ask."
            )
            yield View(
                "stack", "memory", group.heading, f"{group.stem}-{name}-memory", f"memory of one call, {name}",
                "modelled by phase, beside what was measured", caption, {"phases": used, "rows": rows},
                [row["name"] for row in rows],
            )  # fmt: skip


def _rows(group: Group, c: Comparison) -> Iterator[Data]:
    for name, record in c.timed.items():
        modelled = phases(record)
        if modelled is not None:
            row = [modelled[phase] for phase in PHASES]
            yield {"name": name, "model": row, "measured": measured(record), "id": group.ids[record.key]}
