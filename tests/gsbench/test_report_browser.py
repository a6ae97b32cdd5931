"""The page in a real browser: no errors, no requests, no overflow; plots, filter, sort, pages and rows work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsbench.report import embed, render
from tests.gsbench import synthetic as s
from tests.gsbench.browser import chromium, opened

Opened = tuple[Any, list[str], list[str]]  # page, faults, requests
DRAW_ALL = "for (const figure of figures) draw(figure)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    records = [r for r in s.realistic() if r.case.pass_ == "backward" and r.case.point.pattern == "uniform"]
    run = s.write(folder / "run", records, suite=s.SUITE)
    s.write_samples(run, records[:40])
    return render(run, folder / "out")[0]


@pytest.fixture(scope="module")
def desktop(browser: Any, page_file: Path) -> Iterator[Opened]:
    """One page for the tests that use it; none leaves a filter behind that another would see."""
    with opened(browser, page_file) as found:
        yield found


def drawn_as(found: Opened, ink: str) -> None:
    """Everything is drawn in that colour, without errors, requests or overflow."""
    page, faults, requests = found
    page.evaluate(DRAW_ALL)
    drawn = page.evaluate("figures.filter(figure => figure.querySelector('.main-svg')).length")
    assert drawn == page.locator("figure[data-view]").count() == 14
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill") == ink
    assert (faults, requests) == ([], [])


def test_a_wide_light_page(desktop: Opened) -> None:
    drawn_as(desktop, "rgb(29, 33, 39)")


def test_a_narrow_dark_page(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file, 390, "dark") as found:
        drawn_as(found, "rgb(230, 232, 235)")


def test_the_table_filters_sorts_turns_pages_and_opens_rows(desktop: Opened) -> None:
    page, faults, _ = desktop
    shown = lambda: page.locator("#case-table tbody tr").count()  # noqa: E731
    assert shown() == 50
    assert "page 1 of" in page.inner_text("#case-count")
    page.click("#pager >> text=next")
    assert "page 2 of" in page.inner_text("#case-count")
    page.fill("#filter", "triton batch=16 pass=backward")
    names = page.locator("#case-table tbody td:first-child").all_inner_texts()
    assert names == ["fixed_fan_in/triton", "group_shared/triton", "group_shared/triton_deterministic"]
    page.click("th[data-column=median_ms] button")
    names = page.evaluate("[...document.querySelectorAll('#case-table th')].map(th => th.dataset.column)")
    column = names.index("median_ms")
    medians = [float(row.locator("td").nth(column).inner_text()) for row in page.locator("tr.case").all()]
    assert medians == sorted(medians)
    page.click("th[data-column=median_ms] button")
    assert page.get_attribute("th[data-column=median_ms]", "aria-sort") == "descending"
    page.fill("#filter", "")
    page.select_option("label:has-text('status') select", "oom")
    assert set(page.locator("td.failed").all_inner_texts()) == {"oom"}
    page.click("tr.case >> nth=0")
    assert "tried to allocate 4.50 GiB" in page.inner_text("tr.open")
    assert faults == []


ODD = {
    "empty": [],
    "failures only": [s.failed("group_shared/triton", "oom", "no memory"), s.failed("dense/torch", "crashed", "signal 11")],
    "one case": [s.timed("group_shared/triton", 1.0, modelled_extra_bytes=8, layer_bytes=8, energy_mj=3.0)],
}


@pytest.mark.parametrize("records", ODD.values(), ids=ODD)
def test_odd_runs_open_without_errors(browser: Any, tmp_path: Path, records: list[Any]) -> None:
    with opened(browser, render(s.write(tmp_path / "run", records), tmp_path / "out")[0], 390) as (page, faults, _):
        page.evaluate(DRAW_ALL)
        assert page.evaluate(OVERFLOW) == 0
        assert page.locator("tr.case").count() == len(records)
        assert faults == []


def test_one_of_several_runs_is_chosen_and_print_shows_every_heading(browser: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        s.write(tmp_path / "runs" / name, s.sweep())
    with opened(browser, render(tmp_path / "runs", tmp_path / "out")[0], scheme="dark") as (page, faults, _):
        page.select_option("#run-controls select", "b")
        assert page.locator("#speed figure:visible").count() == 2
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert {"Speed", "Cases", "How to reproduce"} <= set(page.locator("h2:visible").all_inner_texts())
        ink = "getComputedStyle(document.querySelector('#speed figure:not([hidden]) .xtick text')).fill"
        assert page.evaluate(ink) == "rgb(29, 33, 39)"
        assert faults == []


def test_hover_shows_the_record_and_a_legend_entry_hides_its_curves(desktop: Opened) -> None:
    page, faults, _ = desktop
    page.evaluate("draw(figures[0])")
    text = page.evaluate("figures[0].querySelector('.plot').data.at(-1).text[0]")
    for words in ("backward", "B=1 D=768", "median", "of the roof", "extra memory"):
        assert words in text
    before = page.evaluate("figures[0].querySelector('.plot').data.length")
    page.click(".chip >> nth=0")
    assert page.evaluate("figures[0].querySelector('.plot').data.length") < before
    assert page.get_attribute(".chip >> nth=0", "aria-pressed") == "false"
    assert faults == []


def test_the_winner_map_is_over_the_axes_that_are_chosen(desktop: Opened) -> None:
    page, _, _ = desktop
    page.select_option("#map-controls select >> nth=1", "labels")
    page.select_option("#map-controls select >> nth=2", "batch")
    assert page.locator("#map tbody tr").count() == 5
    assert page.locator("#map tbody td:not(.empty)").count() == 8
    assert "bottleneck/torch" in page.inner_text("#map tbody")


def test_hostile_texts_do_nothing(browser: Any, tmp_path: Path) -> None:
    evil = "<img src=x onerror='window.harm=1'></script><script>window.harm=1</script><a href='javascript:1'>"
    records = [s.timed(f"{evil}/a", 1.0, validity=(evil,)), s.timed("fixed_fan_in/csr", 2.0)]
    records.append(s.failed("dense/b", "error", evil))
    run = s.write(tmp_path / "run", records, suite={"name": evil, "title": evil}, command=["gsbench", evil])
    with opened(browser, render(run, tmp_path / "out")[0], 390) as (page, faults, requests):
        page.evaluate(DRAW_ALL)
        page.click("tr.case >> nth=0")
        assert page.evaluate("window.harm") is None
        assert page.locator("main img, main script, main svg a").count() == 0
        assert page.evaluate(OVERFLOW) == 0
        assert (faults, requests) == ([], [])


def test_more_cases_than_a_page_holds_are_paged_with_a_notice(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "MOST_CASES", 120)
    run = s.write(tmp_path / "run", s.grid(300))
    with opened(browser, render(run, tmp_path / "out")[0]) as (page, faults, _):
        assert "This page holds 120 of 300 cases" in page.inner_text("#cases .notice")
        assert page.inner_text("#case-count") == "120 of 120 cases, page 1 of 3"
        assert faults == []
