"""What a grid of runs found: the table, its plot, and how the settings were chosen. Imports no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gsbench.errors import UserError

SHOWN = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5")
HEADER = ["method", "output parameters", *SHOWN, "epoch s", "peak MiB"]
FILE = "comparison.json"


@dataclass(frozen=True)
class Tuned:
    """How a method's settings were chosen: metrics of each candidate on held-out training documents (None: it diverged)."""

    candidates: list[str]  # what each changes, in words
    validation: list[dict[str, float] | None]  # those in SHOWN
    chosen: int


@dataclass(frozen=True)
class Row:
    """One method over its seeds. Metrics: (mean, half of the 95 % confidence interval; NaN for a single seed)."""

    method: str
    seeds: int
    output_parameters: int
    metrics: dict[str, tuple[float, float]]
    epoch_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Comparison:
    """rows: none where nothing but candidates was trained. jobs: runs at a time, on so many devices, which seconds an epoch
    depend on. epochs: of a candidate and of a final run, "10" or "10 to 20". by: metrics whose mean chose. diverged: why a
    method has no row."""

    name: str
    seeds: list[int]
    rows: list[Row]
    device: str = ""
    jobs: int = 1
    epochs: tuple[str, str] | None = None  # None: nothing was tuned
    tuned: dict[str, Tuned] = field(default_factory=dict)  # by method
    diverged: dict[str, str] = field(default_factory=dict)
    devices: int = 1
    by: tuple[str, ...] = SHOWN[:1]


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval by Student's t); NaN for a single value."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def write(found: Comparison, out: Path) -> list[Path]:
    """comparison.json and .md, and .png where there are rows."""
    files = [out / f"comparison.{kind}" for kind in (("json", "md", "png") if found.rows else ("json", "md"))]
    plain = asdict(found)
    for row in plain["rows"]:
        row["metrics"] = {k: [m, None if math.isnan(h) else h] for k, (m, h) in row["metrics"].items()}
    files[0].write_text(json.dumps(plain, indent=1) + "\n")
    files[1].write_text(f"# {found.name}\n\n{markdown(found)}\n")
    if found.rows:
        _plot(found.rows, files[2])
    return files


def read(file: Path) -> Comparison:
    """What `write` wrote. Raises UserError for a file that is not that."""
    try:
        plain = json.loads(file.read_text())
        rows = []
        for row in plain.pop("rows"):
            metrics = {k: (m, math.nan if h is None else h) for k, (m, h) in row.pop("metrics").items()}
            rows.append(Row(metrics=metrics, **row))
        epochs = plain.pop("epochs", None)
        tuned = {method: Tuned(**one) for method, one in plain.pop("tuned", {}).items()}
        span = None if epochs is None else (str(epochs[0]), str(epochs[1]))
        return Comparison(rows=rows, epochs=span, tuned=tuned, by=tuple(plain.pop("by", SHOWN[:1])), **plain)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{file}: not a comparison that gsbench train --grid wrote: {e}") from None


def cells(row: Row) -> list[str]:
    """A line of the table: see `HEADER`."""
    found = [row.metrics[name] for name in SHOWN]
    shown = [f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}") for mean, half in found]
    size, memory = f"{row.output_parameters / 1e6:.2f} M", f"{row.peak_bytes / 2**20:.0f}"
    return [row.method, size, *shown, f"{row.epoch_s:.1f}", memory]


def markdown(found: Comparison) -> str:
    """The table, what it means, and how settings were chosen."""
    lines = _results(found) if found.rows else []
    lines += [f"\n{method} diverged: {why}" for method, why in found.diverged.items()]
    if found.tuned and found.epochs is not None:
        count, (short, full) = len(next(iter(found.tuned.values())).candidates), found.epochs
        told = f"{count} candidates for each method, a run of {short} epochs each; metrics on held-out training documents"
        if found.rows:
            by = found.by[0] if len(found.by) == 1 else f"the mean of {', '.join(found.by)}"
            told += f". The best by {by} (bold) was trained with every seed on all training documents, for {full} epochs"
        lines += ["", f"{told}. {found.device}.", ""] if found.rows else [f"{told}. {found.device}.", ""]
        lines += _table(["method", "candidate", *SHOWN], [row for pair in found.tuned.items() for row in _choices(*pair)])
    return "\n".join(lines)


def _results(found: Comparison) -> list[str]:
    seeds = f"{len(found.seeds)} seeds: mean ± half of the 95 % confidence interval." if len(found.seeds) > 1 else (
        "One seed: no interval, and small differences mean nothing."
    )
    told = f"On the test documents, in percent. {seeds} {found.device}."
    if found.jobs > 1:
        on = f" on {found.devices} devices" if found.devices > 1 else ""
        told += f" {found.jobs} runs at a time{on}: seconds an epoch are not those of a run that has the device to itself."
    return [*_table(HEADER, [cells(row) for row in found.rows]), "", told]


def _choices(method: str, tuned: Tuned) -> list[list[str]]:
    rows = []
    for i, (said, metrics) in enumerate(zip(tuned.candidates, tuned.validation, strict=True)):
        shown = ["diverged"] * len(SHOWN) if metrics is None else [f"{metrics[name]:.1f}" for name in SHOWN]
        mark = "**" if i == tuned.chosen else ""
        rows.append([method, *(f"{mark}{text}{mark}" for text in (said, *shown))])
    return rows


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    made = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return made + ["| " + " | ".join(row) + " |" for row in rows]


def _plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of: dict[str, list[float]] = {
        "output parameters": [row.output_parameters for row in rows],
        "peak memory, MiB": [row.peak_bytes / 2**20 for row in rows],
        "seconds an epoch": [row.epoch_s for row in rows],
    }
    figure, axes = plt.subplots(1, 3, figsize=(14, 5), sharey=True, layout="constrained")
    for place, (label, values) in zip(axes, axes_of.items(), strict=True):
        for i, (row, x) in enumerate(zip(rows, values, strict=True)):
            mean, half = row.metrics["P@1"]
            shape = "osD^v"[i // 10 % 5]
            place.errorbar(x, mean, yerr=None if math.isnan(half) else half, fmt=shape, color=f"C{i % 10}", label=row.method)
        place.set_xlabel(label)
        place.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("P@1, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)
