"""What a run tells: a JSON line an event, TensorBoard where it is installed, and progress on the screen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gsbench.errors import UserError

LOG = "log.jsonl"
SECONDS = ("seconds", "examples_per_s", "peak_bytes", "epoch_s")  # what two equal runs may differ in


class Log:
    """Appends events to <run>/log.jsonl, each with the number of the update that it belongs to.

    Events of updates after `after`, which a killed run may have left, are cut off first.
    """

    def __init__(self, run: Path, after: int) -> None:
        file = run / LOG
        if file.exists():
            kept = "".join(json.dumps(event) + "\n" for event in read_log(run) if event["update"] <= after)
            temporary = file.with_suffix(".new")
            temporary.write_text(kept)
            os.replace(temporary, file)
        self._stream = open(file, "a", buffering=1)  # noqa: SIM115 - closed by __exit__
        self._board = _tensorboard(run)

    def add(self, kind: str, update: int, **values: Any) -> None:
        self._stream.write(json.dumps({"kind": kind, "update": update, **values}) + "\n")
        for name, value in values.items():
            if self._board is not None and isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, update)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if self._board is not None:
            self._board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The events of a run; a last line cut off by a kill is left out. Raises UserError for any other broken line."""
    file = run / LOG
    events, lines = [], file.read_text().splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as e:
            if number < len(lines):
                raise UserError(f"{file}:{number}: not a line of JSON: {e}") from None
    return events


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))


class Screen:
    """A progress bar on a terminal, a line an epoch elsewhere."""

    def __init__(self, name: str, updates: int, done: int, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(), TextColumn("{task.fields[told]}"), console=self._console, transient=True,
            disable=not self._console.is_terminal,
        )  # fmt: skip
        self._name, self._task = name, self._bar.add_task(name, total=updates, completed=done, told="")

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def at(self, update: int, loss: float | None, speed: float | None, precision: float | None, peak: int | None) -> None:
        parts = [
            f"loss {loss:.1f}" if loss is not None else "", f"{speed:,.0f} docs/s" if speed else "",
            f"P@1 {precision:.1f}" if precision is not None else "", f"{peak / 2**30:.2f} GiB" if peak else "",
        ]  # fmt: skip
        self._bar.update(self._task, completed=update, told=" · ".join(part for part in parts if part))

    def say(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", highlight=False, soft_wrap=True)
