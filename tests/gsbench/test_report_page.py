"""The files of a report: what the page and the Markdown hold, the exports, and every odd kind of run."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gsbench import report
from gsbench.cli import app
from gsbench.errors import UserError
from gsbench.frame import COLUMNS
from gsbench.profile import store
from gsbench.profile.model import Breakdown, Bytes, KernelTime, Profile
from gsbench.report import embed, render
from gsbench.report.agreement import agreement, shared_cases
from gsbench.report.latex import latex
from gsbench.report.markdown import escaped
from gsbench.store import read_run
from tests.gsbench import synthetic as s

GROUP, FAN, CSR, BOTTLENECK = "group_shared/triton", "fixed_fan_in/triton", "fixed_fan_in/csr", "bottleneck/torch"
ASSETS = Path(report.__file__).parent / "assets"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = s.write(tmp_path_factory.mktemp("runs") / "one", s.sweep())
    s.write_samples(folder, s.sweep())
    return folder


@pytest.fixture(scope="module")
def rendered(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rendered")
    render(run, out)
    return out


class Page(HTMLParser):
    """Everything a browser would fetch, every element, the words, and the data."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.data: dict[str, Any] = {}
        self._script = ""
        self.source = file.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self._script = (dict(attrs).get("type") or "code") if tag == "script" else tag if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script == "application/json":
            self.data = json.loads(data)
        elif not self._script:
            self.words += data


def page_of(folder: Path) -> Page:
    return Page(folder / "index.html")


class TestPage:
    def test_it_asks_nothing_of_the_network_or_of_other_files(self, rendered: Path) -> None:
        page = page_of(rendered)
        assert all(link.startswith(("data:", "#")) for link in page.fetched)
        assert page.tags.count("script") == 3
        assert not re.search(r"url\(|@import", (ASSETS / "report.css").read_text())
        assert not re.search(r"https?://(?!www\.w3\.org/)", "".join(file.read_text() for file in ASSETS.glob("[!p]*.js")))

    def test_plotly_is_a_partial_bundle_with_its_licence(self) -> None:
        start = (ASSETS / "plotly-basic.min.js").read_text()[:200]
        assert "plotly.js (basic - minified)" in start
        assert "Licensed under the MIT license" in start
        assert "Permission is hereby granted" in (ASSETS / "plotly-LICENSE").read_text()

    def test_it_follows_the_reader_s_colour_scheme_and_prints(self, rendered: Path) -> None:
        page = page_of(rendered).source
        for words in ("prefers-color-scheme: dark", "@media print", 'name="viewport"', "beforeprint"):
            assert words in page

    def test_the_sections_are_in_the_order_of_the_questions(self, rendered: Path) -> None:
        words = page_of(rendered).words
        marks = [
            "Of 4 comparisons", "speed over the best fixed_fan_in, by batch size B",
            "The fastest implementation over two axes", "roofline", "memory of one call, default",
            "time of one call, by batch size B", "Energy is not recorded here",
            "Strip: the raw samples", "Made-up GPU", "CUDA out of memory",
            "gsbench run --suite made_up --set labels=131072,524288",
        ]  # fmt: skip
        positions = [words.index(mark, words.index("Of 4 comparisons")) for mark in marks]
        assert positions == sorted(positions)

    def test_the_data_holds_every_record_and_its_samples(self, rendered: Path) -> None:
        data = page_of(rendered).data
        cases = data["cases"]
        assert len(cases["id"]) == 20
        row = next(i for i, code in enumerate(cases["implementation"]["at"]) if cases["implementation"]["of"][code] == GROUP)
        assert (cases["median_ms"][row], cases["batch"][row], cases["roof_share"][row]) == (1.0, 256, 0.05)
        assert data["samples"]["of"][row] == [0.99, 1.009, 20]
        assert set(data["styles"]) == {GROUP, FAN, CSR, BOTTLENECK, "dense/torch"}

    def test_two_renders_are_the_same_bytes(self, rendered: Path, run: Path, tmp_path: Path) -> None:
        for file in render(run, tmp_path):
            assert file.read_bytes() == (rendered / file.name).read_bytes(), file.name

    def test_hostile_texts_stay_texts(self, tmp_path: Path) -> None:
        evil = "</script><script>alert(1)</script>|`$x$`"
        records = [
            s.timed(f"{evil}/a", 1.0, validity=(evil,)), s.timed("_hidden/b", 2.0),
            s.failed(f"dense/{evil}", "error", evil),
        ]  # fmt: skip
        suite = {"name": evil, "title": evil}
        folder = s.write(tmp_path / "run", records, run=f"../../{evil}", suite=suite, command=["gsbench", evil, "```"])
        out = tmp_path / "deep" / "out"
        files = render(folder, out, out / "figures")
        assert all(out in file.resolve().parents for file in files)
        assert all(re.fullmatch(r"[a-z0-9_.-]+", file.name) for file in files)
        page = page_of(out)
        assert page.tags.count("script") == 3
        assert page.data["cases"]["flags"]["of"][0] == evil
        prose, fenced = (out / "report.md").read_text().split("````sh\n")
        assert "<script>" not in prose
        assert "```" in fenced

    def test_markdown_escapes_what_would_be_markup(self) -> None:
        assert escaped("a|b <i> *c* `d` [e](f) group_shared/triton _g_\nh") == (
            r"a\|b &lt;i&gt; \*c\* \`d\` \[e\](f) group_shared/triton \_g\_ h"
        )


class TestExports:
    def test_markdown_for_a_pull_request_fits_a_comment(self, run: Path) -> None:
        text = CliRunner().invoke(app, ["report", str(run), "--markdown"]).stdout
        assert text.startswith("# Made-up sweep")
        assert "Of 4 comparisons" in text
        assert "figures" not in text
        assert len(text) < 65_536

    def test_csv_has_the_columns_of_load_and_a_row_a_case(self, run: Path) -> None:
        rows = list(csv.DictReader(io.StringIO(CliRunner().invoke(app, ["report", str(run), "--csv"]).stdout)))
        assert list(rows[0]) == [column.name for column in COLUMNS]
        assert len(rows) == 20
        assert float(rows[0]["median_ms"]) == 1.0

    def test_latex_escapes_its_texts_and_closes_what_it_opens(self, tmp_path: Path) -> None:
        records = [s.timed(GROUP, 1.0), s.timed(FAN, 2.0), s.timed("dense/50%_{x}\\", 3.0)]
        text = latex(report.read(s.write(tmp_path / "run", records)))
        assert r"group\_shared/triton" in text
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
        assert all(line.endswith(r"\\") for line in text.splitlines() if " & " in line)
        text = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--latex"]).stdout
        assert r"2.00$\times$ [" in text

    def test_two_texts_at_once_are_refused(self, run: Path) -> None:
        result = CliRunner().invoke(app, ["report", str(run), "--csv", "--latex"])
        assert isinstance(result.exception, UserError)
        assert str(result.exception).startswith("--csv prints one text")

    def test_nothing_heavy_is_loaded_for_a_page(self, run: Path, tmp_path: Path) -> None:
        code = (
            "import sys; from gsbench.cli import app; app(sys.argv[1:], standalone_mode=False);"
            "sys.exit(', '.join({'torch', 'matplotlib', 'scipy'} & set(sys.modules)) or 0)"
        )
        command = [sys.executable, "-c", code, "report", str(run), "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


class TestOddRuns:
    def words(self, folder: Path, *records: Any, **manifest: Any) -> str:
        files = render(s.write(folder / "run", records, **manifest), folder / "out")
        assert [file.name for file in files] == ["index.html", "report.md"]
        return page_of(folder / "out").words

    def test_an_empty_run(self, tmp_path: Path) -> None:
        words = self.words(tmp_path)
        assert "holds no records" in words
        assert "No case is recorded." in words
        assert "holds no records" in (tmp_path / "out" / "report.md").read_text()

    def test_failures_only(self, tmp_path: Path) -> None:
        words = self.words(tmp_path, s.failed(GROUP, "oom", "no memory"), s.failed(FAN, "crashed", "signal 11"))
        for said in ("No case of this run was timed", "no memory", "signal 11", "there is no speed to compare"):
            assert said in words

    def test_a_single_case(self, tmp_path: Path) -> None:
        words = self.words(tmp_path, s.timed(GROUP, 1.0))
        for said in ("no winner can be named", "bottleneck/torch was not measured", "No axis varies", "time of one call"):
            assert said in words

    def test_a_manifest_with_nothing_but_its_version(self, tmp_path: Path) -> None:
        folder = s.write(tmp_path / "run", [s.timed(GROUP, 1.0), s.timed(FAN, 2.0)])
        (folder / "manifest.json").write_text('{"schema": 1}')
        words = Page(render(folder, tmp_path / "out")[0]).words
        assert "does not record its command" in words
        assert "The ceilings of the device were not measured" in words

    def test_scaled_for_cpu_is_said_first(self, tmp_path: Path) -> None:
        words = self.words(tmp_path, s.timed(GROUP, 1.0), scaled_for_cpu=True)
        assert words.index("say nothing of a GPU") < words.index("No two implementations")

    def test_a_later_record_of_a_case_counts(self, tmp_path: Path) -> None:
        words = self.words(tmp_path, s.timed(GROUP, 9.0), s.timed(FAN, 2.0), s.timed(GROUP, 1.0))
        assert "is 2.00× as fast as the best fixed_fan_in" in words

    def test_a_missing_and_a_broken_file_of_samples(self, tmp_path: Path) -> None:
        assert "run: no raw samples beside the records" in self.words(tmp_path, s.timed(GROUP, 1.0))
        (tmp_path / "run" / "samples.parquet").write_text("not parquet")
        words = Page(render(tmp_path / "run", tmp_path / "out")[0]).words
        assert "samples.parquet: cannot be read" in words
        assert "its samples are not drawn" in words

    def test_a_run_that_is_being_written(self, tmp_path: Path) -> None:
        records = [s.timed(GROUP, 1.0), s.timed(FAN, 2.0)]
        folder = s.write(tmp_path / "run", records)
        s.write_samples(folder, records, live=True)
        for name in ("records.jsonl", "samples.jsonl"):
            with open(folder / name, "a") as stream:
                stream.write('{"key": "half a li')
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            page = Page(render(folder, tmp_path / "out")[0])
        assert "This run is being written now: 2 records so far." in page.words
        assert [samples[2] for samples in page.data["samples"]["of"]] == [20, 20]
        assert "being written" not in Page(render(folder, tmp_path / "out")[0]).words

    def test_mixed_schema_versions_load_and_are_said_and_a_newer_one_is_refused(self, tmp_path: Path) -> None:
        words = self.words(tmp_path, s.timed(GROUP, 1.0, schema=1), s.timed(FAN, 2.0, schema=2))
        assert "2, record schema 1 and 2" in words
        file = tmp_path / "run" / "records.jsonl"
        file.write_text(file.read_text().replace('"schema": 2', '"schema": 99'))
        with pytest.raises(UserError, match=r"records.jsonl:2: record schema 99 is newer .* upgrade gsbench"):
            render(tmp_path / "run", tmp_path / "out")

    def test_more_cases_than_a_page_holds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embed, "MOST_CASES", 60)
        page = Page(render(s.write(tmp_path / "run", s.grid(1000)), tmp_path / "out")[0])
        assert "This page holds 60 of 1,000 cases" in page.words
        there = set(page.data["cases"]["id"])
        curves = [view for view in page.data["views"] if view["kind"] == "curves"]
        drawn = {point[4] for view in curves for one in view["series"] for point in one["points"]}
        assert len(there) == 60
        assert there <= drawn or drawn <= there  # those that are drawn come first

    def test_many_samples_are_thinned_with_a_notice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embed, "SAMPLE_BYTES", 10)
        monkeypatch.setattr(embed, "FEWEST_SAMPLES", 10)
        folder = s.write(tmp_path / "run", [s.timed(GROUP, 1.0)])
        s.write_samples(folder, [s.timed(GROUP, 1.0)])
        page = Page(render(folder, tmp_path / "out")[0])
        assert "Of 1 cases with many samples every n-th one is drawn, 10 at most." in page.words
        assert page.data["samples"]["of"] == [[0.99, 1.009, 20]]

    def test_profiles_beside_a_run_are_shown_as_text(self, tmp_path: Path) -> None:
        folder = s.write(tmp_path / "run", [s.timed(GROUP, 1.0)])
        (folder / "profiles").mkdir()
        kernel = KernelTime("<script>", 1, 9.0)
        breakdown = Breakdown("cuda", 3, 10.0, 9.0, 1.0, 5.0, 0.5, (kernel,))
        case = s.timed(GROUP, 1.0).case
        profile = Profile(
            case.key, case.to_dict(), "", "Made-up GPU", {}, (), 1, 1, 1, 0.5, breakdown=breakdown,
            bytes=Bytes(10e6, 1e6, 9e6, 1e6, 1), verdict=("memory-bound",), missing={"timeline": "no NVML"},
        )  # fmt: skip
        store.write(folder, profile)
        (folder / "profiles" / "z.json").write_text("[")
        page = Page(render(folder, tmp_path / "out")[0])
        for words in ("memory-bound", "0.5 ms, cold", "<script>", "no timeline: no NVML", "1.1", "z.json", "not a profile"):
            assert words in page.words
        assert page.tags.count("script") == 3

    def test_bad_input_and_output_are_user_errors(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nowhere"):
            render(tmp_path / "nowhere", tmp_path / "out")
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write the report here"):
            render(run, tmp_path / "file")


class TestSeveralRuns:
    def write_two(self, folder: Path, **second: object) -> Path:
        s.write(folder / "a", [s.timed(GROUP, 1.0), s.timed(FAN, 2.0), s.timed(CSR, 5.0)])
        records = [s.timed(GROUP, 1.5), s.timed(FAN, 2.0), s.timed(CSR, 5.0, method="cuda_graph")]
        s.write(folder / "b", records, **second)
        return folder

    def test_one_answer_for_a_device_and_a_heading_for_each_run(self, tmp_path: Path) -> None:
        words = Page(render(self.write_two(tmp_path / "runs"), tmp_path / "out")[0]).words
        assert "2 runs on Made-up GPU" in words
        assert "Of 2 comparisons (1 pass, 1 point), the fastest is group_shared/triton in 2" in words
        for heading in ("a: forward", "b: forward, cold, cuda_events, cuda", "b: forward, cold, cuda_graph, cuda"):
            assert heading in words
        assert "Agreement between runs" in words

    def test_mixed_devices_have_an_answer_each_and_are_not_set_side_by_side(self, tmp_path: Path) -> None:
        folder = self.write_two(tmp_path / "runs", device={"type": "cuda", "name": "Another GPU"})
        words = Page(render(folder, tmp_path / "out")[0]).words
        assert "2 runs on Made-up GPU and Another GPU" in words
        assert words.count("Of 1 comparison (1 pass, 1 point)") == 2
        assert agreement([read_run(folder / "a"), read_run(folder / "b")]) == []

    def test_two_runs_of_one_name_are_told_apart_by_their_folders(self, tmp_path: Path) -> None:
        for place in ("one", "two"):
            s.write(tmp_path / place / "same", [s.timed(GROUP, 1.0), s.timed(FAN, 2.0)])
        words = Page(render([tmp_path / "one", tmp_path / "two"], tmp_path / "out")[0]).words
        assert "same (one/same): forward" in words

    def test_cases_are_paired_by_method_and_the_largest_disagreement_leads(self, tmp_path: Path) -> None:
        folder = self.write_two(tmp_path)
        runs = [read_run(folder / "a"), read_run(folder / "b")]
        pairs = shared_cases(*runs)
        assert [p.first.case.implementation for p in pairs] == [GROUP, FAN]
        assert pairs[0].ratio.value == pytest.approx(1.5)
        summary, worst = agreement(runs)
        assert [cell.text for cell in summary.rows[0]] == ["a", "b", "2", "1.22×", "1.50×", "1", "same"]
        assert [row[-1].strong for row in worst.rows] == [True, False]

    def test_a_warning_is_said_once_with_the_runs_that_it_holds_for(self, tmp_path: Path) -> None:
        for name, flags in (("a", ["shared card"]), ("b", ["shared card", "no NVML"])):
            s.write(tmp_path / "runs" / name, [s.timed(GROUP, 1.0)], validity=flags)
        assert report.read(tmp_path / "runs").warnings() == ["shared card", "b: no NVML"]
