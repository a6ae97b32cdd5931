"""A grid's settings chosen by validation, its runs several at a time, and its comparison read again."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gsbench.errors import UserError
from gsbench.train import comparison, loop, pool, runs
from gsbench.train import grid as grid_module
from gsbench.train.grid import Grid, grid_of, run_grid
from gsbench.train.pool import Job, Pool
from tests.gsbench.train import tiny

HIGH, LOW = {"output_optimizer": {"lr": 0.05}}, {"output_optimizer": {"lr": 1e-6}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_folder(tmp_path_factory.mktemp("grid"))


def table(data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "table", "seeds": [1, 2],
        "base": {
            "data": {"path": str(data)}, "device": "cpu", "encoder": {"dim": 16, "dropout": 0.0, "std": 0.3},
            "encoder_optimizer": {"name": "adamw", "lr": 0.01}, "training": {"epochs": 8, "batch": 32, "keep": 0},
            "output": {"fan_in": 4, "group_size": 8}, "output_optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        },
        "tune": {"validation": 0.2, "epochs": 6, "candidates": [LOW, HIGH]},
        "methods": {
            "dense": {"output": {"method": "dense"}},
            "shared": {"output": {"method": "group_shared"}, "tune": [HIGH, {**LOW, "encoder": {"dropout": 0.9}}]},
        },
        **changes,
    }  # fmt: skip


def test_the_best_candidate_by_validation_is_trained_with_every_seed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, asked = loop.train, []

    def watched(settings: Any, run: Path, **options: Any) -> dict[str, Any]:
        asked.append((settings.name, settings.seed, settings.training.epochs, options.get("test", True)))
        return train(settings, run, quiet=True, **options)

    monkeypatch.setattr(loop, "train", watched)
    grid = grid_of(table(data), "the test")
    found = run_grid(grid, tmp_path)
    trials, finals = [one for one in asked if not one[3]], [one for one in asked if one[3]]
    assert [name for name, *_ in trials] == ["dense-0", "dense-1", "shared-0", "shared-1"]
    assert {(seed, epochs) for _, seed, epochs, _ in trials} == {(1, 6)}
    assert [(name, seed, epochs) for name, seed, epochs, _ in finals] == [
        ("dense-1", 1, 8), ("dense-2", 2, 8), ("shared-1", 1, 8), ("shared-2", 2, 8),
    ]  # fmt: skip
    assert [row.method for row in found.rows] == ["dense", "shared"]
    assert {method: one.chosen for method, one in found.tuned.items()} == {"dense": 1, "shared": 0}
    assert found.tuned["shared"].candidates[1] == "output_optimizer.lr = 1e-06, encoder.dropout = 0.9"
    for method, tuned in found.tuned.items():
        results = [json.loads((tmp_path / "tune" / f"{method}-{i}" / "result.json").read_text()) for i in (0, 1)]
        assert not any("test" in result for result in results)  # candidates never see test documents
        assert [one["P@1"] for one in tuned.validation if one] == [result["validation"]["P@1"] for result in results]
        final = json.loads((tmp_path / f"{method}-1" / "config.json").read_text())
        assert final["output_optimizer"]["lr"] == 0.05
        assert final["data"]["validation"] == 0  # nothing is held out of a final run
    assert not list(tmp_path.rglob("*.pt"))  # keep = 0
    asked.clear()
    assert run_grid(grid, tmp_path) == found  # all of it read
    assert asked == []


def started(pool: Pool, data: Path, run: Path) -> Any:
    """A job without an end, once it is under way."""
    job = pool.start(Job(run, tiny.settings(data, training={"epochs": 10_000, "batch": 32}), test=True))
    while not (run / "log.jsonl").exists():
        time.sleep(0.05)
    return job


def test_an_interrupt_ends_the_processes(data: Path, tmp_path: Path) -> None:
    def interrupted() -> None:
        with Pool(2) as workers:
            started(workers, data, tmp_path / "run")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert multiprocessing.active_children() == []
    assert runs.settings_of(tmp_path / "run").training.epochs == 10_000  # to be gone on with
    assert runs.result_of(tmp_path / "run") is None


def test_a_process_that_dies_is_said(data: Path, tmp_path: Path) -> None:
    with Pool(2) as workers:
        job = started(workers, data, tmp_path / "run")
        for child in multiprocessing.active_children():
            child.kill()
        with pytest.raises(UserError, match=r"ended without a word \(killed, or out of memory\).*try fewer --jobs"):
            workers.result(job)


def test_processes_take_the_gpus_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    begun = multiprocessing.get_context("spawn").Value("i", 0)
    for _ in range(3):
        pool._begin(1, begun)
    assert taken == [0, 1, 0]


def test_the_comparison_says_what_was_chosen_and_is_read_again(data: Path, tmp_path: Path) -> None:
    found = run_grid(grid_of(table(data), "the test"), tmp_path, jobs=2)
    comparison.write(found, tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "2 candidates for each method, a run of 6 epochs each; metrics on held-out training documents. The best" in text
    assert "| dense | **output_optimizer.lr = 0.05** | **" in text
    assert "2 runs at a time" in text
    again = comparison.read(tmp_path / "comparison.json")
    assert comparison.markdown(again) == comparison.markdown(found)
    assert again.rows[0].metrics == found.rows[0].metrics
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match=r"comparison.json: not a comparison that gsbench train --grid wrote"):
        comparison.read(tmp_path / "comparison.json")


def test_a_candidate_may_diverge_but_not_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = loop.train

    def diverging(settings: Any, run: Path, **options: Any) -> dict[str, Any]:
        if settings.output_optimizer.lr in broken:
            raise loop.Diverged("update 3: the loss is nan")
        return train(settings, run, quiet=True, **options)

    monkeypatch.setattr(loop, "train", diverging)
    one = table(data, methods={"dense": {"output": {"method": "dense"}}}, seeds=[0])
    broken = [0.05]
    found = run_grid(grid_of(one, "the test"), tmp_path / "a")
    assert (found.tuned["dense"].chosen, found.tuned["dense"].validation[1]) == (0, None)
    assert math.isnan(found.rows[0].metrics["P@1"][1])
    assert "| diverged |" in comparison.markdown(found)
    broken.append(1e-6)
    with pytest.raises(UserError, match="dense diverged: update 3: the loss is nan"):
        run_grid(grid_of(one, "the test"), tmp_path / "b")
    two = table(data, seeds=[0], tune={"candidates": [LOW, {"output_optimizer": {"lr": 0.02}}], "validation": 0.2})
    two["methods"]["shared"]["tune"] = [HIGH, LOW]
    found = run_grid(grid_of(two, "the test"), tmp_path / "c")  # one method is left
    assert [row.method for row in found.rows] == ["dense"]
    assert found.diverged == {"shared": "update 3: the loss is nan"}
    assert "shared diverged: update 3: the loss is nan" in comparison.markdown(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"candidates": [LOW]}}, r"tune: every method needs as many candidates, got dense 1, shared 2"),
        ({"tune": {"trials": 3}}, r"\[tune\]: unknown key 'trials'; known: validation, epochs, by, candidates"),
        ({"tune": {"candidates": [LOW, HIGH], "by": ["P@2"]}}, r"\[tune\]: by: must be a list of P@1, .*, got \['P@2'\]"),
        ({"tune": {"candidates": []}}, r"\[methods.dense\]: tune: must be a list of tables of settings, got \[\]"),
        ({"tune": {"candidates": [LOW, {"output_optimizer": {"speed": 1}}]}}, r"dense\] tune 2: unknown key .*speed"),
        ({"tune": {"candidates": [LOW, HIGH], "validation": 0.0}}, r"tune.validation must be above 0"),
        ({"tune": None}, r"\[methods.shared\]: tune: needs the table \[tune\]"),
        ({"speed": 3}, r"unknown key 'speed'; known: name, seeds, base, methods, tune"),
    ],
)
def test_mistakes_in_a_grid(changes: dict[str, Any], message: str, data: Path) -> None:
    made = {key: value for key, value in table(data, **changes).items() if value is not None}
    with pytest.raises(UserError, match=message):
        grid_of(made, "the test")


def test_a_grid_without_seeds_trains_the_candidates_alone(data: Path, tmp_path: Path) -> None:
    found = run_grid(grid_of(table(data, seeds=[]), "the test"), tmp_path)
    assert found.rows == []
    assert [file.name for file in comparison.write(found, tmp_path)] == ["comparison.json", "comparison.md"]
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"tune"}
    text = comparison.markdown(comparison.read(tmp_path / "comparison.json"))
    assert text.startswith("2 candidates for each method, a run of 6 epochs each; metrics on held-out training documents.")
    with pytest.raises(UserError, match="seeds: must be a list of distinct whole numbers"):
        grid_of({**table(data, seeds=[]), "tune": None} | {"seeds": [0, 0]}, "the test")


def test_a_grid_without_tuning_has_no_candidates(data: Path) -> None:
    made = table(data)
    del made["tune"], made["methods"]["shared"]["tune"]
    grid: Grid = grid_of(made, "the test")
    assert grid.candidates == {}


def test_the_mean_of_metrics_may_choose() -> None:
    many = {"P@3": 0.0, "P@5": 0.0, "PSP@1": 0.0}
    results = [{"validation": {"P@1": p, "PSP@5": psp, **many}} for p, psp in ((40.0, 10.0), (39.0, 12.0), (40.0, 9.0))]
    one: Any = type("Candidate", (), {"said": ""})()
    assert grid_module._chosen([one] * 3, results, ("P@1",)).chosen == 0
    assert grid_module._chosen([one] * 3, results, ("P@1", "PSP@5")).chosen == 1
