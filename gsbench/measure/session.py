"""A sweep from plan to stored records. Imports no torch: the worker process does the measuring."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from gsbench.case import Case
from gsbench.measure import environment
from gsbench.measure.client import START_TIMEOUT_S, WorkerClient, WorkerGone
from gsbench.plan import Plan
from gsbench.record import Record, utc_now
from gsbench.store import RunWriter, Sample
from gsbench.suite import Suite

_MOST_REPLACEMENTS = 50


class Next(Enum):
    """What a session does when it is resumed (`Session.turns`)."""

    WAIT = "waits for its process, which does what need not have the device to itself"
    ALONE = "measures, and needs the device to itself"
    TOGETHER = "lets its process go on with what need not"


class View(Protocol):
    """What shows a sweep while it runs."""

    def at(self, case: Case | None, phase: str) -> None: ...
    def recorded(self, record: Record) -> None: ...


@dataclass
class Session:
    """Measures a plan into a run. `interrupted` and `out_of_budget` say how it ended."""

    suite: Suite
    device: str
    writer: RunWriter
    view: View
    budget_s: float | None = None
    extra_validity: tuple[str, ...] = ()
    force: bool = False
    library: tuple[Path, ...] = ()  # folders that the worker imports from first
    partner: bool = False  # a worker of the same session holds the device
    plants: dict[float, RunWriter] = field(default_factory=dict)  # slowdowns to plant as well, and where they go
    started: WorkerClient | None = None  # a process that has its imports done, to open when the first is needed
    interrupted: bool = False
    out_of_budget: bool = False
    _worker: WorkerClient | None = None
    _told: WorkerClient | None = None
    _replacements: int = 0
    _began: float = field(default_factory=time.monotonic)

    def run(self, plan: Plan, recorded: set[str]) -> None:
        """Every case of the plan whose key is not in `recorded`; each is on disk before the next begins."""
        previous = signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            self.note_unsupported(plan, recorded)
            for block in plan.blocks():
                todo = [case for case in block if case.key not in recorded]
                if todo and not self._over():
                    self.measure(todo)
                if self._over():
                    break
        finally:
            signal.signal(signal.SIGINT, previous)
            self.close()

    def note_unsupported(self, plan: Plan, recorded: set[str]) -> None:
        for case, reason in plan.unsupported:
            if case.key not in recorded:
                self._store(Record(case, "unsupported", reason, finished_utc=utc_now()), [])

    def close(self) -> None:
        """End the worker; the next block would start another."""
        for worker in (self._worker, self.started):
            if worker is not None:
                worker.close()
        self._worker = self.started = None

    def dismiss(self) -> None:
        """Tell the worker that it may end; `close` waits for it."""
        if self._worker is not None:
            self._worker.dismiss()

    def open_worker(self) -> WorkerClient:
        """The worker, started and told the ceilings (measured by the first one and kept in the manifest)."""
        if self._worker is None:
            self.view.at(None, "start the measuring process")
            self._worker = self._new_worker().open()
            manifest = self.writer.manifest
            self._settle_device(self._worker.hello)
            known = {"known": manifest["ceilings"]} if manifest.get("ceilings") else {}
            for event in self._worker.request(START_TIMEOUT_S, do="ceilings", dtypes=self.suite.dtypes, **known):
                if event["event"] == "at":
                    self.view.at(None, event["phase"])
                else:
                    manifest["ceilings"] = event["ceilings"]
            self.writer.save_manifest()
        return self._worker

    def _new_worker(self) -> WorkerClient:
        log = self.writer.path / "worker.log"
        worker, self.started = self.started, None
        if worker is None:
            return WorkerClient(self.device, log, self.suite.timing.timeout_s, self.library, self.partner)
        worker.log = worker.log.rename(log)
        return worker

    def wake(self) -> None:
        """Start the worker, and let it take the device, without waiting for it; `open_worker` does."""
        if self._worker is None:
            self.started = self._new_worker()
            self.started.wake()

    def awake(self) -> None:
        """Wait until the worker that was woken has the device. Raises UserError / NothingMeasured if it refuses."""
        if self.started is not None:
            self.started.open()

    def tell_of_partners(self, count: int) -> None:
        """So many processes of this session share the device and are idle while this one measures. Once a worker."""
        worker = self.open_worker()
        if self._told is not worker:
            self._told = worker
            try:
                for _ in worker.request(do="partners", count=count):
                    pass
            except WorkerGone:  # the next block starts another
                self._worker = None

    def _settle_device(self, hello: dict[str, Any]) -> None:
        """Note where the run is measured. Raises UserError where it was begun elsewhere, unless forced."""
        manifest = self.writer.manifest
        device = {k: v for k, v in hello["device"].items() if k != "uuid"}
        if not manifest.get("device"):
            manifest["device"] = device
            manifest["environment"] |= {"cuda": hello["cuda"], "driver": hello["driver"], "nvml": hello["nvml"] or "ok"}
            return
        before = {"device": manifest["device"]["name"], **{k: manifest["environment"].get(k) for k in ("cuda", "driver")}}
        now = {"device": device["name"], "cuda": hello["cuda"], "driver": hello["driver"]}
        changed = environment.mixes(self.writer.path, before, now, self.force)
        if changed and "resumed_elsewhere" not in self.extra_validity:
            self.extra_validity = (*self.extra_validity, "resumed_elsewhere")

    def measure(self, cases: list[Case]) -> None:
        """One point: whatever happens to the worker, every case ends with a record."""
        for _ in self.turns(cases, shared=False):
            pass

    def turns(self, cases: list[Case], shared: bool = True) -> Iterator[Next]:
        """As `measure`, a round of samples at a time; yields what it will do next, and waits to be resumed."""
        todo = {case.key: case for case in cases}
        alone: list[Case] = []
        while todo and not self._over():
            try:
                events = self._request(list(todo.values()), shared)
                yield Next.WAIT
                for event in events:
                    if event["event"] == "turn":
                        yield Next.ALONE if event["alone"] else Next.TOGETHER
                        assert self._worker is not None
                        self._worker.go()
                        if not event["alone"]:
                            yield Next.WAIT
                    else:
                        self._handle(event, todo, alone)
                    if self._over() and self._worker is not None:
                        self._worker.finish_soon()
            except WorkerGone as gone:
                self._worker = None
                self._replacements += 1
                if gone.key not in todo or self._replacements > _MOST_REPLACEMENTS:
                    gone.key = next(iter(todo))  # died before it named a case: the first one's
                self._store(Record(todo.pop(gone.key), gone.status, gone.reason, finished_utc=utc_now()), [])
        for case in alone:
            if not self._over():
                yield from self.turns([case], shared)

    def _request(self, cases: list[Case], shared: bool) -> Any:
        timing = self.suite.timing.model_dump()
        return self.open_worker().request(
            do="block", cases=[case.to_dict() for case in cases], timing=timing, energy=self.suite.energy,
            plants=sorted(self.plants), shared=shared,
        )  # fmt: skip

    def _handle(self, event: dict[str, Any], todo: dict[str, Case], alone: list[Case]) -> None:
        kind = event["event"]
        if kind == "at":
            self.view.at(todo.get(event["key"]), event["phase"])
        elif kind == "record":
            record = Record.from_dict(event["record"])
            samples = [(int(r), float(ms)) for r, ms in event["samples"]]
            if event["plant"]:
                self.plants[event["plant"]].add(record, samples)
                return
            todo.pop(record.key, None)
            self._store(record, samples)
        elif kind == "alone":
            alone += [todo.pop(key) for key in event["keys"]]
        elif kind == "lost" and self._worker is not None:
            self._worker.close()
            self._worker = None
        elif kind == "done" and not self._over():
            for case in list(todo.values()):  # the worker was through with the block and said nothing of these
                todo.pop(case.key)
                self._store(Record(case, "error", "the worker left this case out", finished_utc=utc_now()), [])

    def _store(self, record: Record, samples: list[Sample]) -> None:
        if self.extra_validity:
            record = Record(**{**vars(record), "validity": record.validity + self.extra_validity})
        self.writer.add(record, samples)
        self.view.recorded(record)

    def _over(self) -> bool:
        self.out_of_budget = self.budget_s is not None and time.monotonic() - self._began > self.budget_s
        return self.interrupted or self.out_of_budget

    def _on_interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        if self._worker is not None:
            self._worker.finish_soon()


def new_manifest(name: str, suite: dict[str, Any], environment: dict[str, Any], fingerprint: str, command: list[str],
                 schema: int) -> dict[str, Any]:  # fmt: skip
    """A manifest before the first worker has filled in its device and ceilings."""
    return {
        "schema": schema, "run": name, "suite": suite, "created_utc": utc_now(), "command": command, "device": {},
        "environment": environment, "ceilings": {}, "scaled_for_cpu": suite["scaled_for_cpu"],
        "code_fingerprint": fingerprint, "resumed": [], "validity": [],
    }  # fmt: skip


def run_name(suite: str, device: str) -> str:
    """<suite>-<device>-<utc>"""
    return f"{suite}-{device.replace(':', '')}-{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%SZ')}"
