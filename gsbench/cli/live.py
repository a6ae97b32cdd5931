"""What a sweep looks like while it runs: a live table on a terminal, a line a case elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gsbench.case import Case
from gsbench.costs import Cost
from gsbench.plan import Plan
from gsbench.record import Record

_ROWS = 14


class Live:
    """A context manager and a gsbench.measure.session.View."""

    def __init__(self, plan: Plan, recorded: set[str], path: Path, budget_s: float | None) -> None:
        self._console = Console()
        self._path, self._budget = path, budget_s
        self._planned = {case.key for case in plan.cases}
        self._total, self._done = len(plan.cases), len(self._planned & recorded)
        self._began, self._began_at = time.monotonic(), self._done
        self._rows: list[Record] = []
        self._counts: Counter[str] = Counter()
        self._now = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task("cases", total=self._total, completed=self._done, left="")
        self._live = RichLive(console=self._console, refresh_per_second=8, get_renderable=self._render, transient=True)

    def __enter__(self) -> Live:
        if self._console.is_terminal:
            self._live.start()
        else:
            print(f"{self._total - self._done} cases to measure into {self._path}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def at(self, case: Case | None, phase: str) -> None:
        self._now = f"{case} · {phase}" if case else phase

    def recorded(self, record: Record) -> None:
        self._counts[record.status] += 1
        if record.key not in self._planned:  # unsupported ones are not planned
            return
        self._done += 1
        self._rows = [*self._rows, record][-_ROWS:]
        self._progress.update(self._task, completed=self._done, left=self._left())
        if not self._console.is_terminal:
            took = f"{record.timing.median_ms:.4g} ms" if record.timing else f"{record.status}: {record.reason}"
            print(f"[{self._done}/{self._total}] {record.case}: {took}", flush=True)

    def summary(self) -> str:
        counted = ", ".join(f"{n} {status}" for status, n in self._counts.most_common())
        seconds = time.monotonic() - self._began
        return f"{counted or 'nothing new'} in {seconds:.0f} s; run: {self._path}"

    def _left(self) -> str:
        """Time left, from the pace so far."""
        fresh = self._done - self._began_at
        if not fresh:
            return ""
        pace = (time.monotonic() - self._began) / fresh
        left = pace * (self._total - self._done)
        if self._budget is not None:
            left = min(left, max(0.0, self._budget - (time.monotonic() - self._began)))
        return f"~{int(left // 60)}:{int(left % 60):02d} left"

    def _render(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, expand=True)
        for column in ("implementation", "pass", "point", "mode"):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        for column in ("median ms", "± 95 %", "of roof"):
            table.add_column(column, justify="right", no_wrap=True)
        for record in self._rows:
            case, t = record.case, record.timing
            cells = [case.implementation, case.pass_, str(case.point), case.mode]
            if t is None:
                table.add_row(*cells, Text(record.status, style="red"), "", "")
            else:
                width = f"{(t.ci_high_ms - t.ci_low_ms) / 2 / t.median_ms:.2%}"
                table.add_row(*cells, f"{t.median_ms:.4g}", width, f"{record.roof_share or 0:.0%}")
        return Group(table, Text(self._now, style="dim", overflow="ellipsis", no_wrap=True), self._progress)


def print_plan(plan: Plan, costs: Iterable[tuple[Case, Cost]], target: str) -> None:
    """The plan: a row a point and pass, what would not fit, and what is unsupported."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    memory = _device_memory(target)
    points: dict[Any, list[tuple[Case, Cost]]] = {}
    for case, cost in costs:
        points.setdefault((str(case.point), case.pass_), []).append((case, cost))
    table = Table(box=box.SIMPLE_HEAD, title=f"{len(plan.cases)} cases on {target}")
    for column in ("point", "pass"):
        table.add_column(column, no_wrap=True)
    for column in ("cases", "GFLOP", "fewest MB", "largest resident GB"):
        table.add_column(column, justify="right")
    too_large = []
    for (point, pass_), members in points.items():
        flops = {c.useful_flops for _, c in members}
        moved = [c.min_bytes for _, c in members]
        largest = max(c.resident_bytes for _, c in members)
        table.add_row(
            point, pass_, str(len(members)), _span(flops, 1e9), _span(moved, 1e6), f"{largest / 1e9:.2f}",
        )  # fmt: skip
        too_large += [(case, c) for case, c in members if memory is not None and c.resident_bytes > memory]
    console.print(table)
    if memory is None:
        console.print("device memory is not known here, so nothing can be said about what would not fit")
    for case, cost in too_large:
        console.print(f"would not fit in {memory / 1e9:.1f} GB: {case} needs {cost.resident_bytes / 1e9:.1f} GB")  # type: ignore[operator]
    for reason, count in Counter(reason for _, reason in plan.unsupported).most_common():
        console.print(f"unsupported ({count} cases): {reason}", style="dim")


def _span(values: Iterable[int], unit: float) -> str:
    low, high = min(values) / unit, max(values) / unit
    return f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"


def _device_memory(target: str) -> int | None:
    """Bytes of the target's memory, asked without torch."""
    if target == "cpu":
        from gsbench.measure.environment import memory_bytes

        return memory_bytes()
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(target.partition(":")[2] or 0))
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception:  # no NVML: not known
        return None
