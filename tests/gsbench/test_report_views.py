"""What is drawn: the numbers of every kind of view, and their twins by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gsbench import costs
from gsbench.report import plan, read, render
from gsbench.report.canvas import log_ticks
from gsbench.report.contents import Report
from gsbench.report.memory import measured, phases
from gsbench.report.palette import DARK_PAPER, READABLE, contrast, palette
from gsbench.report.scaling import fit
from gsbench.report.views import View
from gskernels.table import IMPLEMENTATIONS, find
from tests.gsbench import synthetic as s

GROUP, FAN, BOTTLENECK, DENSE = "group_shared/triton", "fixed_fan_in/triton", "bottleneck/torch", "dense/torch"


def report_of(folder: Path, *records: Any, **manifest: Any) -> Report:
    return read(s.write(folder / "run", records, **manifest))


def view(report: Report, stem: str) -> View:
    return next(view for view in report.views if view.stem == stem)


class TestSweeps:
    def test_a_curve_holds_value_interval_and_case_at_each_point(self, tmp_path: Path) -> None:
        report = report_of(tmp_path, *s.sweep())
        data = view(report, "forward-batch-speedup").data
        assert data["x"]["at"] == [1.0, 16.0, 64.0, 256.0]
        points = {series["name"]: series["points"] for series in data["series"]}[GROUP]
        assert [point[:2] for point in points] == [[1.0, 0.5], [16.0, 2.0], [64.0, 2.0], [256.0, 4.0]]
        assert points[-1][2:4] == pytest.approx([4 * 0.998 / 1.002, 4 * 1.002 / 0.998], rel=1e-5)
        assert report.entries[points[-1][4]].record.case.implementation == GROUP
        assert "dense/torch (oom)" in view(report, "forward-batch-speedup").caption

    def test_points_on_no_axis_stand_side_by_side_under_their_names(self, tmp_path: Path) -> None:
        shapes = {"A": {"batch": 1, "labels": 1000}, "B": {"batch": 64, "labels": 5000}}
        places = {name: s.point(**axes) for name, axes in shapes.items()}
        suite = {"name": "paper", "points": [{"name": name, **vars(place.shape)} for name, place in places.items()]}
        records = [s.timed(name, ms, place) for place in places.values() for name, ms in ((GROUP, 1.0), (FAN, 3.0))]
        data = view(report_of(tmp_path, *records, suite=suite), "forward-points-speedup").data
        assert (data["x"]["labels"], data["lines"]) == (["A", "B"], False)
        assert [len(series["points"]) for series in data["series"]] == [2, 2]

    def test_energy_is_drawn_where_it_is_recorded(self, tmp_path: Path) -> None:
        records = [s.timed(GROUP, 1.0, energy_mj=80.0), s.timed(FAN, 2.0, energy_mj=200.0), s.timed(DENSE, 3.0)]
        report = report_of(tmp_path, *records)
        assert [row["name"] for row in view(report, "forward-default-energy").data["rows"]] == [GROUP, FAN]


class TestScaling:
    def test_an_exact_power_law_is_found_without_error(self) -> None:
        power = fit([(x, 3 * x**0.8) for x in (1e4, 1e5, 1e6, 1e7)])
        assert power is not None
        assert (power.exponent, power.factor, power.error) == pytest.approx((0.8, 3.0, 0.0), abs=1e-9)
        assert power.at(1e5) == pytest.approx(3e4, rel=1e-9)

    def test_two_points_fit_nothing(self) -> None:
        assert fit([(1.0, 1.0), (2.0, 2.0)]) is None

    def test_times_along_labels_carry_their_exponent(self, tmp_path: Path) -> None:
        records = [s.timed(GROUP, 1e-6 * labels, s.point(labels=labels)) for labels in (10**4, 10**5, 10**6)]
        (fitted,) = view(report_of(tmp_path, *records), "forward-labels-time").data["fits"]
        assert (fitted["name"], fitted["exponent"], fitted["count"]) == (GROUP, pytest.approx(1.0), 3)


class TestRoofline:
    def test_a_case_and_its_floor_stand_at_its_intensity(self, tmp_path: Path) -> None:
        record = s.timed(GROUP, 2.0, useful_flops=4 * 10**9, min_bytes=10**8, floor_ms=0.5)
        data = view(report_of(tmp_path, record), "forward-roofline").data
        assert data["series"] == [{"name": GROUP, "points": [[40.0, 2e12, 8e12, 0]]}]
        assert (data["bandwidth"], data["flops"]) == (4.1e12, 7.4e14)

    def test_without_ceilings_there_is_none(self, tmp_path: Path) -> None:
        record = s.timed(GROUP, 2.0, useful_flops=4 * 10**9, min_bytes=10**8, floor_ms=0.5)
        report = report_of(tmp_path, record, ceilings={"copy_gbps": "fast"})
        assert not report.of_section("roofline")


class TestMemory:
    @pytest.mark.parametrize("name", [DENSE, BOTTLENECK, "masked_dense/torch", FAN, GROUP])
    @pytest.mark.parametrize("pass_", ["forward", "backward"])
    def test_the_phases_are_the_layer_the_inputs_and_the_modelled_extra(self, name: str, pass_: str) -> None:
        where = s.point()
        cost = costs.cost(find(name), pass_, where.shape, where.dtype)
        record = s.timed(name, 1.0, where, pass_, layer_bytes=cost.layer_bytes, modelled_extra_bytes=cost.extra_bytes,
                         peak_extra_bytes=cost.extra_bytes + 1000)  # fmt: skip
        found = phases(record)
        assert found is not None
        held = cost.layer_bytes + 2 * where.shape.batch * (768 + (where.shape.labels if pass_ == "backward" else 0))
        assert found["weights"] + found["indices"] == cost.layer_bytes
        assert sum(found.values()) == held + cost.extra_bytes
        assert measured(record) == held + cost.extra_bytes + 1000

    def test_a_pass_that_is_not_linear_keeps_its_total(self) -> None:
        found = phases(s.timed(DENSE, 1.0, s.point(), "step", layer_bytes=2 * 768 * 131072, modelled_extra_bytes=5 * 10**6))
        assert found is not None
        assert (found["logits"], found["temporaries"]) == (0, 5 * 10**6)

    def test_an_implementation_of_another_package_or_an_unmeasured_one_has_no_stack(self) -> None:
        assert phases(s.timed("other/one", 1.0, layer_bytes=1, modelled_extra_bytes=1)) is None
        assert measured(s.timed(GROUP, 1.0, layer_bytes=1, modelled_extra_bytes=1)) is None


class TestWinners:
    def test_a_map_is_over_the_two_axes_with_most_points_and_names_ties(self, tmp_path: Path) -> None:
        records = []
        for batch in (1, 16, 256):
            for labels in (1000, 4000):
                where = s.point(batch=batch, labels=labels)
                records += [s.timed(GROUP, 1.0, where), s.timed(FAN, 1.001 if batch == 1 else 3.0, where)]
        report = report_of(tmp_path, *records)
        data = view(report, "forward-winners").data
        assert (data["columns"]["labels"], data["rows"]["labels"]) == (["1", "16", "256"], ["1000", "4000"])
        cells = {(cell["column"], cell["row"]): cell for cell in data["cells"]}
        assert len(cells) == 6
        assert cells[0, 0]["tied"] == [FAN, GROUP]
        assert (cells[2, 1]["tied"], cells[2, 1]["winner"], cells[2, 1]["lead"]) == ([], GROUP, 3.0)
        assert report.atlases[0]["choice"] == ["batch", "labels"]


class TestFigures:
    def test_every_view_has_its_twin_in_png_and_svg_at_300_dpi(self, tmp_path: Path) -> None:
        records = [r for r in s.sweep() if r.case.implementation != "fixed_fan_in/csr"]
        run = s.write(tmp_path / "run", records)
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "old.png").write_bytes(b"")
        files = render(run, tmp_path / "out", tmp_path / "figures")[2:]
        stems = ("batch-speedup", "batch-ratio", "batch-time", "winners", "roofline", "default-memory")
        assert [file.name for file in files[::2]] == [f"forward-{name}.png" for name in stems]
        assert sorted((tmp_path / "figures").iterdir()) == sorted(files)
        for file in files[::2]:
            with Image.open(file) as image:
                assert image.info["dpi"][0] == pytest.approx(300, abs=1)
        assert (
            "![forward: time over bottleneck/torch, by batch size B](../figures/forward-batch-ratio.png)"
            in (tmp_path / "out" / "report.md").read_text()
        )

    def test_a_fingerprint_is_of_what_is_drawn(self, tmp_path: Path) -> None:
        one, same, other = (
            report_of(tmp_path / name, s.timed(GROUP, ms), s.timed(FAN, 2.0))
            for name, ms in (("a", 1.0), ("b", 1.0), ("c", 1.1))
        )
        prints = [[plate.fingerprint(report.styles) for plate in plan(report)] for report in (one, same, other)]
        assert prints[0] == prints[1]
        assert all(a != b for a, b in zip(prints[0], prints[2], strict=True))

    def test_styles_are_distinct_and_do_not_depend_on_what_is_drawn(self) -> None:
        names = [i.name for i in IMPLEMENTATIONS]
        alone, all_of_them = palette([GROUP]), palette([*names, "new/one", "group_shared/future"])
        assert alone[GROUP] == all_of_them[GROUP]
        looks = {(style.color, style.marker, str(style.line)) for style in all_of_them.values()}
        assert len(looks) == len(names) + 2
        assert all(contrast(style.dark, DARK_PAPER) >= READABLE for style in all_of_them.values())

    @pytest.mark.parametrize(("low", "high"), [(0.95, 1.06), (0.5, 1.1), (0.9, 3), (0.2, 9), (0.01, 80), (1e-4, 1e3)])
    def test_any_span_has_a_readable_number_of_ticks(self, low: float, high: float) -> None:
        ticks = log_ticks(low, high)
        assert 3 <= len(ticks) <= 12
        assert all(low <= tick <= high for tick in ticks)
