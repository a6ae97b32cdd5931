"""The command line. Each verb is one thin file; what is heavy is imported inside the verb that needs it.

Exit codes: 0 fine, 1 failed verification or something slower, 2 usage or bad input, 3 nothing measured or not
comparable, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from gsbench.cli import (
    advise,
    baseline,
    compare,
    data,
    doctor,
    evaluate,
    exchange,
    gate,
    list_,
    profile,
    regenerate,
    report,
    run,
    selftest,
    show,
    train,
    trend,
    tune,
    verify,
)
from gsbench.errors import EXIT_USAGE, UserError

app = typer.Typer(
    name="gsbench",
    help="Does sparsity in a very large output layer buy wall-clock time? Measure it, and see.",
    epilog="Exit codes: 0 fine, 1 failed verification or slower, 2 bad input, 3 nothing measured, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("regenerate")(regenerate.regenerate)
app.command("profile")(profile.profile)
app.command("advise")(advise.advise)
app.command("show")(show.show)
app.command("compare")(compare.compare)
app.command("gate")(gate.gate)
app.command("selftest")(selftest.selftest)
app.command("trend")(trend.trend)
app.command("export")(exchange.export)
app.command("import")(exchange.import_)
app.add_typer(baseline.app, name="baseline")
app.command("list")(list_.list_)
app.command("verify")(verify.verify)
app.command("tune")(tune.tune)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(evaluate.predict)


def main() -> None:
    try:
        app()
    except UserError as e:
        print(f"gsbench: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:  # the reader of our output went away
        sys.exit(0)
    except OSError as e:
        if e.filename is None:
            raise
        print(f"gsbench: {e.filename}: {e.strerror}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
