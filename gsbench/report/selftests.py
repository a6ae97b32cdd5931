"""A self-test as Markdown, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gsbench.compare import DEFAULT_TOLERANCE
from gsbench.report.markup import plain, row
from gsbench.report.text import milliseconds
from gsbench.selftest import BARS, LENGTHS_MS, POWER, TOLERANCES, SelfTest

SCHEMA = 1
_SHOWN = 60  # cases in the table


def sentence(t: SelfTest) -> str:
    """The one line: false alarms and what is found, with the conditions."""
    alarms = t.false_alarms[DEFAULT_TOLERANCE]
    length = "over 50 us" if t.kind == "cuda" else "all"
    found = [
        f"planted {share:.3g}%: {t.detection[key].share:.0%}"
        for share, key in ((100 * s, (s, 0.0, length)) for s in t.planted)
        if key in t.detection
    ]
    words = f" of cases ({length})" if length != "all" else ""
    return (
        f"{t.device}, suite {t.suite}, {t.processes} processes a side: false alarms {alarms.share:.1%} "
        f"({alarms.found} of {alarms.total} A/A comparisons at {DEFAULT_TOLERANCE:.0%} tolerance); "
        f"found at tolerance 0{words}: {', '.join(found) or 'nothing was planted'}"
    )


def write(t: SelfTest, out: Path) -> list[Path]:
    """selftest.md, selftest.json and selftest.png in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "selftest.md", out / "selftest.json", out / "selftest.png"]
    files[0].write_text(to_markdown(t), encoding="utf-8")
    files[1].write_text(to_json(t) + "\n", encoding="utf-8")
    _draw(t, files[2])
    return files


def to_json(t: SelfTest) -> str:
    def rate(r: Any) -> dict[str, Any]:
        return {"found": r.found, "total": r.total, "low": r.interval[0], "high": r.interval[1]}

    document = {
        "schema": SCHEMA, "passed": t.passed, "device": t.device, "suite": t.suite, "processes": t.processes,
        "experiments": t.experiments,
        "false_alarms": [{"tolerance": tolerance, **rate(r)} for tolerance, r in t.false_alarms.items()],
        "unclear": [{"tolerance": tolerance, **rate(r)} for tolerance, r in t.unclear.items()],
        "detection": [
            {"planted": share, "tolerance": tolerance, "cases": length, **rate(r)}
            for (share, tolerance, length), r in t.detection.items()
        ],
        "measured_as": [{"planted": share, "ratio": ratio} for share, ratio in t.planted.items()],
        "cases": [
            {**c.case.to_dict(), "ms": c.ms, "ratio": c.ratio, "scatter": c.scatter, "detectable": c.detectable}
            for c in t.cases
        ],
        "timers": t.timers, "agreement": t.agreement,
    }  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False)


def to_markdown(t: SelfTest) -> str:
    return "\n".join(_markdown(t)) + "\n"


def _markdown(t: SelfTest) -> Iterator[str]:
    yield "# Self-test of the gate"
    yield ""
    yield f"{plain(sentence(t))}."
    yield ""
    yield (
        f"{t.experiments} experiments of {t.processes} pairs of fresh processes that took turns round by round. False "
        "alarms: same code on both sides, and yet slower or faster. The bar at "
        f"{DEFAULT_TOLERANCE:.0%} tolerance is {BARS[t.kind]:.0%}: {'met' if t.passed else 'NOT MET'}."
    )
    yield ""
    yield "![What is found, and the smallest slowdown that would be](selftest.png)"
    yield ""
    yield "| tolerance | false alarms | unclear |"
    yield "|---|---|---|"
    for tolerance in TOLERANCES:
        yield row(f"{tolerance:.0%}", str(t.false_alarms[tolerance]), str(t.unclear[tolerance]))
    if t.planted:
        yield ""
        yield "## Planted slowdowns"
        yield ""
        yield "A delay of that share of the case's own time behind every call. Found: judged slower."
        yield ""
        yield "| planted | measured as | cases | " + " | ".join(f"found at {x:.0%} tolerance" for x in TOLERANCES) + " |"
        yield "|---" * (3 + len(TOLERANCES)) + "|"
        for share, ratio in t.planted.items():
            for length in LENGTHS_MS:
                rates = [t.detection.get((share, tolerance, length)) for tolerance in TOLERANCES]
                if any(rates):
                    yield row(f"{100 * share:g}%", f"{ratio:.4f}", length, *(str(r) if r else "none" for r in rates))
    yield from _timers(t)
    if t.cases:
        yield ""
        yield "## The smallest slowdown of each case that would be found"
        yield ""
        yield (
            f"With probability {POWER:.0%}, at tolerance 0, from the scatter between the processes. The largest first"
            + (f"; {_SHOWN} of {len(t.cases)}." if len(t.cases) > _SHOWN else ".")
        )
        yield ""
        yield "| case | ms | A/A ratio | scatter | detectable |"
        yield "|---|---|---|---|---|"
        for c in sorted(t.cases, key=lambda c: -c.detectable)[:_SHOWN]:
            yield row(str(c.case), milliseconds(c.ms), f"{c.ratio:.4f}", f"{c.scatter:.2%}", f"{c.detectable:.2%}")


def _timers(t: SelfTest) -> Iterator[str]:
    if t.timers:
        yield ""
        yield "## The timers"
        yield ""
        overhead, step = (f"{t.timers[name] * 1e3:.3g} us" for name in ("overhead_ms", "resolution_ms"))
        method = plain(str(t.timers["method"]))
        yield f"Method {method}: a call that does nothing reads {overhead}; the smallest step of the clock is {step}."
    if t.agreement:
        names = {c.case.key: str(c.case) for c in t.cases}
        yield ""
        yield "| case | independent timer | ours ms | its ms | ours / its |"
        yield "|---|---|---|---|---|"
        for a in t.agreement:
            name = names.get(a["key"], a["key"])
            if "failed" in a:
                yield row(name, a["by"], "", a["failed"], "")
            else:
                ratio = f"{a['ours_ms'] / a['theirs_ms']:.3f}" if a["theirs_ms"] else "no reading"
                yield row(name, a["by"], milliseconds(a["ours_ms"]), milliseconds(a["theirs_ms"]), ratio)


def _draw(t: SelfTest, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for tolerance in TOLERANCES:
        points = [(0.0, t.false_alarms[tolerance])]
        points += [(s, r) for (s, at, length), r in sorted(t.detection.items()) if at == tolerance and length == "all"]
        shares = [100 * share for share, _ in points]
        rates = [100 * rate.share for _, rate in points]
        reach = [[100 * (r.share - r.interval[0]) for _, r in points], [100 * (r.interval[1] - r.share) for _, r in points]]
        left.errorbar(shares, rates, yerr=reach, marker="o", capsize=3, label=f"tolerance {tolerance:.0%}")
    left.set(xlabel="planted slowdown, % (0: false alarms)", ylabel="judged different, % of cases", ylim=(-3, 103))
    left.legend()
    right.scatter([c.ms for c in t.cases], [max(100 * c.detectable, 1e-3) for c in t.cases], s=14)
    right.set(xlabel="time of the case, ms", ylabel=f"slowdown found {POWER:.0%} of the time, %", xscale="log", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{t.device}: what the gate finds ({t.processes} processes a side)")
    figure.savefig(file, dpi=110, metadata={"Software": None})
