"""Committed reports against committed records: what differs is named, and --write mends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gsbench import selfruns
from gsbench.cli import app
from gsbench.errors import UserError
from gsbench.report import regenerate
from tests.gsbench import synthetic as s

GROUP, FAN, BOTTLENECK = "group_shared/triton", "fixed_fan_in/triton", "bottleneck/torch"
FIGURES = [f"forward-{name}.png" for name in ("batch-ratio", "batch-speedup", "batch-time", "winners")]
README = """# Made up

![winners](reports/card/figures/forward-winners.png)

<!-- gsbench answer results/baselines/card -->
typed by hand
<!-- end -->
<!-- gsbench bytes results/baselines/card -->
<!-- end -->
"""


def records(ms: float = 1.0) -> list[s.Record]:
    times = ((GROUP, ms), (FAN, 2.0), (BOTTLENECK, 3.0))
    return [s.timed(name, time, s.point(batch=batch)) for batch in (1, 16) for name, time in times]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    s.write(root / "results" / "baselines" / "card" / "one", records())
    (root / "README.md").write_text(README)
    regenerate.write(root)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A checkout of its own, in which everything is as the records say."""
    return Path(shutil.copytree(written, tmp_path / "checkout"))


def names(stale: list[regenerate.Stale]) -> list[str]:
    return [f"{item.file}: {item.why}" for item in stale]


def test_what_was_written_is_what_the_records_give(root: Path) -> None:
    assert regenerate.check(root) == []
    assert "fastest is group_shared/triton in 2" in (root / "README.md").read_text()
    assert "| implementation | pass | point | modelled read MB |" in (root / "README.md").read_text()
    figures = sorted(file.name for file in (root / "reports" / "card" / "figures").iterdir())
    assert figures == ["drawn.json", *FIGURES]


def test_other_records_make_texts_and_figures_stale_until_written_again(root: Path) -> None:
    run = root / "results" / "baselines" / "card" / "one"
    (run / "records.jsonl").write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records(0.5)))
    stale = {item.file.name for item in regenerate.check(root)}
    assert stale == {"README.md", "index.html", "report.md", *FIGURES}
    regenerate.write(root)
    assert regenerate.check(root) == []


def test_a_self_test_is_a_page_a_figure_and_a_line(root: Path) -> None:
    random = np.random.default_rng(3)
    folder = root / "results" / "baselines" / "card" / "selftest"
    for side in ("a", "b"):
        for process in range(5):
            s.write(folder / "01" / side / f"{process:02}", [s.timed(GROUP, float(np.exp(random.normal(0, 0.002))))])
    selfruns.write(folder)
    shutil.rmtree(folder / "01")
    text = (root / "README.md").read_text()
    (root / "README.md").write_text(text + "<!-- gsbench selftest results/baselines/card -->\nsaid\n<!-- end -->\n")
    assert {item.file.name for item in regenerate.check(root)} == {"README.md", "selftest.md", "selftest.png"}
    regenerate.write(root)
    assert regenerate.check(root) == []
    assert "false alarms 0.0% (0 of 1 A/A comparisons at 3% tolerance" in (root / "README.md").read_text()
    page = root / "reports" / "card" / "selftest.md"
    assert "](figures/selftest.png)" in page.read_text()
    page.write_text("none at all")
    assert [item.file.name for item in regenerate.check(root)] == ["selftest.md"]


def test_a_line_of_a_self_test_that_was_never_made(root: Path) -> None:
    (root / "README.md").write_text("<!-- gsbench selftest results/baselines/card -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=r"no selftest/runs\.json there"):
        regenerate.check(root)


def test_hand_edits_strangers_and_lost_files_are_named(root: Path) -> None:
    folder = Path("reports") / "card"
    (root / "README.md").write_text((root / "README.md").read_text().replace("in 2", "in 3"))
    (root / folder / "report.md").write_text("better")
    (root / folder / "figures" / "forward-winners.png").write_bytes(b"painted")
    (root / folder / "figures" / "forward-batch-time.png").unlink()
    (root / folder / "figures" / "old.png").write_bytes(b"")
    assert names(regenerate.check(root)) == [
        f"{folder}/report.md: differs from what the records give",
        "README.md: differs from what the records give",
        f"{folder}/figures/forward-batch-time.png: missing",
        f"{folder}/figures/forward-winners.png: is not the file that gsbench wrote",
        f"{folder}/figures/old.png: belongs to no report",
    ]


def test_a_picture_that_no_report_has_is_named(root: Path) -> None:
    (root / "docs").mkdir()
    (root / "docs" / "page.md").write_text("![x](../reports/card/figures/gone.png)")
    assert names(regenerate.check(root)) == ["docs/page.md: shows reports/card/figures/gone.png, which no report has"]


def test_the_command_lists_them_and_fails_and_mends_with_write(root: Path) -> None:
    (root / "reports" / "card" / "report.md").write_text("better")
    result = CliRunner().invoke(app, ["regenerate", "--root", str(root)])
    assert result.exit_code == 1
    assert result.stdout == "reports/card/report.md: differs from what the records give\n"
    assert "1 files differ; gsbench regenerate --write makes them again" in result.stderr
    result = CliRunner().invoke(app, ["regenerate", "--root", str(root), "--write"])
    assert result.stdout.startswith("wrote again reports/card/report.md")
    result = CliRunner().invoke(app, ["regenerate", "--root", str(root)])
    assert (result.exit_code, result.stdout) == (0, "Every committed report is what the records give.\n")


def test_bad_input_is_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded runs here; --root names the root of a checkout"):
        regenerate.check(tmp_path / "nowhere")
    (root / "README.md").write_text("<!-- gsbench answer results/baselines/other -->\n<!-- end -->")
    with pytest.raises(UserError, match=r"README.md: gsbench answer .*/other: not one of results/baselines/card"):
        regenerate.check(root)
