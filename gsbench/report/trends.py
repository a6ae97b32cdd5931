"""A trend as Markdown, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from gsbench.report.markup import plain, row
from gsbench.trend import Change, Series, Trend

SCHEMA = 1
_COLOURED = 8  # series that changed, by the size of the change


def sentence(t: Trend) -> str:
    changed = sum(bool(s.changes) for s in t.series)
    return f"{len(t.series)} cases over {t.runs} runs, as ratios to {t.anchor}: {changed} changed"


def line(series: Series, change: Change) -> str:
    times = f"{change.before:.3g} → {change.after:.3g} ({change.factor - 1:+.1%})"
    return f"{series.case} on {series.device}: {times} at {change.point.run}, {change.point.when}"


def lines(t: Trend) -> list[str]:
    return [line(series, change) for series in t.series for change in series.changes]


def write(t: Trend, out: Path) -> list[Path]:
    """trend.md, trend.json and trend.png in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "trend.md", out / "trend.json", out / "trend.png"]
    files[0].write_text("\n".join(_markdown(t)) + "\n", encoding="utf-8")
    files[1].write_text(to_json(t) + "\n", encoding="utf-8")
    _draw(t, files[2])
    return files


def to_json(t: Trend) -> str:
    series = [
        {**s.case.to_dict(), "key": s.case.key, "device_name": s.device, "method": s.method,
         "points": [asdict(p) for p in s.points], "changes": [{**asdict(c), "factor": c.factor} for c in s.changes]}
        for s in t.series
    ]  # fmt: skip
    document = {"schema": SCHEMA, "anchor": t.anchor, "runs": t.runs, "series": series, "skipped": t.skipped}
    return json.dumps(document, indent=1, allow_nan=False)


def _markdown(t: Trend) -> Iterator[str]:
    yield "# Trend"
    yield ""
    yield f"{plain(sentence(t))}."
    yield ""
    yield "![Ratios to the anchor over the runs, relative to the first](trend.png)"
    yield ""
    yield "| case | device | run | when | before | after | change |"
    yield "|---|---|---|---|---|---|---|"
    for s in t.series:
        for c in s.changes:
            change = f"{c.factor - 1:+.1%}"
            yield row(str(s.case), s.device, c.point.run, c.point.when, f"{c.before:.4g}", f"{c.after:.4g}", change)
    for left_out in t.skipped:
        yield ""
        yield f"Left out: {plain(left_out)}"


def _draw(t: Trend, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    moments = sorted({(p.when, p.run) for s in t.series for p in s.points})
    place = {moment: i for i, moment in enumerate(moments)}
    for i, s in reversed(list(enumerate(t.series))):
        x = [place[p.when, p.run] for p in s.points]
        y = [p.ratio / s.points[0].ratio for p in s.points]
        coloured = bool(s.changes) and i < _COLOURED
        label = str(s.case).replace("$", r"\$") if coloured else None
        axes.plot(x, y, marker=".", color=f"C{i}" if coloured else "0.8", linewidth=1.6 if coloured else 0.8, label=label)
        for change in s.changes if coloured else ():
            axes.axvline(place[change.point.when, change.point.run] - 0.5, color=f"C{i}", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(moments)), [when[:10] for when, _ in moments], rotation=60, fontsize=7)
    axes.set(ylabel=f"ratio to {t.anchor}, relative to the first run")
    axes.grid(alpha=0.3)
    if any(s.changes for s in t.series):
        axes.legend(fontsize=6, loc="upper left")
    figure.savefig(file, dpi=110, metadata={"Software": None})
