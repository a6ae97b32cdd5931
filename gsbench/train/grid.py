"""A table of methods x seeds from one file, and their comparison.

    name = "wordnet"
    seeds = [0, 1, 2]
    [base]                       # a configuration; what the methods have in common
    [methods.dense]              # what this one has otherwise, merged into the base
    output = { method = "dense" }
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsbench.errors import UserError
from gsbench.suite import merged
from gsbench.train import config, runs
from gsbench.train.log import read_log

SHOWN = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5")
_KEYS = ("name", "seeds", "base", "methods")


@dataclass(frozen=True)
class Grid:
    name: str
    seeds: list[int]
    methods: dict[str, config.Config]  # with seed 0; named <method>-<seed> when run


@dataclass(frozen=True)
class Row:
    """One method over its seeds. Metrics: (mean, half of the 95 % confidence interval; NaN for a single seed)."""

    method: str
    seeds: int
    output_parameters: int
    metrics: dict[str, tuple[float, float]]
    epoch_s: float
    peak_bytes: int


def load_grid(file: Path) -> Grid:
    """Raises UserError that names file, key and what is allowed."""
    return grid_of(config.load_toml(file), str(file))


def grid_of(data: dict[str, Any], source: str) -> Grid:
    """As `load_grid`, of what a file would hold."""
    for key in data:
        if key not in _KEYS:
            raise UserError(f"{source}: unknown key {key!r}; known: {', '.join(_KEYS)}")
    seeds, methods, name = data.get("seeds", [0]), data.get("methods"), data.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{source}: name: must be a string")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds) or (
        len(set(seeds)) < len(seeds)
    ):
        raise UserError(f"{source}: seeds: must be a list of distinct whole numbers from 0 on, got {seeds!r}")
    if not isinstance(methods, dict) or not methods or not all(isinstance(m, dict) for m in methods.values()):
        raise UserError(f"{source}: needs a table [methods.NAME] for each method")
    made = {}
    for method, changes in methods.items():
        whole = merged(data.get("base", {}), {**changes, "name": method})
        made[method] = config.validate(whole, f"{source} [methods.{method}]")
    return Grid(name, seeds, made)


def run_grid(grid: Grid, out: Path) -> list[Row]:
    """Every method with every seed, each in a run folder of its own; done ones are read, cut-off ones gone on with."""
    rows = []
    for method, settings in grid.methods.items():
        results, times = [], []
        for seed in grid.seeds:
            name = f"{method}-{seed}"
            run = out / name
            results.append(_trained(run, settings.model_copy(update={"seed": seed, "name": name})))
            times += [e["epoch_s"] for e in read_log(run) if e["kind"] == "epoch" and e["epoch_s"] is not None]
        metrics = {key: interval([r["test"][key] for r in results]) for key in results[0]["test"]}
        peak = max(r["peak_bytes"] for r in results)
        rows.append(Row(method, len(results), results[0]["output_parameters"], metrics, float(np.median(times)), peak))
    return rows


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval by Student's t); NaN for a single value."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def write(rows: list[Row], grid: Grid, out: Path) -> list[Path]:
    """comparison.json, .md and .png."""
    files = [out / f"comparison.{kind}" for kind in ("json", "md", "png")]
    plain = [{**vars(row), "metrics": {k: [m, None if math.isnan(h) else h] for k, (m, h) in row.metrics.items()}}
             for row in rows]  # fmt: skip
    files[0].write_text(json.dumps({"name": grid.name, "seeds": grid.seeds, "rows": plain}, indent=1) + "\n")
    files[1].write_text(markdown(rows, grid))
    _plot(rows, files[2])
    return files


def cells(row: Row) -> list[str]:
    """A line of the table: see `HEADER`."""
    found = [row.metrics[name] for name in SHOWN]
    shown = [f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}") for mean, half in found]
    size, memory = f"{row.output_parameters / 1e6:.2f} M", f"{row.peak_bytes / 2**20:.0f}"
    return [row.method, size, *shown, f"{row.epoch_s:.1f}", memory]


HEADER = ["method", "output parameters", *SHOWN, "epoch s", "peak MiB"]


def markdown(rows: list[Row], grid: Grid) -> str:
    lines = [f"# {grid.name}", "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    seeds = f"{len(grid.seeds)} seeds: mean ± half of the 95 % confidence interval." if len(grid.seeds) > 1 else (
        "One seed: no interval, and small differences mean nothing."
    )
    return "\n".join([*lines, "", f"On the test documents, in percent. {seeds}"]) + "\n"


def _plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of: dict[str, list[float]] = {
        "output parameters": [row.output_parameters for row in rows],
        "peak memory, MiB": [row.peak_bytes / 2**20 for row in rows],
        "seconds an epoch": [row.epoch_s for row in rows],
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True, layout="constrained")
    for place, (label, values) in zip(axes, axes_of.items(), strict=True):
        for i, (row, x) in enumerate(zip(rows, values, strict=True)):
            mean, half = row.metrics["P@1"]
            place.errorbar(x, mean, yerr=None if math.isnan(half) else half, fmt="o", color=f"C{i % 10}", label=row.method)
        place.set_xlabel(label)
        place.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("P@1, %")
    axes[2].legend(fontsize="small")
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _trained(run: Path, settings: config.Config) -> dict[str, Any]:
    """The result of a run: read where it is done, from its newest checkpoint where there is one, else from the start.

    Raises UserError where the folder holds a run of other settings.
    """
    from gsbench.train.loop import train

    if not run.exists():
        return train(settings, runs.create(run, settings))
    if runs.settings_of(run) != settings:
        raise UserError(f"{run}: holds a run of other settings; choose another --out, or remove it")
    return runs.result_of(run) or train(settings, run, resume=True)
