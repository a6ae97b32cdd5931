"""A self-test as Markdown, a figure and JSON."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from gsbench.compare import DEFAULT_TOLERANCE
from gsbench.frame import part
from gsbench.report.markup import plain, row
from gsbench.report.text import milliseconds
from gsbench.selftest import BARS, LENGTHS_MS, POWER, TOLERANCES, SelfTest

SCHEMA = 2  # 2: processes a case
STEM = "selftest"
_SHOWN = 60  # cases in the table


def sentence(t: SelfTest) -> str:
    """The one line: false alarms and what is found, with the conditions."""
    alarms = t.false_alarms[DEFAULT_TOLERANCE]
    return (
        f"{t.device}, suite {t.suite}, {processes(t)} processes a side: false alarms {alarms.share:.1%} "
        f"({alarms.found} of {alarms.total} A/A comparisons at {DEFAULT_TOLERANCE:.0%} tolerance, "
        f"{t.false_alarms[0.0].found} at tolerance 0); "
        f"found at tolerance 0: {', '.join(_found(t)) or 'nothing was planted'}"
    )


def _found(t: SelfTest) -> Iterator[str]:
    """What was found of each planted slowdown, of all cases and of those that are long enough for it to be seen."""
    for share in t.planted:
        rates = {length: rate for length in LENGTHS_MS if (rate := t.detection.get((share, 0.0, length))) and rate.total}
        if t.kind != "cuda":
            rates = {length: rate for length, rate in rates.items() if length == "all"}
        words = (f"{r.share:.1%} ({r.found} of {r.total} {length})" for length, r in rates.items())
        yield f"planted {100 * share:.3g}%: {', '.join(words)}".replace(" all)", ")")


def processes(t: SelfTest) -> str:
    return str(t.processes) if t.most_processes == t.processes else f"{t.processes} to {t.most_processes}"


def write(t: SelfTest, out: Path) -> list[Path]:
    """selftest.md, selftest.json and selftest.png in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / f"{STEM}.md", out / f"{STEM}.json", out / f"{STEM}.png"]
    written[0].write_text(to_markdown(t), encoding="utf-8")
    written[1].write_text(to_json(t) + "\n", encoding="utf-8")
    written[2].write_bytes(draw(t))
    return written


def fingerprint(t: SelfTest) -> str:
    """What the figure draws, and the code that draws it."""
    code = files("gsbench.report").joinpath("selftests.py").read_bytes()
    return hashlib.sha256(to_json(t).encode() + b"\0" + code).hexdigest()


def to_json(t: SelfTest) -> str:
    def rate(r: Any) -> dict[str, Any]:
        return {"found": r.found, "total": r.total, "low": r.interval[0], "high": r.interval[1]}

    document = {
        "schema": SCHEMA, "passed": t.passed, "device": t.device, "suite": t.suite, "processes": t.processes,
        "most_processes": t.most_processes, "experiments": t.experiments,
        "false_alarms": [{"tolerance": tolerance, **rate(r)} for tolerance, r in t.false_alarms.items()],
        "unclear": [{"tolerance": tolerance, **rate(r)} for tolerance, r in t.unclear.items()],
        "detection": [
            {"planted": share, "tolerance": tolerance, "cases": length, **rate(r)}
            for (share, tolerance, length), r in t.detection.items()
        ],
        "measured_as": [{"planted": share, "ratio": ratio} for share, ratio in t.planted.items()],
        "cases": [
            {**c.case.to_dict(), "ms": c.ms, "ratio": c.ratio, "scatter": c.scatter, "detectable": c.detectable,
             "processes": c.processes}
            for c in t.cases
        ],
        "timers": t.timers, "agreement": t.agreement,
    }  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False)


def to_markdown(t: SelfTest, picture: str = f"{STEM}.png") -> str:
    """picture: path of the figure from where the text will lie."""
    return "\n".join(_markdown(t, picture)) + "\n"


def _markdown(t: SelfTest, picture: str) -> Iterator[str]:
    yield "# Self-test of the gate"
    yield ""
    yield f"{plain(sentence(t))}."
    yield ""
    yield (
        f"{t.experiments} experiments of {processes(t)} pairs of fresh processes that took turns round by round"
        + ("; as in the gate, cases that were unclear had more" if t.most_processes > t.processes else "")
        + ". False alarms: same code on both sides, and yet slower or faster. The bar at "
        f"{DEFAULT_TOLERANCE:.0%} tolerance is {BARS[t.kind]:.0%}: {'met' if t.passed else 'NOT MET'}."
    )
    yield ""
    yield f"![What is found, and the smallest slowdown that would be]({picture})"
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
    yield from _environment(t)
    if t.cases:
        yield ""
        yield "## The smallest slowdown of each case that would be found"
        yield ""
        yield (
            f"With probability {POWER:.0%}, at tolerance 0, from the scatter between the processes. The largest first"
            + (f"; {_SHOWN} of {len(t.cases)}." if len(t.cases) > _SHOWN else ".")
        )
        yield ""
        yield "| case | ms | processes a side | A/A ratio | scatter | detectable |"
        yield "|---|---|---|---|---|---|"
        for c in sorted(t.cases, key=lambda c: -c.detectable)[:_SHOWN]:
            shares = f"{c.scatter:.2%}", f"{c.detectable:.2%}"
            yield row(str(c.case), milliseconds(c.ms), str(c.processes), f"{c.ratio:.4f}", *shares)


def _environment(t: SelfTest) -> Iterator[str]:
    """Where it was measured, and how to do it again."""
    known = part(t.manifest, "environment")
    facts = [f"{name} {known[name]}" for name in ("torch", "triton", "cuda", "driver", "python") if known.get(name)]
    yield ""
    yield "## Where and how"
    yield ""
    when, commit = plain(str(t.manifest.get("created_utc", ""))), plain(str(known.get("git_commit")))
    yield f"{when}, commit {commit}; {plain(', '.join(facts))}."
    yield ""
    yield "    " + plain(" ".join(str(word) for word in t.manifest.get("command", [])))


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


def draw(t: SelfTest) -> bytes:
    """The figure as PNG: what is found by what was planted, and the smallest effect of each case."""
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
    figure.suptitle(f"{t.device}: what the gate finds ({processes(t)} processes a side)")
    found = io.BytesIO()
    figure.savefig(found, format="png", dpi=110, metadata={"Software": None})
    return found.getvalue()
