"""JSON for benchmark-action/github-action-benchmark, tool "customSmallerIsBetter"."""

from __future__ import annotations

import json
from pathlib import Path

from gsbench.errors import NothingMeasured
from gsbench.frame import latest
from gsbench.store import RunData


def write(run: RunData, file: Path) -> None:
    entries = []
    for record in latest(run.records):
        t = record.timing
        if t is not None:
            half = (t.ci_high_ms - t.ci_low_ms) / 2
            extra = f"95 % interval {t.ci_low_ms:.6g} to {t.ci_high_ms:.6g} ms, median of {t.samples} samples, {t.method}"
            value = {"unit": "ms", "value": t.median_ms, "range": f"± {half:.3g}"}
            entries.append({"name": str(record.case), **value, "extra": extra})
    if not entries:
        raise NothingMeasured(f"{run.path}: no case of it was timed, so there is nothing to export")
    file.write_text(json.dumps(entries, indent=1, allow_nan=False) + "\n", encoding="utf-8")
