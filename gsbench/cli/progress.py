"""How far a session of many processes has come: on the error stream, which machine-readable output leaves alone."""

from __future__ import annotations

import sys
from typing import Any

from gsbench.case import Case
from gsbench.record import Record


class Progress:
    """A gsbench.measure.session.View: a bar on a terminal, a line a replicate elsewhere."""

    def __init__(self, total: int) -> None:
        self._done, self._total = 0, total
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("measure", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, words: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=words)
        else:
            print(f"[{self._done}/{self._total}] {words}", file=sys.stderr, flush=True)

    def more(self, count: int) -> None:
        """So many records are still to come beyond the first estimate."""
        self._total += count
        if self._bar is not None:
            self._bar.update(self._task, total=self._total)

    def at(self, case: Case | None, phase: str) -> None:
        pass

    def recorded(self, record: Record) -> None:
        if record.status == "unsupported":
            return
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
