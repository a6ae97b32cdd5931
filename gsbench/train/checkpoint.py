"""Checkpoints: whole or not there, newest n and the best kept, refused where they do not fit.

    <run>/config.json              the configuration as resolved
    <run>/log.jsonl                a line an event
    <run>/checkpoints/00001200.pt  after update 1200; best.pt, of the best validation result
    <run>/result.json              metrics on the test documents, at the end
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from gsbench.errors import UserError

SCHEMA = 1  # 1: first
FOLDER, BEST = "checkpoints", "best.pt"


def save(run: Path, state: dict[str, Any], *, keep: int, best: bool) -> Path:
    """Write the state after `state["update"]` updates; then remove all but the newest `keep`. Raises UserError."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{state['update']:08d}.pt"
    try:
        _write({"schema": SCHEMA, **state}, file)
        if best:
            _link(file, folder / BEST)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as RuntimeError
        raise UserError(f"{file}: cannot write the checkpoint: {e}; the earlier ones are whole") from None
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return file


def checkpoints(run: Path) -> list[Path]:
    """Oldest first, the best one not among them."""
    return sorted((run / FOLDER).glob("[0-9]*.pt"))


def newest(run: Path) -> Path:
    """Raises UserError where the run has none."""
    found = checkpoints(run)
    if not found:
        raise UserError(f"{run}: no checkpoint to go on from")
    return found[-1]


def find(path: Path) -> Path:
    """A checkpoint from a file, or from a run's folder: its best, else its newest."""
    if path.is_dir():
        best = path / FOLDER / BEST
        return best if best.exists() else newest(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint or run")
    return path


def load(file: Path) -> dict[str, Any]:
    """Raises UserError for a file that is damaged, no checkpoint, or of a newer version."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as e:
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{file}: damaged, or not a checkpoint: {why}") from None
    if not isinstance(state, dict) or not isinstance(state.get("schema"), int):
        raise UserError(f"{file}: not a checkpoint of gsbench")
    if state["schema"] > SCHEMA:
        raise UserError(f"{file}: schema {state['schema']} is newer than this gsbench reads ({SCHEMA}); upgrade gsbench")
    return state


def check_data(file: Path, state: dict[str, Any], fingerprint: str, labels: int, folder: Path) -> None:
    """Raises UserError where the checkpoint is of another label set or other features."""
    if state["labels"] != labels:
        raise UserError(f"{file}: was trained on {state['labels']} labels, but {folder} has {labels}")
    if state["fingerprint"] != fingerprint:
        raise UserError(f"{file}: was trained on another data set ({state['fingerprint']}) than {folder} ({fingerprint})")


def restore(file: Path, part: torch.nn.Module, state: dict[str, Any], name: str) -> None:
    """load_state_dict. Raises UserError where names or shapes do not fit."""
    try:
        part.load_state_dict(state)
    except RuntimeError as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        raise UserError(f"{file}: does not fit the {name}: {lines[min(1, len(lines) - 1)]}") from None


def _write(state: dict[str, Any], file: Path) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.new")
    try:
        with open(temporary, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _link(file: Path, name: Path) -> None:
    """A second name for a file, replaced in one step."""
    temporary = name.with_suffix(f".{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    os.link(file, temporary)
    os.replace(temporary, name)
