"""Two sides in one session: replicate after replicate, two fresh processes that take turns round by round.

    <out>/base/01 ... <out>/new/01 ...    a run for each process, as `gsbench run` would leave it

The harness is one and the same on both sides; what may differ is the library that the worker imports (`Side.library`)
and the slowdowns that it plants (`Side.plants`). Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsbench.case import Case
from gsbench.errors import NothingMeasured
from gsbench.measure.client import WorkerClient
from gsbench.measure.session import Next, Session, View, new_manifest
from gsbench.plan import Plan
from gsbench.record import SCHEMA
from gsbench.store import RunWriter, read_run
from gsbench.suite import Suite


@dataclass(frozen=True)
class Side:
    """One of the two. environment: what its manifests say of versions and commit; fingerprint: of its code."""

    name: str
    environment: dict[str, Any]
    fingerprint: str
    library: tuple[Path, ...] = ()
    plants: dict[float, str] | None = None  # share of its own time -> folder; {} for a delay of nothing behind each call


@dataclass
class Interleaved:
    """A session of two sides. `replicates` may be called again, of all cases or of some."""

    suite: Suite
    resolved: dict[str, Any]
    device: str
    out: Path
    sides: tuple[Side, Side]
    view: View
    command: Sequence[str] = ()
    ceilings: dict[str, Any] = field(default_factory=dict)  # the card's, measured by the first process if not known
    _started: dict[tuple[int, int], WorkerClient] = field(default_factory=dict)  # (replicate, side) -> its process

    def replicates(self, plan: Plan, numbers: Sequence[int]) -> Iterator[int]:
        """Measure replicate after replicate; each number is yielded before its processes begin.

        Raises UserError or NothingMeasured where a side's process does not start.
        """
        try:
            for position, number in enumerate(numbers):
                if (number, 0) not in self._started:
                    self.start(numbers[position:])
                yield number
                self.replicate(plan, number)
        finally:
            self.close()

    def replicate(self, plan: Plan, number: int) -> None:
        """One process a side over the whole plan, block after block: a round of samples of A, then of B, then of A ...

        What drifts in seconds hits both alike. The one that began the last block is second in the next. What is not
        timed (compilation, verification) both do at the same time.
        """
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(self._session(side, number, i)) for i, side in enumerate(self.sides)]
            for session in sessions:
                session.note_unsupported(plan, set())
                session.wake()
            for session in sessions:
                session.awake()
            for session in sessions:
                self._open(session)
            self._adopt(sessions)
            for turn, block in enumerate(plan.blocks()):
                take_turns([one.turns(block) for one in (sessions if (turn + number) % 2 else sessions[::-1])])
                self._adopt(sessions)
            for side, session in zip(self.sides, sessions, strict=True):
                session.dismiss()
                self._something_timed(side, session, plan)

    def close(self) -> None:
        """End the processes that were started and not used."""
        for worker in self._started.values():
            worker.dismiss()
        for worker in self._started.values():
            worker.close()
            worker.log.unlink(missing_ok=True)
        self._started.clear()

    def start(self, numbers: Sequence[int]) -> None:
        """Let the processes of the next replicates import side by side, before anything is timed, as far as there are
        cores for it. They leave the device alone, and sit idle until their replicate begins."""
        room = (os.cpu_count() or 1) // len(self.sides)
        for number in numbers[: max(1, room)]:
            for i, side in enumerate(self.sides):
                log = self.out / f"{side.name}-{number:02}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                self._started[number, i] = WorkerClient(
                    self.device, log, self.suite.timing.timeout_s, side.library, partner=i > 0
                )

    def _something_timed(self, side: Side, session: Session, plan: Plan) -> None:
        """Raises NothingMeasured with the first reason, before more processes find out the same."""
        planned = {case.key for case in plan.cases}
        records = [record for record in read_run(session.writer.path).records if record.key in planned]
        if not any(record.timing for record in records):
            why = f"{records[0].status}: {records[0].reason} ({records[0].case})" if records else "no case was reached"
            raise NothingMeasured(f"{side.name}: no case could be timed, the first {why}")

    @contextlib.contextmanager
    def _session(self, side: Side, number: int, index: int) -> Iterator[Session]:
        names = {0.0: side.name, **(side.plants or {})}
        with contextlib.ExitStack() as stack:
            writers = {plant: stack.enter_context(self._writer(side, name, number)) for plant, name in names.items()}
            session = Session(
                self.suite, self.device, writers[0.0], self.view, library=side.library, partner=index > 0,
                plants={} if side.plants is None else writers, started=self._started.pop((number, index), None),
            )  # fmt: skip
            try:
                yield session
            finally:
                session.close()
                for writer in writers.values():  # what the worker told of the device and the card's ceilings
                    writer.manifest |= {k: session.writer.manifest[k] for k in ("device", "environment", "ceilings")}
                    writer.save_manifest()

    def _writer(self, side: Side, name: str, number: int) -> RunWriter:
        folder = self.out / name / f"{number:02}"
        manifest = new_manifest(
            f"{name}-{number:02}", self.resolved, dict(side.environment), side.fingerprint, list(self.command), SCHEMA
        )
        return RunWriter.create(folder, manifest | {"target": self.device, "only": []})

    def _open(self, session: Session) -> None:
        """Wait for the worker; the card's ceilings are measured once in a session."""
        session.writer.manifest["ceilings"] = dict(self.ceilings)
        session.open_worker()
        self.ceilings = session.writer.manifest["ceilings"]

    def _adopt(self, sessions: Sequence[Session]) -> None:
        """Each worker is told of the other, which sits on the card but is idle; again after one was replaced."""
        for session in sessions:
            session.tell_of_partners(len(sessions) - 1)


def take_turns(sessions: Sequence[Iterator[Next]]) -> None:
    """Resume each until it is over: who measures does it alone, one after the other; all else they do together."""
    said = {i: next(one, None) for i, one in enumerate(sessions)}
    last = -1
    while running := [i for i, what in said.items() if what is not None]:
        waiting = [i for i in running if said[i] is Next.WAIT]
        alone = [i for i in running if said[i] is Next.ALONE]
        if not waiting and alone:
            waiting = [next((i for i in alone if i > last), alone[0])]
            last = waiting[0]
        for i in waiting or running:
            said[i] = next(sessions[i], None)


def only(plan: Plan, cases: Sequence[Case]) -> Plan:
    """The plan of these cases only."""
    wanted = set(cases)
    return Plan([case for case in plan.cases if case in wanted], [])
