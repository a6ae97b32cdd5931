"""Runs of a grid, one after the other or several at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from gsbench.errors import UserError
from gsbench.train import config, runs


@dataclass(frozen=True)
class Job:
    """A run in its folder. test: whether it ends with metrics on the test documents."""

    run: Path
    settings: config.Config
    test: bool


class Pool:
    """Starts jobs and hands out their results. With one at a time a job runs in this process when its result is asked for.

    Several processes share the cores: each has its part of them; and the GPUs: each has the next one, in turns. Leaving by
    an exception ends them; their runs are gone on with, or begun again, by whoever asks for the same jobs.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        self._others = set(multiprocessing.active_children())
        if self._jobs > 1:
            context = multiprocessing.get_context("spawn")
            threads = max(1, (os.cpu_count() or 1) // self._jobs)
            self._pool = ProcessPoolExecutor(self._jobs, context, _begin, (threads, context.Value("i", 0)))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:
                for child in set(multiprocessing.active_children()) - self._others:
                    child.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def devices(self) -> int:
        """That its processes share."""
        import torch

        return max(1, min(self._jobs, torch.cuda.device_count()))

    def start(self, job: Job) -> Job | Future[dict[str, Any]]:
        return job if self._pool is None else self._pool.submit(trained, job, True)

    def result(self, started: Job | Future[dict[str, Any]]) -> dict[str, Any]:
        """What result.json of the run holds; {"diverged": why} for one that did."""
        try:
            found = trained(started) if isinstance(started, Job) else started.result()
        except BrokenProcessPool:
            why = "a run's process ended without a word (killed, or out of memory)"
            raise UserError(f"{why}; the same command goes on from what is done; try fewer --jobs") from None
        if self._pool is not None and "name" in found:
            metrics = found.get("test") or found.get("validation") or {}
            told = ", ".join(f"{name} {metrics[name]:.1f}" for name in ("P@1", "P@5", "PSP@5") if name in metrics)
            print(f"{found['name']}: {'test' if 'test' in found else 'validation'} {told}", flush=True)
        return found


def trained(job: Job, quiet: bool = False) -> dict[str, Any]:
    """The result of a run: read where it is done, from its newest checkpoint where there is one, else from the start.

    {"diverged": why} where it did. Raises UserError where the folder holds a run of other settings.
    """
    from gsbench.train import loop

    run, settings = job.run, job.settings
    options: dict[str, Any] = {"quiet": True} if quiet else {}
    if not job.test:
        options["test"] = False
    try:
        if not run.exists():
            return loop.train(settings, runs.create(run, settings), **options)
        if runs.settings_of(run) != settings:
            raise UserError(f"{run}: holds a run of other settings; choose another --out, or remove it")
        return runs.result_of(run) or loop.train(settings, run, resume=True, **options)
    except loop.Diverged as e:
        return {"diverged": str(e)}


def _begin(threads: int, begun: Synchronized[int]) -> None:
    """In a process of the pool, the one after `begun` others. An interrupt is the parent's business, who ends the pool."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
