"""A comparison of two sides in JSON, Markdown and JUnit. Renders what gsbench.compare decided, and decides nothing.

Names and reasons come from files that anyone may have written: none is ever read as markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from gsbench.case import Case
from gsbench.compare import Compared, NotComparable, Pair, Summary
from gsbench.report.text import milliseconds

SCHEMA = 1
COMMENT = 65536  # characters that a pull-request comment may have
FIRST = ("No longer timed", "Environment")  # of the lists, what stands before the pairs in Markdown
_HARMLESS = set(" ./,=-+%()_:;→'\n")


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
    """The comparison as JSON without NaN. Ratios are new / base, times in ms; `key` is the case's content key."""
    pairs = []
    for p in c.pairs:
        fields = {name: value for name, value in vars(p).items() if name not in ("case", "config")}
        derived = {"provisional": p.provisional, "control_failed": p.control_failed}
        pairs.append({**_case(p.case), **fields, **derived, "config": [asdict(d) for d in p.config]})
    document: dict[str, Any] = {
        "schema": SCHEMA, "base": c.base, "new": c.new, "tolerance": c.tolerance, "paired": c.paired, "worse": c.worse,
        "overall": asdict(c.overall), "by": c.by, "groups": [asdict(g) for g in c.groups], "pairs": pairs,
        "not_comparable": [{**_case(r.case), "broken": r.broken, **asdict(r.difference)} for r in c.not_comparable],
        "missing": [_case(case) for case in c.missing], "extra": [_case(case) for case in c.extra],
        "untimed": [_case(case) for case in c.untimed], "environment": [asdict(d) for d in c.environment],
    }  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False)


def _case(case: Case) -> dict[str, Any]:
    return {"key": case.key, **case.to_dict()}


# ---- Markdown ---------------------------------------------------------------------------------------------------


def to_markdown(c: Compared, most: int = COMMENT) -> str:
    """The comparison as GitHub Markdown of at most `most` characters (1,000 or more), the worst first."""
    room = most - 200  # for the line that says what was left out
    kept: list[str] = []
    left_out = 0
    for line in _markdown(c):
        cost = len(line) + 1
        if left_out or cost > room:
            left_out += 1
            continue
        kept.append(line)
        room -= cost
    if left_out:
        opened, closed = (sum(line.startswith(mark) for line in kept) for mark in ("<details>", "</details>"))
        kept += ["", "</details>"] * (opened - closed)
        kept += ["", f"{left_out} more lines do not fit here: `gsbench compare --json` has everything."]
    return "\n".join(kept) + "\n"


def _markdown(c: Compared) -> Iterator[str]:
    yield f"### gsbench compare: {'worse' if c.worse else 'nothing slower'}"
    yield ""
    yield _plain(headline(c))
    for line in caveats(c):
        yield ""
        yield f"> {_plain(line)}"
    yield ""
    yield _plain(f"Base: {_some(c.base)}. New: {_some(c.new)}. Tolerance {c.tolerance:.3g} ({c.tolerance:.1%}).")
    yield ""
    yield f"| {c.by} | new / base (95 %) | slower | unclear | same | faster |"
    yield "|---|---|---|---|---|---|"
    for group in c.groups:
        yield _row(group.name, interval(group), *map(str, group.verdicts.values()))
    besides = others(c)
    for title, lines in besides:
        if title in FIRST:
            yield from _details(title, lines)
    yield ""
    yield "| verdict | case | base ms | new ms | new / base (95 %) | tolerance | processes | flags |"
    yield "|---|---|---|---|---|---|---|---|"
    for p in c.pairs:
        yield _row(
            verdict(p), str(p.case), milliseconds(p.base_ms), milliseconds(p.new_ms), interval(p), f"{p.tolerance:.1%}",
            processes(p), "; ".join(p.flags),
        )  # fmt: skip
    for title, lines in besides:
        if title not in FIRST:
            yield from _details(title, lines)


def _details(title: str, lines: list[str]) -> Iterator[str]:
    yield ""
    yield f"<details><summary>{title}: {len(lines)}</summary>"
    yield ""
    for line in lines:
        yield f"- {_plain(line)}"
    yield ""
    yield "</details>"


def _some(names: Iterable[str], most: int = 10) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Whatever could be read as Markdown, HTML or a mention becomes a character reference; no line breaks."""
    words = " ".join(text.split())
    return "".join(c if c.isalnum() or c in _HARMLESS else f"&#{ord(c)};" if c.isprintable() else "�" for c in words)


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
        test = _test(suite, p.case, p.new_ms / 1e3)
        words = f"{verdict(p)}: new / base {interval(p)}, tolerance {p.tolerance:.1%}, processes {processes(p)}"
        details = [words, *map(str, p.config), *p.flags]
        if p.verdict == "slower":
            failure = ElementTree.SubElement(test, "failure", {"message": _xml(words), "type": "slower"})
            failure.text = _xml("\n".join(details))
        else:
            ElementTree.SubElement(test, "system-out").text = _xml("\n".join(details))
    for r in c.not_comparable:
        why = {"message": _xml(str(r.difference))}
        ElementTree.SubElement(_test(suite, r.case, 0.0), "error" if r.broken else "skipped", why)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _test(suite: ElementTree.Element, case: Case, seconds: float) -> ElementTree.Element:
    names = {"classname": _xml(f"gsbench.{case.implementation}"), "name": _xml(str(case)), "time": f"{seconds:.9f}"}
    return ElementTree.SubElement(suite, "testcase", names)


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold (ElementTree escapes the others)."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
