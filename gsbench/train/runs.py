"""Run folders: made once, gone on with by --resume, trained by one process at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gsbench.errors import UserError
from gsbench.train import checkpoint, config
from gsbench.train.log import LOG

CONFIG, RESULT = "config.json", "result.json"


def create(run: Path, settings: config.Config) -> Path:
    """A folder to train in; one whose run ended before its first checkpoint is taken again.

    Raises UserError where the folder holds anything else.
    """
    if run.exists() and (checkpoint.checkpoints(run) or not (run / CONFIG).exists()):
        raise UserError(f"{run}: exists already; go on with --resume {run}, or choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    (run / LOG).unlink(missing_ok=True)
    (run / CONFIG).write_text(json.dumps(settings.model_dump(mode="json"), indent=1) + "\n")
    return run


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Raises UserError where another process trains this run. A killed process leaves no lock behind."""
    with open(run / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{run}: another gsbench is training this run; wait for it to end") from None
        yield


def settings_of(run: Path) -> config.Config:
    """Raises UserError where the folder is no run."""
    file = run / CONFIG
    try:
        return config.validate(json.loads(file.read_text()), str(file))
    except FileNotFoundError:
        raise UserError(f"{run}: not a run of gsbench train (no {CONFIG})") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{file}: not valid JSON: {e}") from None


def result_of(run: Path) -> dict[str, Any] | None:
    file = run / RESULT
    return json.loads(file.read_text()) if file.exists() else None
