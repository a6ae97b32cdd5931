"""A comparison of two sides in JSON, Markdown and JUnit. Renders what gsbench.compare decided, and decides nothing.

Names and reasons come from files that anyone may have written: none is ever read as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from gsbench.case import Case
from gsbench.compare import Compared, NotComparable, Pair, Summary
from gsbench.report.markup import COMMENT, details, fit, junit_case, plain, row, some, to_xml, xml_text
from gsbench.report.text import milliseconds

SCHEMA = 1
FIRST = ("No longer timed", "Environment")  # of the lists, what stands before the pairs in Markdown


def verdict(pair: Pair) -> str:
    """The verdict in words: provisional with few processes, and marked where the unchanged binary contradicts it."""
    words = pair.verdict + (" (provisional)" if pair.provisional and pair.verdict != "unclear" else "")
    return words + (", yet its binary is unchanged: suspect the measurement" if pair.control_failed else "")


def processes(pair: Pair) -> str:
    return f"{pair.base_processes} / {pair.new_processes}"


def headline(c: Compared) -> str:
    """One sentence: how many of each verdict, and the geometric mean."""
    counts = ", ".join(f"{count} {name}" for name, count in c.overall.verdicts.items() if count)
    return f"{c.overall.cases} cases compared: {counts}. Geometric mean of new / base {interval(c.overall)}."


def interval(found: Pair | Summary) -> str:
    """Ratio and interval to the third decimal: differences of a percent are what it is about."""
    return f"{_ratio(found.ratio)} ({_ratio(found.low)} to {_ratio(found.high)})"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 10 else f"{value:.3g}"


def caveats(c: Compared) -> list[str]:
    """What a reader must know before believing the verdicts."""
    said = []
    alone = sum(min(p.base_processes, p.new_processes) == 1 for p in c.pairs)
    few = sum(p.provisional for p in c.pairs) - alone
    if alone:
        said.append(
            f"{alone} of {len(c.pairs)} cases rest on one process a side: their intervals hold for these processes; "
            "what differs from process to process is not in them. Record five runs or more a side."
        )
    if few:
        said.append(f"{few} of {len(c.pairs)} cases rest on fewer than five processes a side: provisional.")
    suspect = sum(p.control_failed for p in c.pairs)
    if suspect:
        said.append(f"{suspect} cases moved although their binary is unchanged: the measurement is suspect, not the code.")
    return said


def others(c: Compared) -> list[tuple[str, list[str]]]:
    """Everything besides the pairs, as titled lists of lines; empty lists left out."""
    found = [
        ("No longer timed", [_refusal(r) for r in c.not_comparable if r.broken]),
        ("Not comparable", [_refusal(r) for r in c.not_comparable if not r.broken]),
        ("In the base only", [str(case) for case in c.missing]),
        ("In the new runs only", [str(case) for case in c.extra]),
        ("Timed on neither side", [str(case) for case in c.untimed]),
        ("Environment", list(map(str, c.environment))),
        ("Kernel configuration", [f"{p.case}: {'; '.join(map(str, p.config))}" for p in c.pairs if p.config]),
    ]
    return [(title, lines) for title, lines in found if lines]


def _refusal(refused: NotComparable) -> str:
    return f"{refused.case}: {refused.difference}"


# ---- JSON -------------------------------------------------------------------------------------------------------


def to_json(c: Compared) -> str:
    return json.dumps(document(c), indent=1, allow_nan=False)


def document(c: Compared) -> dict[str, Any]:
    """The comparison as JSON takes it, without NaN. Ratios are new / base, times in ms; `key` is the case's content key."""
    pairs = []
    for p in c.pairs:
        fields = {name: value for name, value in vars(p).items() if name not in ("case", "config")}
        derived = {"provisional": p.provisional, "control_failed": p.control_failed}
        pairs.append({**identity(p.case), **fields, **derived, "config": [asdict(d) for d in p.config]})
    return {
        "schema": SCHEMA, "base": c.base, "new": c.new, "tolerance": c.tolerance, "paired": c.paired, "worse": c.worse,
        "overall": asdict(c.overall), "by": c.by, "groups": [asdict(g) for g in c.groups], "pairs": pairs,
        "not_comparable": [{**identity(r.case), "broken": r.broken, **asdict(r.difference)} for r in c.not_comparable],
        "missing": [identity(case) for case in c.missing], "extra": [identity(case) for case in c.extra],
        "untimed": [identity(case) for case in c.untimed], "environment": [asdict(d) for d in c.environment],
    }  # fmt: skip


def identity(case: Case) -> dict[str, Any]:
    return {"key": case.key, **case.to_dict()}


# ---- Markdown ---------------------------------------------------------------------------------------------------


def to_markdown(c: Compared, most: int = COMMENT) -> str:
    """The comparison as GitHub Markdown of at most `most` characters (1,000 or more), the worst first."""
    return fit(_markdown(c), most, "gsbench compare --json")


def _markdown(c: Compared) -> Iterator[str]:
    yield f"### gsbench compare: {'worse' if c.worse else 'nothing slower'}"
    yield ""
    yield plain(headline(c))
    for line in caveats(c):
        yield ""
        yield f"> {plain(line)}"
    yield from body(c)


def body(c: Compared) -> Iterator[str]:
    """All below the headline: the sides, the groups, the pairs and the lists."""
    yield ""
    yield plain(f"Base: {some(c.base)}. New: {some(c.new)}. Tolerance {c.tolerance:.3g} ({c.tolerance:.1%}).")
    yield ""
    yield f"| {c.by} | new / base (95 %) | slower | unclear | same | faster |"
    yield "|---|---|---|---|---|---|"
    for group in c.groups:
        yield row(group.name, interval(group), *map(str, group.verdicts.values()))
    besides = others(c)
    for title, lines in besides:
        if title in FIRST:
            yield from details(title, lines)
    yield ""
    yield "| verdict | case | base ms | new ms | new / base (95 %) | tolerance | processes | flags |"
    yield "|---|---|---|---|---|---|---|---|"
    for p in c.pairs:
        yield row(
            verdict(p), str(p.case), milliseconds(p.base_ms), milliseconds(p.new_ms), interval(p), f"{p.tolerance:.1%}",
            processes(p), "; ".join(p.flags),
        )  # fmt: skip
    for title, lines in besides:
        if title not in FIRST:
            yield from details(title, lines)


# ---- JUnit ------------------------------------------------------------------------------------------------------


def to_junit(c: Compared) -> str:
    """JUnit XML: slower is a failure, a case that is no longer timed an error, what is not comparable skipped."""
    broken = sum(r.broken for r in c.not_comparable)
    counts = {
        "tests": len(c.pairs) + len(c.not_comparable), "failures": c.overall.verdicts["slower"], "errors": broken,
        "skipped": len(c.not_comparable) - broken,
    }  # fmt: skip
    attributes = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "gsbench compare", **attributes})
    for p in c.pairs:
        test = junit_case(suite, p.case, p.new_ms / 1e3)
        words = f"{verdict(p)}: new / base {interval(p)}, tolerance {p.tolerance:.1%}, processes {processes(p)}"
        told = [words, *map(str, p.config), *p.flags]
        if p.verdict == "slower":
            failure = ElementTree.SubElement(test, "failure", {"message": xml_text(words), "type": "slower"})
            failure.text = xml_text("\n".join(told))
        else:
            ElementTree.SubElement(test, "system-out").text = xml_text("\n".join(told))
    for r in c.not_comparable:
        why = {"message": xml_text(str(r.difference))}
        ElementTree.SubElement(junit_case(suite, r.case, 0.0), "error" if r.broken else "skipped", why)
    return to_xml(root)
