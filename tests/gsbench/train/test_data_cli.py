"""gsbench data: what a person sees."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from gsbench.cli import app
from gsbench.errors import UserError

SLICE = str(Path(__file__).parent / "wordnet")


def test_wordnet_and_stats(tmp_path: Path) -> None:
    out = str(tmp_path / "words")
    made = CliRunner().invoke(app, ["data", "wordnet", "--dict", SLICE, "--out", out])
    assert made.exit_code == 0
    assert "labels a document" in made.output
    told = CliRunner().invoke(app, ["data", "stats", out, "--json"])
    assert json.loads(told.output)["name"] == "wordnet"


def test_synthetic(tmp_path: Path) -> None:
    options = ["--labels", "500", "--documents", "300", "--out", str(tmp_path / "s")]
    made = CliRunner().invoke(app, ["data", "synthetic", *options])
    assert made.exit_code == 0
    assert "300" in made.output


def test_errors(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(app, ["data", "stats", str(tmp_path), "--format", "csv"])
    assert isinstance(wrong.exception, UserError)
    assert str(wrong.exception) == "--format 'csv': allowed are auto, prepared, xmc, pair, raw"
