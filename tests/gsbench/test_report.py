from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gsbench.errors import UserError
from gsbench.record import Record
from gsbench.report import render
from gsbench.report.agreement import agreement, shared_cases
from gsbench.report.answer import answers
from gsbench.report.canvas import log_ticks
from gsbench.report.page import escaped
from gsbench.report.palette import palette
from gsbench.report.ratios import Comparison, compare
from gsbench.report.sweeps import Naming, along, declared_default, default_point, suite_names, varying
from gsbench.report.tables import NOT_INTERLEAVED, flags, losses, ratio_tables
from gsbench.store import read_run
from gskernels.table import IMPLEMENTATIONS
from tests.gsbench import synthetic as s

GROUP, FAN, CSR, BOTTLENECK = "group_shared/triton", "fixed_fan_in/triton", "fixed_fan_in/csr", "bottleneck/torch"


def one(*records: Record) -> Comparison:
    (comparison,) = compare(records)
    return comparison


def sweep() -> list[Record]:
    """Sharing wins at B=256, loses to both at B=1, loses to the bottleneck alone at B=16, and ties with it at B=64."""
    milliseconds = {256: (1.0, 4.0, 2.0), 1: (0.5, 0.25, 0.1), 16: (0.5, 1.0, 0.4), 64: (0.5, 1.0, 0.501)}
    records = []
    for batch, (group, fan, bottleneck) in milliseconds.items():
        at = s.point(batch=batch)
        common: dict[str, Any] = {"peak_extra_bytes": batch * 2**20, "modelled_extra_bytes": batch * 2**19, "floor_ms": 0.05}
        records += [
            s.timed(GROUP, group, at, roof_share=0.05 / group, **common), s.timed(FAN, fan, at, **common),
            s.timed(CSR, fan * 8, at), s.timed(BOTTLENECK, bottleneck, at),
            s.failed("dense/torch", "oom", "CUDA out of memory", at),
        ]  # fmt: skip
    return records


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return s.write(tmp_path / "runs" / "one", sweep())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    render(s.write(folder / "run", sweep()), folder / "out")
    return folder / "out"


class TestRatios:
    def test_speedup_is_over_the_best_fixed_fan_in_and_intervals_combine_conservatively(self) -> None:
        c = one(s.timed(GROUP, 1.0, spread=0.1), s.timed(FAN, 3.0, spread=0.2), s.timed(CSR, 9.0))
        ratio = c.speedup(GROUP)
        assert ratio is not None
        assert ratio.value == pytest.approx(3.0)
        assert [ratio.low, ratio.high] == pytest.approx([2.4 / 1.1, 3.6 / 0.9])
        slow = c.speedup(CSR)
        assert slow is not None
        assert slow.value == pytest.approx(1 / 3)

    def test_time_over_the_bottleneck(self) -> None:
        ratio = one(s.timed(GROUP, 1.0), s.timed(BOTTLENECK, 4.0)).to_anchor(GROUP)
        assert ratio is not None
        assert ratio.value == pytest.approx(0.25)

    def test_a_missing_reference_gives_no_ratio_and_its_reason(self) -> None:
        c = one(s.timed(GROUP, 1.0), s.failed(FAN, "oom", "no memory"))
        assert (c.speedup(GROUP), c.to_anchor(GROUP)) == (None, None)
        assert c.why_untimed("fixed_fan_in") == "fixed_fan_in/triton: oom (no memory)"
        assert c.why_untimed(BOTTLENECK) == "bottleneck/torch was not measured"

    @pytest.mark.parametrize(
        "other", [{"mode": "hot"}, {"method": "cuda_graph"}, {"pass_": "backward"}, {"where": s.point(batch=1)}]
    )
    def test_never_across_modes_methods_passes_or_points(self, other: dict[str, Any]) -> None:
        found = compare([s.timed(GROUP, 1.0), s.timed(BOTTLENECK, 4.0, **other)])
        assert [len(c.timed) for c in found] == [1, 1]
        assert not any(c.to_anchor(GROUP) for c in found)

    def test_overlapping_intervals_are_a_tie_and_others_are_not(self) -> None:
        near = one(s.timed(GROUP, 1.00, spread=0.01), s.timed(FAN, 1.01, spread=0.01), s.timed(CSR, 3.0))
        assert (near.winner, near.tied) == (GROUP, {GROUP, FAN})
        apart = one(s.timed(GROUP, 1.00, spread=0.001), s.timed(FAN, 1.01, spread=0.001))
        assert (apart.winner, apart.tied) == (GROUP, set())

    def test_a_ratio_of_different_blocks_is_marked(self) -> None:
        c = one(s.timed(GROUP, 1.0, block="a"), s.timed(FAN, 2.0, block="b"), s.timed(BOTTLENECK, 2.0, block="a"))
        first, second, _ = ratio_tables([c], Naming(s.point()))
        cells = {name: cell.text for name, cell in zip(first.header, first.rows[0], strict=True)}
        assert (cells[GROUP], cells[FAN]) == ("2.00×" + NOT_INTERLEAVED, "1.00×")
        assert NOT_INTERLEAVED not in second.rows[0][second.header.index(GROUP)].text
        assert "not timed in one interleaved block" in first.note


class TestAnswer:
    def test_who_wins_by_how_much_and_where_it_loses(self) -> None:
        (answer,) = answers(compare(sweep()))
        wins, much, losing = answer.sentences
        assert wins == (
            "Of 4 comparisons (1 pass, 4 points), the fastest is bottleneck/torch in 2 and "
            "group_shared/triton in 1; 1 is too close to call."
        )
        assert "1.68× (geometric mean of 4, from 0.50× to 4.00×) as fast as the best fixed_fan_in" in much
        assert "1.33× (geometric mean of 4, from 0.50× to 5.00×; 1 undecided) the time of bottleneck/torch" in much
        assert "to the best fixed_fan_in in 1 of 4 (worst: forward at B=1 D=768 L=131,072" in losing
        assert "0.50× as fast)" in losing
        assert "to bottleneck/torch in 2 of 4 (worst: forward at B=1 D=768" in losing
        assert losing.endswith("5.00× its time; 1 undecided).")

    def test_losing_nowhere_is_said(self) -> None:
        (answer,) = answers(compare([s.timed(GROUP, 1.0), s.timed(FAN, 2.0), s.timed(BOTTLENECK, 3.0)]))
        assert answer.sentences[2] == (
            "group_shared loses to the best fixed_fan_in in none of 1 and to bottleneck/torch in none of 1."
        )

    def test_a_missing_reference_is_said_with_its_reason(self) -> None:
        (answer,) = answers(compare([s.timed(GROUP, 1.0), s.failed(BOTTLENECK, "timeout", "180 s")]))
        assert "not set against fixed_fan_in (fixed_fan_in was not measured)" in answer.sentences[1]
        assert "has no ratio to bottleneck/torch (bottleneck/torch: timeout (180 s))" in answer.sentences[1]
        assert "cannot be said" in answer.sentences[2]

    def test_each_setting_has_its_own_answer(self) -> None:
        records = [s.timed(n, ms, mode=mode) for mode in ("hot", "cold") for n, ms in ((GROUP, 1.0), (FAN, 2.0))]
        assert [a.setting.mode for a in answers(compare(records))] == ["cold", "hot"]

    def test_every_losing_case_is_in_the_table_worst_first(self) -> None:
        table = losses(compare(sweep()), Naming(s.point()))
        batch, over_fan, over_bottleneck = (
            table.header.index(h) for h in ("point", "speed over best fixed_fan_in", "time / bottleneck/torch")
        )
        assert [row[batch].text for row in table.rows] == ["B=1", "B=16"]
        assert [row[over_fan].strong for row in table.rows] == [True, False]
        assert [row[over_bottleneck].text.split()[0] for row in table.rows] == ["5.00×", "1.25×"]


class TestTables:
    def test_the_winner_is_bold_ties_are_named_and_failures_show(self) -> None:
        speed, time, roof = ratio_tables(compare(sweep()), Naming(s.point()))
        rows = {row[0].text: dict(zip(speed.header, row, strict=True)) for row in speed.rows}
        assert [rows["default"][n].text for n in (GROUP, FAN, CSR)] == ["4.00×", "1.00×", "0.12×"]
        assert [name for name, cell in rows["default"].items() if cell.strong] == [GROUP]
        assert [name for name, cell in rows["B=64"].items() if "tie" in cell.text] == [GROUP, BOTTLENECK]
        assert (rows["B=1"]["dense/torch"].text, rows["B=1"]["dense/torch"].hint) == ("oom", "CUDA out of memory")
        assert {row[0].text: row[time.header.index(GROUP)].text for row in time.rows}["B=1"] == "5.00×"
        assert {row[0].text: row[roof.header.index(GROUP)].text for row in roof.rows}["B=1"] == "10.0%"

    def test_more_than_the_roof_is_flagged_as_a_fault(self) -> None:
        records = [s.timed(GROUP, 1.0, roof_share=1.2), s.timed(FAN, 1.0, roof_share=0.9, validity=("power cap",))]
        assert {row[0].text for row in flags(records).rows} == {
            "above 100 % of the roof: a fault of the harness", "power cap",
        }  # fmt: skip
        assert "120.0% !" in {cell.text for cell in ratio_tables(compare(records), Naming(s.point()))[2].rows[0]}


class TestSweeps:
    def test_the_default_point_is_the_declared_one_or_the_centre(self) -> None:
        points = s.star()
        assert default_point(points, {}) == s.point()
        declared = declared_default({"axes": {"batch": [1, 256]}, "patterns": ["uniform"], "dtypes": "broken"})
        assert declared == {"batch": 1, "pattern": "uniform"}
        assert default_point(points, declared) == s.point(batch=1)

    def test_points_are_named_by_the_suite_or_by_what_differs(self) -> None:
        suite = {"points": [{"name": "A3M", "batch": 128, "dim": 768, "labels": 2812281, "fan_in": 128, "group_size": 64}]}
        known = s.point(batch=128, labels=2812281, fan_in=128)
        naming = Naming(s.point(), suite_names(suite))
        assert declared_default(suite) == {"batch": 128, "dim": 768, "labels": 2812281, "fan_in": 128, "group_size": 64}
        assert [naming.of(p) for p in (known, s.point(), s.point(batch=1, pattern="zipf"))] == ["A3M", "default", "B=1 zipf"]
        assert "A3M: B=128 D=768 L=2,812,281 K=128 G=64." in naming.legend
        assert suite_names({"points": [{"name": "half"}, 3], "axes": 7}) == {}

    def test_a_line_differs_in_its_axis_only(self) -> None:
        line = along(compare([s.timed(GROUP, 1.0, p) for p in s.star()]), "batch", s.point())
        assert [c.point.shape.batch for c in line] == [1, 16, 64, 256, 1024]
        assert all(c.point.shape.labels == s.DEFAULT.labels and c.point.pattern == "uniform" for c in line)
        assert varying(s.star()) == ["batch", "labels", "fan_in", "group_size", "pattern"]


class TestFigures:
    def test_each_axis_has_its_three_views_as_png_and_svg(self, rendered: Path) -> None:
        stems = [f"forward-batch-{kind}" for kind in ("ratio", "speedup", "time")] + ["forward-default-memory"]
        assert sorted(f.name for f in (rendered / "figures").iterdir()) == [
            f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")
        ]  # fmt: skip
        for file in (rendered / "figures").glob("*.png"):
            with Image.open(file) as image:
                assert image.info["dpi"][0] == pytest.approx(180, abs=1)
                assert image.width >= 900

    def test_styles_are_distinct_and_do_not_depend_on_what_is_drawn(self) -> None:
        names = [i.name for i in IMPLEMENTATIONS]
        alone, all_of_them = palette([GROUP]), palette([*names, "new/one", "group_shared/future"])
        assert alone[GROUP] == all_of_them[GROUP]
        looks = {(style.color, style.marker, str(style.line)) for style in all_of_them.values()}
        assert len(looks) == len(names) + 2

    @pytest.mark.parametrize(("low", "high"), [(0.95, 1.06), (0.5, 1.1), (0.9, 3), (0.2, 9), (0.01, 80), (1e-4, 1e3)])
    def test_any_span_has_a_readable_number_of_ticks(self, low: float, high: float) -> None:
        ticks = log_ticks(low, high)
        assert 3 <= len(ticks) <= 12
        assert all(low <= tick <= high for tick in ticks)


class Links(HTMLParser):
    """Everything a browser would fetch, and every element and class seen."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


class TestPage:
    def test_it_asks_nothing_of_the_network_or_of_other_files(self, rendered: Path) -> None:
        page = (rendered / "index.html").read_text()
        links = Links()
        links.feed(page)
        assert len([link for link in links.fetched if link.startswith("data:image/png")]) == 4
        assert all(link.startswith(("data:", "#")) for link in links.fetched)
        assert "script" not in links.tags
        assert not re.search(r"url\(|@import", page)

    def test_it_follows_the_reader_s_colour_scheme_and_prints(self, rendered: Path) -> None:
        page = (rendered / "index.html").read_text()
        assert "prefers-color-scheme: dark" in page
        assert "@media print" in page
        assert 'name="viewport"' in page

    def test_html_and_markdown_open_with_the_answer_and_end_with_the_command(self, rendered: Path) -> None:
        for name in ("index.html", "report.md"):
            text = (rendered / name).read_text()
            picture = "forward-batch" if name == "report.md" else "<img"
            command = "gsbench run --suite made_up --set labels=131072,524288"
            marks = ["Of 4 comparisons", "Made-up GPU", picture, "Not timed, and why", command]
            positions = [text.index(mark) for mark in marks]
            assert positions == sorted(positions)
            assert "CUDA out of memory" in text

    def test_two_renders_are_the_same_bytes(self, rendered: Path, run: Path, tmp_path: Path) -> None:
        second = render(s.write(tmp_path / "run", sweep()), tmp_path / "out")
        assert len(second) == 10
        for file in second:
            assert file.read_bytes() == (rendered / file.relative_to(tmp_path / "out")).read_bytes(), file.name

    def test_hostile_texts_stay_texts(self, tmp_path: Path) -> None:
        evil = "<script>alert(1)</script>|`$x$`"
        records = [
            s.timed(f"{evil}/a", 1.0, validity=(evil,)), s.timed("_hidden/b", 2.0),
            s.failed(f"dense/{evil}", "error", evil),
        ]  # fmt: skip
        suite = {"name": evil, "title": evil}
        folder = s.write(tmp_path / "run", records, run=f"../../{evil}", suite=suite, command=["gsbench", evil, "```"])
        out = tmp_path / "deep" / "out"
        files = render(folder, out)
        assert all(out in file.resolve().parents for file in files)
        assert all(re.fullmatch(r"[a-z0-9_.-]+", file.name) for file in files)
        page, text = (out / "index.html").read_text(), (out / "report.md").read_text()
        links = Links()
        links.feed(page)
        assert "script" not in links.tags
        assert page.count("&lt;script&gt;alert(1)") >= 4
        prose, fenced = text.split("````sh\n")
        assert "<script>" not in prose
        assert "```" in fenced

    def test_markdown_escapes_what_would_be_markup(self) -> None:
        assert escaped("a|b <i> *c* `d` [e](f) group_shared/triton _g_\nh") == (
            r"a\|b &lt;i&gt; \*c\* \`d\` \[e\](f) group_shared/triton \_g\_ h"
        )


class TestOddRuns:
    def test_an_empty_run(self, tmp_path: Path) -> None:
        render(s.write(tmp_path / "run", []), tmp_path / "out")
        assert "holds no records" in (tmp_path / "out" / "index.html").read_text()
        assert "holds no records" in (tmp_path / "out" / "report.md").read_text()

    def test_failures_only(self, tmp_path: Path) -> None:
        records = [s.failed(GROUP, "oom", "no memory"), s.failed(FAN, "crashed", "signal 11")]
        files = render(s.write(tmp_path / "run", records), tmp_path / "out")
        page = files[1].read_text()
        assert len(files) == 2
        assert "No case of this run was timed" in page
        assert "no memory" in page
        assert "signal 11" in page

    def test_a_single_case(self, tmp_path: Path) -> None:
        files = render(s.write(tmp_path / "run", [s.timed(GROUP, 1.0)]), tmp_path / "out")
        assert [file.name for file in files[2:]] == ["forward-default-time.png", "forward-default-time.svg"]
        text = files[0].read_text()
        assert "no winner can be named" in text
        assert "bottleneck/torch was not measured" in text

    def test_a_manifest_with_nothing_but_its_version(self, tmp_path: Path) -> None:
        folder = s.write(tmp_path / "run", [s.timed(GROUP, 1.0), s.timed(FAN, 2.0)])
        (folder / "manifest.json").write_text('{"schema": 1}')
        files = render(folder, tmp_path / "out")
        assert "does not record its command" in files[0].read_text()

    def test_scaled_for_cpu_is_said_first(self, tmp_path: Path) -> None:
        render(s.write(tmp_path / "run", [s.timed(GROUP, 1.0)], scaled_for_cpu=True), tmp_path / "out")
        text = (tmp_path / "out" / "report.md").read_text()
        assert text.index("say nothing of a GPU") < text.index("No two implementations")

    def test_a_later_record_of_a_case_counts(self, tmp_path: Path) -> None:
        records = [s.timed(GROUP, 9.0), s.timed(FAN, 2.0), s.timed(GROUP, 1.0)]
        render(s.write(tmp_path / "run", records), tmp_path / "out")
        assert "is 2.00× as fast as the best fixed_fan_in" in (tmp_path / "out" / "report.md").read_text()

    def test_bad_input_and_output_are_user_errors(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nowhere"):
            render(tmp_path / "nowhere", tmp_path / "out")
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write the report here"):
            render(s.write(tmp_path / "bare", []), tmp_path / "file")


class TestSeveralRuns:
    def write_two(self, folder: Path, **second: object) -> Path:
        s.write(folder / "a", [s.timed(GROUP, 1.0), s.timed(FAN, 2.0), s.timed(CSR, 5.0)])
        records = [s.timed(GROUP, 1.5), s.timed(FAN, 2.0), s.timed(CSR, 5.0, method="cuda_graph")]
        s.write(folder / "b", records, **second)
        return folder

    def test_a_section_each_and_an_agreement_table(self, tmp_path: Path) -> None:
        files = render(self.write_two(tmp_path / "runs"), tmp_path / "out")
        page = (tmp_path / "out" / "index.html").read_text()
        assert 'id="a"' in page
        assert 'id="b"' in page
        assert "Agreement between runs" in page
        assert [f.stem for f in files[2::2]] == [
            "a-forward-default-time", "b-cold-cuda_events-cuda-1-forward-default-time",
            "b-cold-cuda_graph-cuda-1-forward-default-time",
        ]  # fmt: skip

    def test_cases_are_paired_by_method_and_the_largest_disagreement_leads(self, tmp_path: Path) -> None:
        folder = self.write_two(tmp_path)
        runs = [read_run(folder / "a"), read_run(folder / "b")]
        pairs = shared_cases(*runs)
        assert [p.first.case.implementation for p in pairs] == [GROUP, FAN]
        assert pairs[0].ratio.value == pytest.approx(1.5)
        summary, worst = agreement(runs)
        assert [cell.text for cell in summary.rows[0]] == ["a", "b", "2", "1.22×", "1.50×", "1", "same"]
        assert [row[-1].strong for row in worst.rows] == [True, False]

    def test_other_devices_are_not_set_side_by_side(self, tmp_path: Path) -> None:
        folder = self.write_two(tmp_path, device={"type": "cuda", "name": "Another GPU"})
        assert agreement([read_run(folder / "a"), read_run(folder / "b")]) == []
