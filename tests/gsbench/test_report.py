from __future__ import annotations

from typing import Any

import pytest

from gsbench.record import Record
from gsbench.report.answer import answers
from gsbench.report.ratios import Comparison, compare
from gsbench.report.sweeps import Naming, along, declared_default, default_point, suite_names, varying
from gsbench.report.tables import NOT_INTERLEAVED, by_family, flags, losses, summary
from gsbench.report.views import Group
from tests.gsbench import synthetic as s
from tests.gsbench.synthetic import sweep

FAMILY, GROUP, BOTTLENECK = "group_shared", "group_shared/triton", "bottleneck/torch"
FAN, CSR = "fixed_fan_in/triton", "fixed_fan_in/csr"


def one(*records: Record) -> Comparison:
    (comparison,) = compare(records)
    return comparison


def group(records: list[Record], heading: str = "forward") -> Group:
    return Group(heading, "", "forward", compare(records), Naming(s.point()), {r.key: i for i, r in enumerate(records)})


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
        blocks = ((GROUP, "a"), (FAN, "b"), (BOTTLENECK, "a"))
        table = by_family(group([s.timed(name, 2.0, block=block) for name, block in blocks]))
        cells = {name: cell.text for name, cell in zip(table.header, table.rows[0], strict=True)}
        assert cells["speed over fixed_fan_in"].endswith(NOT_INTERLEAVED)
        assert NOT_INTERLEAVED not in cells["time / bottleneck/torch"]
        assert "not timed in one interleaved block" in table.note


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

    def test_rules_of_rewiring_answer_where_no_layer_does(self) -> None:
        rules = [s.timed(name, ms, pass_="grow", mode="host") for name, ms in (("grow/random", 1.0), ("grow/gradient", 2.0))]
        (answer,) = answers(compare(rules))
        assert answer.sentences == ("Of 1 comparison (1 pass, 1 point), the fastest is grow/random in 1.",)
        (answer,) = answers(compare([*rules, s.timed(GROUP, 1.0), s.timed(FAN, 2.0)]))
        assert "grow" not in " ".join(answer.sentences)

    def test_every_losing_case_is_in_the_table_worst_first(self) -> None:
        table = losses([group(sweep())])
        point, over_fan, over_bottleneck = (
            table.header.index(h) for h in ("point", "speed over best fixed_fan_in", "time / bottleneck/torch")
        )
        assert [row[point].text.split()[0] for row in table.rows] == ["B=1", "B=16"]
        assert [row[over_fan].strong for row in table.rows] == [True, False]
        assert [row[over_bottleneck].text.split()[0] for row in table.rows] == ["5.00×", "1.25×"]


class TestTables:
    def test_the_best_of_each_family_at_each_point(self) -> None:
        table = by_family(group(sweep()))
        rows = {row[0].text: dict(zip(table.header, row, strict=True)) for row in table.rows}
        best = rows["default"]
        assert [best[f"{name}, ms"].text for name in (f"best {FAMILY}", "best fixed_fan_in", BOTTLENECK, "dense")] == [
            "1", "4", "2", "oom",
        ]  # fmt: skip
        assert [name for name, cell in best.items() if cell.strong] == [f"best {FAMILY}, ms"]
        assert best["speed over fixed_fan_in"].text.startswith("4.00× [")
        assert best["fastest"].text == GROUP
        tied = [name for name, cell in rows["B=64"].items() if "tie" in cell.text]
        assert tied == [f"best {FAMILY}, ms", f"{BOTTLENECK}, ms"]

    def test_a_missing_reference_says_why(self) -> None:
        table = by_family(group([s.timed(GROUP, 1.0), s.failed(FAN, "oom", "no memory")]))
        assert "n/a: no ratio, for fixed_fan_in/triton: oom (no memory); bottleneck/torch was not measured." in table.note

    def test_the_summary_counts_wins_and_losses_of_a_group(self) -> None:
        (row,) = summary([group(sweep())]).rows
        assert [cell.text for cell in row] == [
            "forward", "bottleneck/torch 2, group_shared/triton 1, tie 1", "4", "1.68× (0.50× to 4.00×)",
            "1.33× (0.50× to 5.00×)", "1", "2",
        ]  # fmt: skip

    def test_more_than_the_roof_is_flagged_as_a_fault(self) -> None:
        records = [s.timed(GROUP, 1.0, roof_share=1.2), s.timed(FAN, 1.0, roof_share=0.9, validity=("power cap",))]
        assert {row[0].text for row in flags(records).rows} == {
            "above 100 % of the roof: a fault of the harness", "power cap",
        }  # fmt: skip


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
