"""The measuring process: owns the device, speaks JSON lines, and may die without taking the sweep along.

Requests on stdin:   {"do": "open"}   first, and once: until then the process only imports, and leaves the device alone
                     {"do": "ceilings", "dtypes": [...]}  {"do": "block", "cases": [...], "timing": {...}, "energy": bool}
                     "plants": [0, 0.02, ...] in a block: time each case with these slowdowns planted as well
                     "shared": true in a block: others measure in turns; after each {"event": "turn"} wait for {"do": "go"}
                     {"do": "partners", "count": 1}   processes of the same session that share the device, and are idle
                     {"do": "instrument", "cases": [...]}   what the timers themselves cost, and whether others agree
Events on stdout:    {"event": "hello", "device": {...}, ...}   once, when opened; or {"event": "refused", "reason": ...}
                     {"event": "at", "key": ..., "phase": ...}  before each risky step; silence is timed
                     {"event": "record", "record": {...}, "samples": [...], "plant": 0}
                     {"event": "turn", "alone": true}           of a shared block: before each round of samples, which must
                                                                have the device to itself; false: before work that need not
                     {"event": "alone", "keys": [...]}          out of memory beside others
                     {"event": "lost", "reason": ...}           a CUDA error; the process ends
                     {"event": "done", ...}                     the request is finished
What implementations print goes to stderr.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from gsbench.case import Case
from gsbench.implementations import all_implementations
from gsbench.measure import heap
from gsbench.measure.environment import probe_device
from gsbench.measure.nvml import Monitor


class Worker:
    def __init__(self, device: str, requests: IO[str], events: IO[str], partner: bool = False) -> None:
        """partner: another worker of the same session holds the device's lock."""
        self.device, self._requests, self._events, self._partner = device, requests, events, partner
        self._stop = False
        signal.signal(signal.SIGUSR1, self._request_stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def _request_stop(self, *_: Any) -> None:
        self._stop = True

    def emit(self, event: str, **data: Any) -> None:
        self._events.write(json.dumps({"event": event, **data}) + "\n")
        self._events.flush()

    def _pause(self, alone: bool) -> None:
        """Let another process have the device, until the parent says go. Ends with the parent."""
        self.emit("turn", alone=alone)
        if not next(self._requests, ""):
            raise SystemExit

    def say(self, case: Case, phase: str) -> None:
        self.emit("at", key=case.key, phase=phase)

    def run(self) -> None:
        self.emit("at", key="", phase="import torch")
        on_cuda = self.device.startswith("cuda")
        import_ahead(on_cuda)
        import torch

        if not next(self._requests, ""):
            return
        if not on_cuda:
            heap.keep()
        if on_cuda and not torch.cuda.is_available():
            self.emit("refused", reason="torch sees no CUDA device here (gsbench doctor says more)")
            return
        try:
            info = probe_device(self.device)
        except (AssertionError, RuntimeError) as e:
            self.emit("refused", reason=f"device {self.device}: {e}")
            return
        lock = None if self._partner else take_device(info.get("uuid") or self.device)
        if lock is None and not self._partner:
            self.emit("refused", reason=f"{info['name']} is being measured by another gsbench; wait for it to end")
            return
        from gsbench.measure.block import Bench

        device = torch.device(self.device)
        monitor = Monitor(info.get("uuid"))
        if on_cuda:
            torch.cuda.set_device(device)
            torch.zeros(1, device=device)
        monitor.adopt_own_context()
        named = {i.name: i for i in all_implementations()}
        bench = Bench(device, info, {}, monitor, named, self.say, lambda: self._stop)
        self.emit(
            "hello", device=info, cuda=torch.version.cuda, driver=monitor.driver(),
            nvml=None if monitor.available else monitor.why, threads=torch.get_num_threads(),
        )  # fmt: skip
        for line in self._requests:
            request = json.loads(line)
            if request["do"] == "ceilings":
                self._ceilings(bench, request)
            elif request["do"] == "partners":
                monitor.partners = request["count"]
                self.emit("done")
            elif request["do"] == "instrument":
                self._instrument(bench, request)
            elif not self._block(bench, request):
                return

    def _ceilings(self, bench: Any, request: dict[str, Any]) -> None:
        from gsbench.measure import ceilings

        if "known" in request:
            bench.ceilings = request["known"]
        else:
            self.emit("at", key="", phase="measure the card's ceilings")
            bench.ceilings = ceilings.measure(bench.device, request["dtypes"], bench.info["cache_bytes"])
        self.emit("done", ceilings=bench.ceilings)

    def _instrument(self, bench: Any, request: dict[str, Any]) -> None:
        from gsbench.measure import instrument

        cases = [Case.from_dict(data) for data in request["cases"]]
        agreement = []
        for case in cases:
            self.emit("at", key=case.key, phase="time it by other means")
            agreement += instrument.agreement(bench, case)
        self.emit("at", key="", phase="measure the timers")
        self.emit("done", timers=instrument.timers(bench), agreement=agreement)

    def _block(self, bench: Any, request: dict[str, Any]) -> bool:
        """False when the process must be replaced."""
        import torch

        from gsbench.measure.block import DeviceLost, TryAlone, measure
        from gsbench.suite import TimingSettings

        cases = [Case.from_dict(data) for data in request["cases"]]
        bench.plants = tuple(request.get("plants", ()))
        bench.pause = self._pause if request.get("shared") else lambda alone: None
        try:
            for outcome in measure(bench, cases, TimingSettings(**request["timing"]), request["energy"]):
                if isinstance(outcome, TryAlone):
                    self.emit("alone", keys=[case.key for case in outcome.cases])
                else:
                    self.emit("record", record=outcome.record.to_dict(), samples=outcome.samples, plant=outcome.plant)
        except DeviceLost as e:
            self.emit("lost", reason=str(e))
            return False
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        heap.give_back()
        self.emit("done")
        return True


def import_ahead(on_cuda: bool) -> None:
    """What every block needs, before the device is opened; of the compilers, what leaves the driver alone: Triton reads its
    half a gigabyte once a process to tell its version, and NVRTC is a large library (half a second each on an H200's host).
    """
    importlib.import_module("gsbench.measure.block")
    early = (("triton.language", ""), ("triton.runtime.cache", "triton_key"), ("cuda.core", ""),
             ("gskernels.cuda.jit", "nvrtc_version"))  # fmt: skip
    for name, once in early if on_cuda else ():
        with contextlib.suppress(Exception):  # the case that needs it says so
            module = importlib.import_module(name)
            if once:
                getattr(module, once)()


def take_device(name: str) -> IO[str] | None:
    """A lock that lives as long as this process; None while another holds it."""
    file = Path(tempfile.gettempdir()) / f"gsbench-{name.replace('/', '_')}.lock"
    lock = open(file, "a")  # noqa: SIM115 - held by its open file
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def main() -> None:
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of implementations must not mix with events
    sys.stdout = sys.stderr
    Worker(sys.argv[1], sys.stdin, events, partner="partner" in sys.argv[2:]).run()
    sys.stderr.flush()
    os._exit(0)  # every event is out; taking torch and the driver apart would only keep the next process waiting


if __name__ == "__main__":
    main()
