"""A table of methods x seeds from one file, and their comparison.

    name = "wordnet"
    seeds = [0, 1, 2]
    [base]                       # a configuration; what the methods have in common
    [methods.dense]              # what this one has otherwise, merged into the base
    output = { method = "dense" }

Settings chosen by validation, each method with the same budget: every candidate is trained once, with the smallest seed
and a part of the training documents held out; the one with the best P@1 (or mean of the metrics `by`) on these is trained
with every seed on all of them.

    [tune]
    validation = 0.05            # share held out
    epochs = 6                   # of a candidate; by default as many as a final run
    by = ["P@1", "PSP@5"]        # what chooses; by default ["P@1"]
    candidates = [{ output_optimizer = { lr = 0.02 } }, { output_optimizer = { lr = 0.1 } }]
    [methods.bottleneck]
    tune = [...]                 # its own candidates instead, as many of them

With seeds = [] nothing but the candidates is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gsbench.errors import UserError
from gsbench.suite import merged
from gsbench.train import config
from gsbench.train.comparison import SHOWN, Comparison, Row, Tuned, interval
from gsbench.train.log import read_log
from gsbench.train.pool import Job, Pool

_KEYS, _TUNE_KEYS = ("name", "seeds", "base", "methods", "tune"), ("validation", "epochs", "by", "candidates")


@dataclass(frozen=True)
class Grid:
    """methods and candidates have seed 0 of their own; runs are named <method>-<seed> and tune/<method>-<candidate>."""

    name: str
    seeds: list[int]
    methods: dict[str, config.Config]  # without [tune] what is run, with it what candidates change
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)  # of every method, or of none
    by: tuple[str, ...] = SHOWN[:1]  # metrics on the held-out documents, whose mean chooses


@dataclass(frozen=True)
class Candidate:
    said: str  # what it changes, in words
    trial: config.Config  # with a part held out
    final: config.Config  # on all training documents


def load_grid(file: Path) -> Grid:
    """Raises UserError that names file, key and what is allowed."""
    return grid_of(config.load_toml(file), str(file))


def grid_of(data: dict[str, Any], source: str) -> Grid:
    """As `load_grid`, of what a file would hold."""
    _check_keys(data, _KEYS, source)
    seeds, methods, name = data.get("seeds", [0]), data.get("methods"), data.get("name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{source}: name: must be a string")
    if not isinstance(seeds, list) or not (seeds or "tune" in data) or not all(type(s) is int and s >= 0 for s in seeds) or (
        len(set(seeds)) < len(seeds)
    ):
        raise UserError(f"{source}: seeds: must be a list of distinct whole numbers from 0 on, got {seeds!r}")
    if not isinstance(methods, dict) or not methods or not all(isinstance(m, dict) for m in methods.values()):
        raise UserError(f"{source}: needs a table [methods.NAME] for each method")
    tune, made, candidates = data.get("tune"), {}, {}
    by = _chosen_by({} if tune is None else tune, source)
    for method, changes in methods.items():
        own = {key: value for key, value in changes.items() if key != "tune"}
        whole, where = merged(data.get("base", {}), {**own, "name": method}), f"{source} [methods.{method}]"
        made[method] = config.validate(whole, where)
        if tune is not None:
            listed = changes.get("tune", tune.get("candidates"))
            candidates[method] = _candidates(whole, listed, tune, min(seeds, default=0), where)
        elif "tune" in changes:
            raise UserError(f"{where}: tune: needs the table [tune]")
    budgets = {method: len(one) for method, one in candidates.items()}
    if len(set(budgets.values())) > 1:
        told = ", ".join(f"{method} {n}" for method, n in budgets.items())
        raise UserError(f"{source}: tune: every method needs as many candidates, got {told}")
    return Grid(name, seeds, made, candidates, by)


def _chosen_by(tune: Any, source: str) -> tuple[str, ...]:
    _check_keys(tune, _TUNE_KEYS, f"{source} [tune]")
    by = tune.get("by", [*SHOWN[:1]])
    if not isinstance(by, list) or not by or any(name not in SHOWN for name in by):
        raise UserError(f"{source} [tune]: by: must be a list of {', '.join(SHOWN)}, got {by!r}")
    return tuple(by)


def _candidates(whole: dict[str, Any], listed: Any, tune: dict[str, Any], seed: int, where: str) -> list[Candidate]:
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise UserError(f"{where}: tune: must be a list of tables of settings, got {listed!r}")
    share, epochs, found = tune.get("validation", 0.05), tune.get("epochs"), []
    for i, one in enumerate(listed):
        place = f"{where} tune {i + 1}"
        final = merged(whole, one)
        held = {"data": {"validation": share}, "seed": seed}
        trial = merged(final, {**held, **({} if epochs is None else {"training": {"epochs": epochs}})})
        made = config.validate(trial, place)
        if made.data.validation == 0:
            raise UserError(f"{where}: tune.validation must be above 0: candidates are chosen on held-out documents")
        found.append(Candidate(_in_words(one), made, config.validate(merged(final, {"data": {"validation": 0.0}}), place)))
    return found


def _check_keys(data: Any, known: tuple[str, ...], source: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{source}: must be a table, got {data!r}")
    for key in data:
        if key not in known:
            raise UserError(f"{source}: unknown key {key!r}; known: {', '.join(known)}")


def _in_words(changes: Mapping[str, Any], prefix: str = "") -> str:
    told = [_in_words(v, f"{prefix}{k}.") if isinstance(v, dict) else f"{prefix}{k} = {v}" for k, v in changes.items()]
    return ", ".join(part for part in told if part) or ("" if prefix else "as in the grid")


def run_grid(grid: Grid, out: Path, jobs: int = 1) -> Comparison:
    """Every method with every seed, each in a run folder of its own; done ones are read, cut-off ones gone on with.

    jobs: runs at a time, each in a process of its own if more than one. A candidate may diverge; a method whose candidates
    all do, or one of whose final runs does, is left out and named. Raises UserError as `loop.train` does otherwise.
    """
    rows: list[Row] = []
    device, diverged, chosen, lengths = "", {}, {}, []
    with Pool(jobs) as pool:
        trials = {
            method: [pool.start(_trial(out, method, i, one.trial)) for i, one in enumerate(candidates)]
            for method, candidates in grid.candidates.items()
        }
        started: dict[str, list[Any]] = {}
        for method, plain in grid.methods.items():
            settings = plain
            if method in trials:
                results = [pool.result(trial) for trial in trials[method]]
                if all("diverged" in result for result in results):
                    diverged[method] = results[-1]["diverged"]
                    continue
                chosen[method] = _chosen(grid.candidates[method], results, grid.by)
                settings = grid.candidates[method][chosen[method].chosen].final
                lengths.append(settings.training.epochs)
                device = next(result["device_name"] for result in results if "diverged" not in result)
            started[method] = [pool.start(_final(out, method, seed, settings)) for seed in grid.seeds]
        for method, finals in started.items() if grid.seeds else ():
            results = [pool.result(one) for one in finals]
            if why := next((result["diverged"] for result in results if "diverged" in result), None):
                diverged[method] = why
                continue
            times = [
                event["epoch_s"] for seed in grid.seeds for event in read_log(out / f"{method}-{seed}")
                if event["kind"] == "epoch" and event["epoch_s"] is not None
            ]  # fmt: skip
            metrics = {key: interval([r["test"][key] for r in results]) for key in results[0]["test"]}
            peak, size, epoch_s = max(r["peak_bytes"] for r in results), results[0]["output_parameters"], np.median(times)
            device = results[0]["device_name"]
            rows.append(Row(method, len(results), size, metrics, float(epoch_s), peak))
    if not rows and not chosen:
        raise UserError("; ".join(f"{method} diverged: {why}" for method, why in diverged.items()))
    trial_lengths = [one.trial.training.epochs for candidates in grid.candidates.values() for one in candidates]
    epochs = (_span(trial_lengths), _span(lengths)) if chosen else None
    return Comparison(grid.name, grid.seeds, rows, device, jobs, epochs, chosen, diverged, pool.devices, grid.by)


def _trial(out: Path, method: str, number: int, settings: config.Config) -> Job:
    name = f"{method}-{number}"
    return Job(out / "tune" / name, settings.model_copy(update={"name": name}), test=False)


def _final(out: Path, method: str, seed: int, settings: config.Config) -> Job:
    name = f"{method}-{seed}"
    return Job(out / name, settings.model_copy(update={"seed": seed, "name": name}), test=True)


def _span(numbers: list[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _chosen(candidates: list[Candidate], results: list[dict[str, Any]], by: tuple[str, ...]) -> Tuned:
    """The best by the mean of metrics on the held-out documents; the first of equals. Not all have diverged."""
    found = [None if "diverged" in one else {name: one["validation"][name] for name in SHOWN} for one in results]
    best = max((sum(metrics[name] for name in by), -i) for i, metrics in enumerate(found) if metrics is not None)
    return Tuned([one.said for one in candidates], found, -best[1])
