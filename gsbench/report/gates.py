"""The outcome of a gate in words, JSON, Markdown and JUnit. Renders what gsbench.gate decided, and decides nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from gsbench.errors import EXIT_FAILED, EXIT_OK
from gsbench.gate import Finding, Gated
from gsbench.report import verdicts
from gsbench.report.markup import COMMENT, details, fit, junit_case, plain, to_xml, xml_text

SCHEMA = 1


def outcome(g: Gated) -> str:
    """One line: passed, failed or undecided, and the counts."""
    unclear = g.compared.overall.verdicts["unclear"]
    judged = f"{g.compared.overall.cases} cases, {verdicts.interval(g.compared.overall)} of the baseline overall" + (
        f"; {unclear} unclear" if unclear else ""
    )
    if g.exit_code == EXIT_OK:
        return f"gate passed: nothing regressed ({judged})"
    if g.exit_code == EXIT_FAILED:
        return f"gate failed: {len(g.regressions)} regressed ({judged})"
    return f"gate undecided: {g.refused[0]} ({judged})"


def line(f: Finding) -> str:
    """One line a regression: what, by how much, and why."""
    much = f" {verdicts.interval(f.pair)}, tolerance {f.pair.tolerance:.1%}" if f.pair is not None else ""
    return f"{f.status}{much}: {f.case}: {f.diagnosis}"


def excuse(f: Finding) -> str:
    until = f"quarantined until {f.quarantine.until}: {f.quarantine.why}" if f.quarantine else ""
    return f"{line(f)} ({until})"


def sections(g: Gated) -> list[tuple[str, list[str]]]:
    """Titled lists of lines, empty ones left out; what decides comes first."""
    title = "Would be regressions in a valid run" if g.invalid else "Regressions"
    found = [
        ("Undecided", list(g.refused)),
        (title, [line(f) for f in g.regressions]),
        ("Slower by the measurement's fault", [line(f) for f in g.suspects]),
        ("Quarantined", [excuse(f) for f in g.quarantined]),
        ("Warnings", [*g.warnings, *verdicts.caveats(g.compared)]),
        ("Baseline", [f"promoted by {s.get('who')} on {s['when']}: {s.get('why')}" for s in g.signatures]),
    ]
    return [(title, lines) for title, lines in found if lines]


def to_json(g: Gated) -> str:
    def finding(f: Finding) -> dict[str, Any]:
        quarantine = None if f.quarantine is None else {"until": str(f.quarantine.until), "why": f.quarantine.why}
        return {
            **verdicts.identity(f.case), "status": f.status, "ratio": None if f.pair is None else f.pair.ratio,
            "cause": f.diagnosis.cause, "diagnosis": f.diagnosis.words, "quarantine": quarantine,
        }  # fmt: skip

    document = {
        "schema": SCHEMA, "exit_code": g.exit_code, "outcome": outcome(g), "invalid": g.invalid, "anchor": g.anchor or None,
        "regressions": [finding(f) for f in g.regressions], "suspects": [finding(f) for f in g.suspects],
        "quarantined": [finding(f) for f in g.quarantined], "refused": g.refused, "warnings": g.warnings,
        "baselines": g.signatures, "compared": verdicts.document(g.compared),
    }  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False)


def to_markdown(g: Gated, most: int = COMMENT) -> str:
    """GitHub Markdown of at most `most` characters (1,000 or more), what decides first."""
    return fit(_markdown(g), most, "gsbench gate --json")


def _markdown(g: Gated) -> Iterator[str]:
    mark = {EXIT_OK: "✅", EXIT_FAILED: "❌"}.get(g.exit_code, "⚠️")
    yield f"### {mark} gsbench {plain(outcome(g).partition(' (')[0])}"
    yield ""
    yield plain(verdicts.headline(g.compared))
    for title, lines in sections(g):
        if title in ("Warnings", "Baseline"):
            yield from details(title, lines)
            continue
        yield ""
        yield f"**{plain(title)}: {len(lines)}**"
        yield ""
        for one in lines:
            yield f"- {plain(one)}"
    yield from verdicts.body(g.compared)


def to_junit(g: Gated) -> str:
    """JUnit XML: a regression is a failure, a quarantined or undecided case skipped; a gate that cannot decide an error."""
    worse = {f.case: ("failure", line(f)) for f in g.regressions}
    worse |= {f.case: ("skipped", excuse(f)) for f in g.quarantined} | {f.case: ("skipped", line(f)) for f in g.suspects}
    cases = {p.case: (p.new_ms / 1e3, f"{verdicts.verdict(p)}: {verdicts.interval(p)}") for p in g.compared.pairs}
    cases |= {r.case: (0.0, str(r.difference)) for r in g.compared.not_comparable}
    counts = {
        "tests": len(cases) + bool(g.refused), "failures": len(g.regressions), "errors": int(bool(g.refused)),
        "skipped": len(g.quarantined) + len(g.suspects),
    }  # fmt: skip
    attributes = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "gsbench gate", **attributes})
    for case, (seconds, words) in cases.items():
        test = junit_case(suite, case, seconds)
        if case in worse:
            kind, why = worse[case]
            ElementTree.SubElement(test, kind, {"message": xml_text(why), "type": "slower"} if kind == "failure" else
                                   {"message": xml_text(why)})  # fmt: skip
        else:
            ElementTree.SubElement(test, "system-out").text = xml_text(words)
    if g.refused:
        test = ElementTree.SubElement(suite, "testcase", {"classname": "gsbench.gate", "name": "comparable"})
        ElementTree.SubElement(test, "error", {"message": xml_text("; ".join(g.refused))})
    return to_xml(root)
