"""Profiles of cases: what is asked of whom, and what it means that something does not answer. Imports no torch."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gsbench import costs
from gsbench.case import Case
from gsbench.measure.client import child_environment
from gsbench.profile import figure, ncu, process, store
from gsbench.profile.breakdown import breakdown
from gsbench.profile.model import Bytes, Profile, StaticKernel, Timeline
from gsbench.profile.verdict import judged, verdict
from gsbench.record import Record, utc_now
from gskernels.table import Implementation

_TIMEOUT_S = 600.0
NO_GPU = "no GPU here"
_TIMELINE, _STATIC = TypeAdapter(Timeline), TypeAdapter(tuple[StaticKernel, ...])


@dataclass
class Job:
    """device: "cpu" or "cuda:N". compiled: cases that can only be compiled here. arch: what to compile for."""

    run: Path
    device: str
    device_name: str
    environment: Mapping[str, Any]
    command: Sequence[str]
    implementations: Mapping[str, Implementation]
    arch: str
    skip: Sequence[str] = ()
    say: Callable[[str], None] = lambda words: None

    @property
    def folder(self) -> Path:
        return self.run / store.FOLDER


def collect(job: Job, timed: Sequence[Record], compiled: Sequence[Case] = ()) -> list[Profile]:
    """Profile the cases of these records, and what the compiler says of the others; each is written beside the run."""
    job.folder.mkdir(exist_ok=True)
    cases = [record.case for record in timed]
    profiles = {record.key: _empty(job, record.case, record) for record in timed}
    profiles |= {case.key: replace(_empty(job, case), device=f"{job.arch}, compiled only") for case in compiled}
    if cases:
        _traces(job, cases, profiles)
        _counters(job, cases, profiles)
    for case in compiled:
        _lack(profiles, [case], NO_GPU, "breakdown", "counters", "bytes", "timeline")
    _static(job, [*cases, *compiled], profiles)
    for key, profile in profiles.items():
        profiles[key] = replace(profile, verdict=verdict(profile))
        store.write(job.run, profiles[key])
    return list(profiles.values())


def _empty(job: Job, case: Case, record: Record | None = None) -> Profile:
    cost = costs.cost(job.implementations[case.implementation], case.pass_, case.point.shape, case.point.dtype)
    timing = record.timing if record else None
    return Profile(
        key=case.key, case=case.to_dict(), written_utc=utc_now(), device=job.device_name, environment=dict(job.environment),
        command=tuple(job.command), modelled_read=cost.reads, modelled_write=cost.writes, useful_flops=cost.useful_flops,
        median_ms=timing.median_ms if timing else None, floor_ms=record.floor_ms if record else None,
        roof_share=record.roof_share if record else None,
    )  # fmt: skip


def _lack(profiles: dict[str, Profile], cases: Iterable[Case], why: str, *parts: str) -> None:
    for case in cases:
        profile = profiles[case.key]
        profiles[case.key] = replace(profile, missing={**dict.fromkeys(parts, why), **profile.missing})


# ---- torch.profiler and NVML ------------------------------------------------------------------------------------


def _traces(job: Job, cases: Sequence[Case], profiles: dict[str, Profile]) -> None:
    if {"breakdown", "timeline"} <= set(job.skip):
        _lack(profiles, cases, "left out by --skip", "breakdown", "timeline")
        return
    job.say("trace")
    answers, failed = _ask(job, "trace", cases)
    for case in cases:
        answer = answers.get(case.key, {})
        name = f"{store.stem(case)}.trace.json.gz"
        if answer.get("traced"):
            try:
                found = breakdown(json.loads(gzip.decompress((job.folder / name).read_bytes())), case.device)
                profiles[case.key] = replace(profiles[case.key], breakdown=found, trace_file=name)
            except (ValueError, OSError, KeyError) as e:
                _lack(profiles, [case], f"torch.profiler: {e}", "breakdown")
        else:
            _lack(profiles, [case], answer.get("why") or failed, "breakdown")
        if "timeline" in answer:
            timeline = _TIMELINE.validate_python(answer["timeline"])
            drawn = f"{store.stem(case)}.svg"
            figure.draw(timeline, profiles[case.key].title, job.folder / drawn)
            profiles[case.key] = replace(profiles[case.key], timeline=timeline, figure_file=drawn)
        else:
            _lack(profiles, [case], answer.get("no_timeline") or failed, "timeline")


# ---- Nsight Compute ---------------------------------------------------------------------------------------------


def _counters(job: Job, cases: Sequence[Case], profiles: dict[str, Profile]) -> None:
    parts = [part for part in ("counters", "bytes") if part not in job.skip]
    _lack(profiles, cases, "left out by --skip", *(part for part in ("counters", "bytes") if part in job.skip))
    if job.device == "cpu":
        _lack(profiles, cases, NO_GPU, *parts)
        return
    path = ncu.find()
    if path is None:
        _lack(profiles, cases, "ncu (Nsight Compute) is neither on PATH nor where CUDA installs it", *parts)
        return
    for part in parts:
        job.say(f"count {part}")
        metrics = ncu.COUNTERS if part == "counters" else ncu.BYTES
        with tempfile.TemporaryDirectory() as folder:
            program = _program(part, _request(job, cases, Path(folder)), Path(folder))
            try:
                counted = ncu.count(path, metrics, part == "bytes", program, child_environment(), _TIMEOUT_S)
            except ncu.NoCounters as e:
                _lack(profiles, cases, str(e), *parts[parts.index(part) :])
                return
        for case, rows, after in zip(cases, counted.calls, counted.after, strict=False):
            profile = profiles[case.key]
            if part == "counters":
                profiles[case.key] = replace(profile, counters=tuple(judged(ncu.counters(row)) for row in rows))
            else:
                profiles[case.key] = replace(profile, bytes=_bytes(profile, rows, after, counted.passes))
        _lack(profiles, cases[len(counted.calls) :], "ncu counted no kernel of it", part)


def _bytes(profile: Profile, rows: Sequence[ncu.Row], after: Sequence[ncu.Row], passes: int) -> Bytes:
    """What the flush behind the call writes is what the call had left in the cache; what it reads is its own buffer."""
    read, write = ncu.BYTES
    return Bytes(
        ncu.total(rows, read), ncu.total([*rows, *after], write), profile.modelled_read, profile.modelled_write, passes
    )


# ---- the compiler -----------------------------------------------------------------------------------------------


def _static(job: Job, cases: Sequence[Case], profiles: dict[str, Profile]) -> None:
    on_gpu = [case for case in cases if case.device == "cuda"]
    _lack(profiles, [case for case in cases if case.device != "cuda"], "it ran on the CPU", "static")
    if not on_gpu:
        return
    if "static" in job.skip:
        _lack(profiles, on_gpu, "left out by --skip", "static")
        return
    job.say("compile")
    answers, failed = _ask(job, "static", on_gpu)
    for case in on_gpu:
        answer = answers.get(case.key, {})
        if "kernels" in answer:
            profiles[case.key] = replace(profiles[case.key], static=_STATIC.validate_python(answer["kernels"]))
        else:
            _lack(profiles, [case], answer.get("why") or failed, "static")


# ---- the runner -------------------------------------------------------------------------------------------------


def _request(job: Job, cases: Sequence[Case], folder: Path) -> dict[str, Any]:
    return {
        "device": job.device, "cases": [case.to_dict() for case in cases], "folder": str(job.folder), "arch": job.arch,
        "answers": str(folder / "answers.jsonl"),
    }  # fmt: skip


def _program(what: str, request: Mapping[str, Any], folder: Path) -> list[str]:
    file = folder / "request.json"
    file.write_text(json.dumps(request))
    return [sys.executable, "-m", "gsbench.profile.runner", what, str(file)]


def _ask(job: Job, what: str, cases: Sequence[Case]) -> tuple[dict[str, dict[str, Any]], str]:
    """(answers by case key, why there is none for the others)."""
    with tempfile.TemporaryDirectory() as folder:
        request = _request(job, cases, Path(folder))
        try:
            done = process.run(_program(what, request, Path(folder)), child_environment(), _TIMEOUT_S)
            lines = done.stderr.strip().splitlines()
            why = f"the profiled process ended with exit code {done.returncode}: {lines[-1] if lines else 'it said nothing'}"
        except subprocess.TimeoutExpired:
            why = f"the profiled process took more than {_TIMEOUT_S:.0f} s and was ended"
        answers = Path(request["answers"])
        text = answers.read_text() if answers.exists() else ""
    found = [json.loads(line) for line in text.splitlines()]
    return {answer.pop("key"): answer for answer in found}, why
