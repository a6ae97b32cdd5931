"""gsbench verify: the correctness gate alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Optional

import typer

from gsbench.errors import EXIT_FAILED, EXIT_NOTHING, UserError

_CPU_DTYPES = ("fp32",)


def verify(
    only: Annotated[Optional[list[str]], typer.Option(help="Implementations to check: a name or glob; repeatable.")] = None,  # noqa: UP045
    dtype: Annotated[Optional[list[str]], typer.Option(help="fp32, fp16, bf16; repeatable.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON a check.")] = False,
) -> None:
    """Check every implementation of this device against the float64 oracle, on awkward shapes; exit 1 if one fails.

    [bold]Example:[/] gsbench verify --only 'group_shared/*'
    """
    from gsbench.cli import device as devices
    from gsbench.implementations import all_implementations
    from gsbench.plan import select
    from gskernels.table import FLOATS

    for name in dtype or []:
        if name not in FLOATS:
            raise UserError(f"--dtype {name!r}: allowed are {', '.join(FLOATS)}")
    chosen = select(all_implementations(), only or [])
    target = devices.resolve(device)

    import torch

    from gsbench.measure.correctness import verify_all

    if target.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no CUDA device here")
    dtypes = dtype or (_CPU_DTYPES if target == "cpu" else FLOATS)
    results = []
    for result in verify_all(torch.device(target), chosen, dtypes):
        results.append(result)
        if as_json:
            print(json.dumps({**asdict(result), "point": str(result.point)}), flush=True)
        elif result.status not in ("passed", "unsupported"):
            print(f"{result.implementation} {result.pass_} {result.point}: {result.status}: {result.detail}", flush=True)
    checked = [r for r in results if r.status != "unsupported"]
    failed = [r for r in checked if r.status != "passed"]
    if not as_json:
        worst = max((r.worst or 0.0 for r in checked), default=0.0)
        print(
            f"{len(checked) - len(failed)} of {len(checked)} checks passed on {target} "
            f"(largest error {worst:.0%} of its bound); {len(results) - len(checked)} unsupported"
        )
    if not checked:
        raise typer.Exit(EXIT_NOTHING)
    if failed:
        raise typer.Exit(EXIT_FAILED)
