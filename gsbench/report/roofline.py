"""The roofline: useful FLOP/s of each case against its arithmetic intensity, under the ceilings measured in its run.

A case stands at useful FLOPs / fewest bytes, and its floor straight above it: the rate it would reach in `floor_ms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gsbench.frame import part
from gsbench.report.ratios import in_order, timing_of
from gsbench.report.text import is_number
from gsbench.report.views import Data, Group, View, rounded

MOST = 3000  # cases in one roofline
CAPTION = (
    "Line: the ceilings measured in this run. Grey mark: a case's floor, above the line where its writes fit the cache. "
    "Dense and bottleneck count their own FLOPs."
)


def ceilings(manifest: dict[str, Any], dtype: str) -> tuple[float, float] | None:
    """(bytes a second, FLOP/s of that dtype) as the run measured them; None where either is missing."""
    found = part(manifest, "ceilings")
    bandwidth = found.get("bandwidth_gbps") or found.get("copy_gbps")
    flops = part(found, "matmul_tflops").get(dtype)
    limits = [float(x) for x in (bandwidth, flops) if is_number(x) and x > 0]
    return (limits[0] * 1e9, limits[1] * 1e12) if len(limits) == 2 else None


def roofs(group: Group, manifest: dict[str, Any]) -> Iterator[View]:
    limits = ceilings(manifest, group.naming.centre.dtype)
    if limits is None:
        return
    every = -(-sum(len(c.timed) for c in group.comparisons) // MOST)
    comparisons = group.comparisons[::every] if every > 1 else group.comparisons
    series: list[Data] = []
    for name in in_order(name for c in comparisons for name in c.timed):
        points = []
        for c in comparisons:
            record = c.timed.get(name)
            if record is not None and record.useful_flops and record.min_bytes and record.floor_ms:
                rates = [record.useful_flops / ms * 1e3 for ms in (timing_of(record).median_ms, record.floor_ms)]
                x = rounded(record.useful_flops / record.min_bytes)
                points.append([x, *map(rounded, rates), group.ids[record.key]])
        if points:
            series.append({"name": name, "points": points})
    if series:
        yield View(
            "roof", "roofline", group.heading, f"{group.stem}-roofline", "roofline",
            "useful FLOP/s (higher is better)", CAPTION + (f" One of {every} points is drawn." if every > 1 else ""),
            {"bandwidth": rounded(limits[0]), "flops": rounded(limits[1]), "series": series}, [s["name"] for s in series],
        )  # fmt: skip
