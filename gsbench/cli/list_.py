"""gsbench list: suites and implementations."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated

import typer


class What(str, Enum):
    suites = "suites"
    implementations = "implementations"


def list_(
    what: Annotated[What, typer.Argument(help="What to list.")] = What.suites,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List the suites or the implementations.

    [bold]Example:[/] gsbench list implementations
    """
    rows = _suites() if what is What.suites else _implementations()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in rows[0]:
        table.add_column(column, no_wrap=column in ("name", "points"))
    for row in rows:
        table.add_row(*(", ".join(v) if isinstance(v, list) else str(v) for v in row.values()))
    Console().print(table)


def _suites() -> list[dict[str, object]]:
    from gsbench.suite import load_suite, suite_names

    rows: list[dict[str, object]] = []
    for name in suite_names():
        suite, _ = load_suite(name, "cuda")
        rows.append({"name": name, "points": suite.grid_size(), "passes": list(suite.passes), "title": suite.title})
    return rows


def _implementations() -> list[dict[str, object]]:
    from gsbench.implementations import all_implementations

    return [
        {
            "name": i.name, "devices": list(i.devices), "dtypes": list(i.dtypes), "passes": list(i.passes),
            "summary": i.summary,
        }
        for i in all_implementations()
    ]  # fmt: skip
