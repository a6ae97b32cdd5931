"""gsbench data: make data sets ready, and look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from gsbench.errors import UserError

app = typer.Typer(help="Prepare data sets, and look at them.", no_args_is_help=True)


@app.command("wordnet")
def wordnet(
    dict_: Annotated[Optional[Path], typer.Option("--dict", help="WordNet 3.0's dict folder.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("data/wordnet"),
) -> None:
    """Words from definitions: 141,000 labels of real text, from WordNet 3.0's files.

    [bold]Example:[/] apt-get install wordnet-base && gsbench data wordnet --out data/wordnet
    """
    from gsbench.train.data import wordnet as words

    words.prepare(dict_ or words.FOLDER, out)
    _print_stats(out, False)


@app.command("synthetic")
def synthetic(
    labels: Annotated[int, typer.Option(help="Number of labels, up to 10^7.")] = 20_000,
    documents: Annotated[Optional[int], typer.Option(help="Training documents (default: 2 a label).")] = None,  # noqa: UP045
    features: Annotated[Optional[int], typer.Option(help="Features (default: one a label, 2^20 at most).")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Another seed, another data set.")] = 0,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="Folder to write (default: data/synthetic-L).")] = None,  # noqa: UP045
) -> None:
    """A long-tailed data set of any size: Zipf frequencies, labels in clusters that share words.

    [bold]Example:[/] gsbench data synthetic --labels 1000000
    """
    from gsbench.train.data import synthetic as generator

    out = out or Path(f"data/synthetic-{labels}")
    generator.prepare(out, labels, documents=documents, features=features, seed=seed)
    _print_stats(out, False)


@app.command("stats")
def stats(
    folder: Annotated[Path, typer.Argument(help="A folder in any known format.")],
    format_: Annotated[str, typer.Option("--format", help="auto, prepared, xmc, pair or raw.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Count a data set: documents, labels, the long tail, empty rows. Reads it once if it is not prepared yet.

    [bold]Example:[/] gsbench data stats data/wordnet
    """
    _print_stats(folder, as_json, format_)


def _print_stats(folder: Path, as_json: bool, format_: str = "auto") -> None:
    from gsbench.train.data.dataset import statistics
    from gsbench.train.data.sources import FORMATS, load

    if format_ not in FORMATS:
        raise UserError(f"--format {format_!r}: allowed are {', '.join(FORMATS)}")
    data = load(folder, format_)
    found = statistics(data)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{data.folder}")
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {n:,}" for name, n in value.items())
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:,}"
        print(f"  {key.replace('_', ' '):<36}{value}")
