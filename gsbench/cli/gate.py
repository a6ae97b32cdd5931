"""gsbench gate: a run against a stored baseline, or the work tree against a commit, as an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from gsbench.errors import UserError
from gsbench.share import parse_share

if TYPE_CHECKING:
    from gsbench.gate import Gated

PIPED_WIDTH = 160


def gate(
    run: Annotated[Optional[Path], typer.Argument(help="A run, or a folder of runs: its replicates.")] = None,  # noqa: UP045
    baseline: Annotated[Optional[Path], typer.Option("--baseline", help="The same of the baseline.")] = None,  # noqa: UP045
    tolerance: Annotated[str, typer.Option("--tolerance", help="What counts as the same, such as 3%.")] = "3%",
    anchor: Annotated[str, typer.Option("--anchor", help="Judge ratios to this implementation, such as bottleneck/torch: "
                                        "cancels what drifts in the machine.")] = "",
    tolerances: Annotated[Optional[Path], typer.Option("--tolerances", help="TOML file of [[tolerance]] entries.")] = None,  # noqa: UP045
    quarantine: Annotated[Optional[Path], typer.Option("--quarantine", help="TOML file of [[quarantine]]s.")] = None,  # noqa: UP045
    partial: Annotated[bool, typer.Option("--partial", help="The run may lack cases of the baseline.")] = False,
    reference: Annotated[str, typer.Option("--against", help="Instead of RUN and --baseline: measure this commit and the "
                                           "work tree in turns.")] = "",
    suite: Annotated[str, typer.Option("--suite", help="With --against: the suite, or the path of a .toml file.")] = "",
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="With --against: override KEY=V1,V2.")] = None,  # noqa: UP045
    only: Annotated[Optional[list[str]], typer.Option(help="With --against: implementations to keep.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="With --against: auto, cpu, cuda or cuda:N.")] = "auto",
    replicates: Annotated[int, typer.Option(min=2, help="With --against: processes a side; as many again for cases that "
                                            "are unclear or slower.")] = 5,
    path: Annotated[Optional[list[Path]], typer.Option("--path", help="With --against: folder of the repository that both "  # noqa: UP045
                                                       "sides import from (default: kernels); repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="With --against: folder that holds the runs.")] = Path("results"),
    name: Annotated[str, typer.Option(help="With --against: name of the session's folder.")] = "",
    allow_dirty: Annotated[bool, typer.Option("--allow-dirty", help="With --against: judge uncommitted changes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown that fits a pull-request comment.")] = False,
    junit: Annotated[Optional[Path], typer.Option("--junit", help="Also write JUnit XML to this file.")] = None,  # noqa: UP045
) -> None:  # fmt: skip
    """Fail where a run regressed against a baseline: one line a regression, with its cause.

    Exit codes: 0 nothing regressed, 1 a case is slower or no longer timed, 2 bad input, 3 not comparable, or nothing
    could be decided.

    Example: gsbench gate results/new --baseline results/baselines/h200/backward --tolerance 3% --anchor bottleneck/torch

    Example: gsbench gate --against main --suite backward
    """
    if as_json and markdown:
        raise UserError("--json and --markdown: choose one")
    allowed = parse_tolerance(tolerance)
    if reference and (run is not None or baseline is not None or anchor):
        raise UserError("--against measures both sides itself: leave out RUN, --baseline and --anchor")
    if not reference and (run is None or baseline is None):
        raise UserError("gate takes RUN --baseline BASE, or --against COMMIT --suite NAME")

    from gsbench import gate as gating
    from gsbench.policy import load

    policy = load(allowed, tolerances, quarantine)
    if reference:
        from gsbench.cli.against import Request, interruptible

        request = Request(
            reference, suite, set_ or [], only or [], device, replicates, path or [Path("kernels")], out, name, allow_dirty
        )
        show(interruptible(request, policy), as_json, markdown, junit)
        return
    assert run is not None
    assert baseline is not None
    show(gating.gate(run, baseline, policy, anchor=anchor, partial=partial), as_json, markdown, junit)


def parse_tolerance(text: str) -> float:
    try:
        return parse_share(text)
    except ValueError as e:
        raise UserError(f"--tolerance {text!r}: {e}") from None


def show(found: Gated, as_json: bool, markdown: bool, junit: Path | None) -> None:
    """Print the outcome and exit with its code."""
    from gsbench.report import gates

    if junit is not None:
        junit.write_text(gates.to_junit(found), encoding="utf-8")
    if as_json:
        typer.echo(gates.to_json(found))
    elif markdown:
        typer.echo(gates.to_markdown(found), nl=False)
    else:
        _print(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _print(found: Gated) -> None:
    from gsbench.report import gates

    styles = {"Undecided": "yellow", "Regressions": "bold red", "Would be regressions in a valid run": "yellow"}
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, PIPED_WIDTH), soft_wrap=True)
    for title, lines in gates.sections(found):
        console.print(Text(f"{title}: {len(lines)}", style="bold"))
        for line in lines:
            console.print(Text(f"  {_visible(line)}", style=styles.get(title, "")))
    console.print(Text(_visible(gates.outcome(found)), style="bold"))


def _visible(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in text)
