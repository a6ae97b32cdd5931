"""gsbench evaluate and gsbench predict: what a trained model is worth, and what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from gsbench.errors import UserError

Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint, or a run (its best one).")]
DataFolder = Annotated[Optional[Path], typer.Option("--data", help="The data set, if it has moved.")]  # noqa: UP045
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def evaluate(
    checkpoint: Checkpoint,
    data: DataFolder = None,
    device: Device = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Documents at once.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """P@k, nDCG@k, R@k, PSP@k and PSnDCG@k on the test documents, and what head, torso and tail labels give.

    [bold]Example:[/] gsbench evaluate runs/wordnet --json
    """
    import numpy as np

    from gsbench.train.evaluate import evaluate as measured
    from gsbench.train.evaluate import open_trained
    from gsbench.train.loop import pick_device

    trained = open_trained(checkpoint, data, pick_device(device))
    test, settings = trained.data.test, trained.settings
    found = measured(trained.model, trained.data, test, np.arange(test.rows), batch=batch, ks=(1, 3, 5, 10),
                     precision=settings.training.precision, propensity=settings.data.propensity)  # fmt: skip
    if as_json:
        print(json.dumps({"update": trained.state["update"], "documents": test.rows, "metrics": found}, indent=1))
        return
    print(f"{settings.name}, update {trained.state['update']}: {test.rows:,} test documents")
    for name in ("P", "nDCG", "R", "PSP", "PSnDCG"):
        print(f"  {name:<8}" + "".join(f"@{k} {found[f'{name}@{k}']:6.2f}   " for k in (1, 3, 5, 10)))
    for bucket in ("head", "torso", "tail"):
        print(f"  P {bucket:<6}" + "".join(f"@{k} {found[f'P@{k}/{bucket}']:6.2f}   " for k in (1, 3, 5, 10)))


def predict(
    checkpoint: Checkpoint,
    input_: Annotated[str, typer.Option("--input", help="A file, or - for standard input: a document a line.")] = "-",
    k: Annotated[int, typer.Option("-k", min=1, help="Labels of each document.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Documents at once.")] = 64,
    features: Annotated[bool, typer.Option("--features", help="Lines are 'feature:value ...', not text.")] = False,
    data: DataFolder = None,
    device: Device = "auto",
) -> None:
    """The best labels of texts (or of rows of features): a line of JSON for each line of input, as it comes.

    [bold]Example:[/] echo "a stringed instrument" | gsbench predict runs/wordnet --input -
    """
    from gsbench.train.evaluate import open_trained
    from gsbench.train.loop import pick_device
    from gsbench.train.predict import Predictor

    predictor = Predictor(open_trained(checkpoint, data, pick_device(device)), features=features)
    for answer in predictor.answers(_lines(input_), k=k, batch=batch, source="<stdin>" if input_ == "-" else input_):
        print(json.dumps(answer), flush=True)


def _lines(source: str) -> Iterator[str]:
    if source == "-":
        yield from sys.stdin
        return
    file = Path(source)
    if not file.is_file():
        raise UserError(f"{file}: no such file; --input takes a file, or - for standard input")
    with open(file, encoding="utf-8") as stream:
        yield from _decoded(file, stream)


def _decoded(file: Path, stream: Any) -> Iterator[str]:
    try:
        yield from stream
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: not UTF-8: {e}") from None
