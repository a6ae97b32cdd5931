"""Profiles as tables, for the terminal and for Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gsbench.profile.model import KernelCounters, Profile
from gsbench.profile.verdict import conflict_share, short


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(profile: Profile) -> list[Table]:
    """One table a part that is there."""
    found = []
    if profile.breakdown is not None:
        b = profile.breakdown
        head = (
            f"{b.calls} calls back to back: span {b.span_us:.1f} us, busy {b.busy_us:.1f}, gaps {b.gap_us:.1f}, "
            f"idle between {b.between_us:.1f}, host {b.host_us:.1f}"
        )
        whole = sum(k.total_us for k in b.kernels) or 1.0
        rows = [(short(k.name), f"{k.launches:g}", f"{k.total_us:.1f}", f"{k.total_us / whole:.0%}") for k in b.kernels[:12]]
        found.append(Table(head, ("kernel" if b.device == "cuda" else "operator", "a call", "us", "of the work"), rows))
    if profile.counters:
        named: list[tuple[str, Callable[[KernelCounters], str]]] = [
            ("duration us", lambda k: _number(k.duration_us)),
            ("DRAM read MB", lambda k: _number(k.dram_read, 1e6)),
            ("DRAM written MB", lambda k: _number(k.dram_write, 1e6)),
            ("L2 read MB", lambda k: _number(k.l2_read, 1e6)),
            ("L2 written MB", lambda k: _number(k.l2_write, 1e6)),
            ("L2 atomics and reductions MB", lambda k: _number(k.l2_reduced, 1e6)),
            ("DRAM % of peak", lambda k: _number(k.dram_pct)),
            ("L2 % of peak", lambda k: _number(k.l2_pct)),
            ("L1 and shared memory % of peak", lambda k: _number(k.l1_pct)),
            ("tensor pipe % of peak", lambda k: _number(k.tensor_pct)),
            ("issue slots %", lambda k: _number(k.issue_pct)),
            ("L2 hits %", lambda k: _number(k.l2_hit_pct)),
            ("occupancy % (allowed)", lambda k: f"{_number(k.occupancy_pct)} ({_number(k.occupancy_limit_pct)})"),
            ("registers a thread", lambda k: _number(k.registers)),
            ("shared memory KB a block", lambda k: _number(k.shared_bytes, 1024)),
            ("waves", lambda k: _number(k.waves)),
            ("bank conflicts, of wavefronts", _conflicts),
            ("top stalls, cycles an instruction", _stalls),
        ]  # fmt: skip
        for k in profile.counters:
            title = f"{short(k.name)} grid {k.grid} block {k.block}: {k.words}"
            cells = [(name, value(k)) for name, value in named]
            found.append(Table(title, ("counter", "value"), [cell for cell in cells if cell[1] not in ("", " ()")]))
    if profile.static:
        static_rows = [
            (k.name, str(k.launches), "x".join(map(str, k.grid)), str(k.threads), str(k.registers),
             str(k.stack if k.spills is None else k.spills), f"{k.shared_bytes / 1024:.1f}", str(k.blocks_per_sm),
             f"{k.occupancy_pct:.0f} %", k.limited_by)
            for k in profile.static
        ]  # fmt: skip
        columns = ("kernel", "launches", "grid", "threads", "registers", "spills B", "shared KB", "blocks an SM",
                   "occupancy", "limited by")  # fmt: skip
        found.append(Table(f"compiled for {profile.static[0].arch}", columns, static_rows))
    return found


def byte_table(profiles: Sequence[Profile]) -> Table:
    """Modelled beside measured DRAM bytes of every profile that has them."""
    rows = []
    for p in profiles:
        if p.bytes is not None:
            b, c = p.bytes, p.case
            point = f"B={c['batch']} D={c['dim']} L={c['labels']:,} K={c['fan_in']} G={c['group_size']} {c['dtype']}"
            rows.append(
                (str(c["implementation"]), str(c["pass"]), point, _number(b.modelled_read, 1e6), _number(b.dram_read, 1e6),
                 _number(b.modelled_write, 1e6), _number(b.dram_write, 1e6), f"{b.ratio:.3f}")
            )  # fmt: skip
    columns = ("implementation", "pass", "point", "modelled read MB", "DRAM read MB", "modelled written MB",
               "DRAM written MB", "measured / modelled")  # fmt: skip
    return Table("DRAM bytes of one call: the model beside ncu", columns, rows)


def counter_table(profiles: Sequence[Profile], least_us: float = 5.0) -> Table:
    """What Nsight Compute counted of every kernel that is longer than that, a line each."""
    rows = []
    for p in profiles:
        for k in p.counters:
            if (k.duration_us or 0.0) < least_us:
                continue
            shares = (k.dram_pct, k.l2_pct, k.l1_pct, k.tensor_pct, k.issue_pct)
            percent = ["" if share is None else f"{share:.0f}" for share in shares]
            case = f"{p.case['implementation']} {p.case['pass']}"
            rows.append((case, short(k.name), _number(k.duration_us), *percent, _conflicts(k), _stalls(k)))
    columns = ("case", "kernel", "us", "DRAM %", "L2 %", "L1, shared %", "tensor %", "issue %", "bank conflicts",
               "stalls, cycles an instruction")  # fmt: skip
    return Table("What Nsight Compute counted, in % of the card's peak", columns, rows)


def _conflicts(kernel: KernelCounters) -> str:
    share = conflict_share(kernel)
    return "" if share is None else f"{share:.1%}"


def _stalls(kernel: KernelCounters) -> str:
    waits = [s for s in kernel.stalls if s.reason not in ("selected", "not_selected")]
    return ", ".join(f"{s.reason} {s.cycles:.2f}" for s in waits[:3])


def heading(profile: Profile) -> str:
    timed = "not timed here" if profile.median_ms is None else f"{profile.median_ms:.4g} ms, cold"
    share = f", {profile.roof_share:.0%} of the roof" if profile.roof_share is not None else ""
    return f"{profile.title} on {profile.device}: {timed}{share}"


def markdown(profiles: Sequence[Profile]) -> str:
    """All of it; a section a profile, then the table of bytes."""
    parts = []
    for p in profiles:
        parts += [f"## {heading(p)}", *(f"- {sentence}" for sentence in p.verdict), ""]
        for table in tables(p):
            parts += [table.title, "", *markdown_lines(table), ""]
        parts += [f"- no {part}: {why}" for part, why in p.missing.items()] + [""]
    table = byte_table(profiles)
    if table.rows:
        parts += [f"## {table.title}", "", *markdown_lines(table), ""]
    return "\n".join(parts)


def markdown_lines(table: Table) -> list[str]:
    """The table as Markdown, without its title."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(table.header), "|" + "---|" * len(table.header), *(line(row) for row in table.rows)]


def _number(value: float | None, unit: float = 1.0) -> str:
    """At most four digits; empty for a missing one."""
    if value is None:
        return ""
    scaled = value / unit
    return f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:.4g}"
