"""Two sides in one session: who measures when, and what both are told. Sessions are stand-ins; no process is started."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gsbench.case import Case
from gsbench.errors import NothingMeasured
from gsbench.measure.interleaved import Interleaved, Side, only, take_turns
from gsbench.measure.session import Next
from gsbench.plan import Plan
from gsbench.suite import load_suite
from tests.gsbench import synthetic as s

CASES = [Case(name, "forward", s.point(batch=batch), "cold", "cuda") for batch in (1, 2, 3) for name in ("a/b", "a/c")]
CEILINGS = {"bandwidth_gbps": 1.0}


class StandIn:
    """A session that notes its turns in a common list."""

    def __init__(self, side: str, writer: Any, turns: list[str], opened_with: list[Any]) -> None:
        self.side, self.writer, self._turns, self._opened_with = side, writer, turns, opened_with
        self.partners: set[int] = set()

    def note_unsupported(self, plan: Plan, recorded: set[str]) -> None:
        pass

    def open_worker(self) -> None:
        self._opened_with.append(dict(self.writer.manifest["ceilings"]))
        self.writer.manifest["ceilings"] = CEILINGS

    def tell_of_partners(self, count: int) -> None:
        self.partners.add(count)

    def turns(self, block: list[Case]) -> Iterator[Next]:
        self._turns.append(f"{self.side}<")  # its process begins to compile and verify
        yield Next.WAIT
        for _ in range(2 + (self.side == "n")):  # the new side is steady one round later
            yield Next.ALONE
            self._turns.append(f"{self.side}{block[0].point.shape.batch}")
        yield Next.TOGETHER
        self._turns.append(f"{self.side}>")  # its process begins to check what the last calls left
        yield Next.WAIT

    def dismiss(self) -> None:
        pass

    def wake(self) -> None:
        self.woken = True

    def awake(self) -> None:
        assert self.woken


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    suite, resolved = load_suite("smoke", "cuda")
    sides = Side("base", {}, "f00d"), Side("new", {}, "beef")
    found = Interleaved(suite, resolved, "cuda:0", tmp_path, sides, SimpleNamespace())  # type: ignore[arg-type]
    turns, opened = [], []  # type: ignore[var-annotated]

    @contextlib.contextmanager
    def stand_in(side: Side, number: int, index: int) -> Any:
        folder = s.write(tmp_path / side.name / f"{number:02}", [s.timed("a/b", 1.0, s.point(batch=1))])
        writer = SimpleNamespace(path=folder, manifest={"ceilings": {}})
        yield StandIn(side.name[0], writer, turns, opened)

    monkeypatch.setattr(found, "_session", stand_in)
    return SimpleNamespace(replicate=found.replicate, turns=turns, opened=opened)


def test_sides_take_turns_and_neither_always_comes_first(session: Any) -> None:
    plan = Plan(CASES, [])
    for number in (1, 2):
        session.replicate(plan, number)
    blocks = [session.turns[i : i + 9] for i in range(0, len(session.turns), 9)]
    assert all({turn[1] for turn in (*block[:2], *block[-2:])} == {"<", ">"} for block in blocks)
    blocks = [block[2:-2] for block in blocks]
    assert all(len({turn[1:] for turn in block}) == 1 for block in blocks)  # a block at a time
    first, second = "bnbnn", "nbnbn"  # round by round; what is left over goes on alone
    assert ["".join(turn[0] for turn in block) for block in blocks] == [first, second] * 3  # the other in the next replicate
    assert [block[0][1:] for block in blocks[:3]] == [block[0][1:] for block in blocks[3:]]
    assert session.opened == [{}, CEILINGS, CEILINGS, CEILINGS]  # measured once


def test_nobody_measures_while_another_works() -> None:
    """The process of the first is replaced after its first round: it compiles again, and the second waits for it."""
    log: list[str] = []

    def scripted(name: str, script: str) -> Iterator[Next]:
        for letter in script:
            yield {"w": Next.WAIT, "a": Next.ALONE, "t": Next.TOGETHER}[letter]
            log.append(name + letter)

    take_turns([scripted("1", "wawatw"), scripted("2", "waaatw")])
    assert log == ["1w", "2w", "1a", "1w", "2a", "1a", "2a", "2a", "1t", "2t", "1w", "2w"]


def test_a_side_of_which_nothing_can_be_timed_ends_the_session(session: Any) -> None:
    with pytest.raises(NothingMeasured, match="base: no case could be timed, the first no case was reached"):
        session.replicate(Plan(CASES[2:], []), 1)


def test_a_part_of_the_plan() -> None:
    part = only(Plan(CASES, []), [CASES[3], CASES[0]])
    assert part.cases == [CASES[0], CASES[3]]


@pytest.mark.parametrize(("ms", "readings"), [(5.0, 6), (0.0, 2)])
def test_a_delay_waits_for_its_clock_and_returns_what_the_call_did(
    monkeypatch: pytest.MonkeyPatch, ms: float, readings: int
) -> None:
    import torch

    from gsbench.measure import delays

    clock = itertools.count()
    monkeypatch.setattr(delays.time, "perf_counter_ns", lambda: next(clock) * 1_000_000)  # a millisecond a reading
    call = delays.of(torch.device("cpu")).after(lambda: ("y",), ms)  # type: ignore[arg-type,return-value]
    assert call() == ("y",)
    assert next(clock) == readings
