"""The parent's end of a worker process: requests, events, and what its silence or death means. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gsbench.errors import NothingMeasured, UserError

START_TIMEOUT_S = 300.0  # importing torch from a cold disk, measuring a busy machine's ceilings
Event = dict[str, Any]


class WorkerGone(Exception):
    """The worker ended or was ended. status: "crashed" or "timeout"; key: the case it was at ("" for none)."""

    def __init__(self, status: str, reason: str, key: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.key = status, reason, key


def child_environment(library: Sequence[Path] = ()) -> dict[str, str]:
    """The environment of a process that imports what this one imports; `library`: folders to import from before all."""
    root = Path(__file__).parent.parent.parent
    paths = [str(root), str(root / "kernels")] if (root / "kernels").is_dir() else []
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, library), *paths, *inherited])}


class WorkerClient:
    """A worker process: it imports what it needs, and touches the device only once it is opened."""

    def __init__(
        self, device: str, log: Path, silence_s: float, library: Sequence[Path] = (), partner: bool = False
    ) -> None:
        """library: folders to import from before all others, such as those of another commit. partner: another worker
        of the same session holds the device."""
        self.log, self._silence_s, self._woken = log, silence_s, False
        self._key = ""
        self._log = open(log, "ab")  # noqa: SIM115 - held until close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gsbench.measure.worker", device, *(["partner"] if partner else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True,
            env=child_environment(library),
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._pump, daemon=True).start()
        self.hello: Event = {}

    def wake(self) -> None:
        """Let it take the device, without waiting for its hello."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(WorkerGone):  # `open` says so
                self._send({"do": "open"})

    def open(self) -> WorkerClient:
        """Let it take the device, and wait for its hello. Raises UserError / NothingMeasured if it refuses."""
        self.wake()
        try:
            while not self.hello:
                event = self._next(START_TIMEOUT_S)
                if event["event"] == "refused":
                    self.close()
                    raise NothingMeasured(event["reason"])
                if event["event"] == "hello":
                    self.hello = event
        except WorkerGone as e:
            raise UserError(f"the measuring process did not start: {e.reason}; its output is in {self.log}") from None
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, silence_s: float | None = None, **request: Any) -> Iterator[Event]:
        """Send a request; the iterator has its events, "done" or "lost" last; after "turn" the worker waits for `go`.

        silence_s: how long it may say nothing, if not as long as a case. Both raise WorkerGone.
        """
        self._send(request)
        return self._events(self._silence_s if silence_s is None else silence_s)

    def _events(self, silence_s: float) -> Iterator[Event]:
        while True:
            event = self._next(silence_s)
            yield event
            if event["event"] in ("done", "lost"):
                return

    def go(self) -> None:
        """End the wait that the worker announced by "turn". Raises WorkerGone."""
        self._send({"do": "go"})

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None

    def finish_soon(self) -> None:
        """Ask the worker to end the cases it is timing as soon as they have enough samples, and start no more."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGUSR1)

    def dismiss(self) -> None:
        """Tell the process that it may end, without waiting for it."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        self.dismiss()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._kill()
        self._log.close()

    def _next(self, silence_s: float) -> Event:
        try:
            line = self._lines.get(timeout=silence_s)
        except queue.Empty:
            self._kill()
            reason = f"no sign of life for {silence_s:g} s; the process was replaced"
            raise WorkerGone("timeout", reason, self._key) from None
        if line is None:
            raise self._gone()
        event: Event = json.loads(line)
        if event["event"] == "at":
            self._key = event["key"]
        return event

    def _gone(self) -> WorkerGone:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerGone("crashed", f"the measuring process {how}", self._key)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)
