"""A small data set, small configurations of every system, and runs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gsbench.train import checkpoint, config, loop, runs
from gsbench.train.data import synthetic

LABELS = 320
SPARSE = {"fan_in": 8, "group_size": 8}
SET, RIGL = {"grow": "random", "interval": 3}, {"grow": "gradient", "interval": 3}
SYSTEMS: dict[str, dict[str, Any]] = {  # every row of the table of methods
    "dense": {"output": {"method": "dense"}},
    "dense bf16": {
        "output": {"method": "dense", "weights": "bf16"},
        "output_optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "update": "kahan"},
    },
    "chunked dense": {
        "output": {"method": "chunked_dense", "weights": "bf16", "chunk_labels": 100},
        "output_optimizer": {"name": "sgd", "lr": 0.3, "update": "stochastic"},
    },
    "bottleneck": {"output": {"method": "bottleneck", **SPARSE}},
    "fixed fan-in static": {"output": {"method": "fixed_fan_in", **SPARSE}},
    "fixed fan-in SET": {"output": {"method": "fixed_fan_in", **SPARSE}, "rewire": SET},
    "fixed fan-in RigL": {"output": {"method": "fixed_fan_in", **SPARSE}, "rewire": RIGL},
    "Spartex": {
        "output": {"method": "fixed_fan_in", **SPARSE}, "rewire": SET, "auxiliary": {"clusters": 20, "until": 0.5},
    },
    "group-shared static": {"output": {"method": "group_shared", **SPARSE}},
    "group-shared SET": {"output": {"method": "group_shared", "grouping": "random", **SPARSE}, "rewire": SET},
    "group-shared RigL": {
        "output": {"method": "group_shared", "grouping": "frequency", "weights": "bf16", **SPARSE}, "rewire": RIGL,
        "output_optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "update": "stochastic"},
    },
    "head-tail static": {"output": {"method": "head_tail", **SPARSE}},
    "head-tail SET": {"output": {"method": "head_tail", "private_features": True, **SPARSE}, "rewire": SET},
    "head-tail RigL": {
        "output": {"method": "head_tail", **SPARSE}, "rewire": RIGL,
        "encoder": {"dim": 24, "dropout": 0.2, "tail_dropout": 0.1, "std": 0.3},
    },
}  # fmt: skip


def data_folder(folder: Path) -> Path:
    synthetic.prepare(folder / "data", LABELS, documents=640, features=400)
    return folder / "data"


def settings(folder: Path, system: str = "dense", **changes: Any) -> config.Config:
    made = {
        "name": "tiny", "device": "cpu", "deterministic": True, "data": {"path": str(folder)},
        "encoder": {"dim": 24, "dropout": 0.1, "std": 0.3},
        "encoder_optimizer": {"name": "adamw", "lr": 0.01, "warmup": 0.05},
        "training": {"epochs": 2, "batch": 32, "log_every": 1},
        **SYSTEMS[system], **changes,
    }  # fmt: skip
    return config.validate(made, "the test")


def trained(run: Path, made: config.Config) -> dict[str, Any]:
    """Train in a new folder; what result.json holds."""
    return loop.train(made, runs.create(run, made), quiet=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint, by part and name."""
    state = checkpoint.load(checkpoint.newest(run))
    return {f"{part}.{key}": t for part, named in state["model"].items() for key, t in named.items() if torch.is_tensor(t)}
