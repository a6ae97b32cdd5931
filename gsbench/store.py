"""Run folders: durable while they are written, readable without torch.

    <run>/manifest.json    suite as resolved, environment, device, measured ceilings; replaced atomically
    <run>/records.jsonl    one record a line, flushed to disk as each case ends
    <run>/samples.jsonl    raw samples of a run in progress; folded into samples.parquet when it ends or is resumed
    <run>/samples.parquet  every raw sample: key, block_round, sample, ms
    <run>/worker.log       what the measuring process printed
    <run>/.lock            held by the one writer
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gsbench.errors import NothingMeasured, UserError
from gsbench.record import SCHEMA, NewerSchema, Record

MANIFEST, RECORDS, SAMPLES_LIVE, SAMPLES, LOCK = (
    "manifest.json", "records.jsonl", "samples.jsonl", "samples.parquet", ".lock",
)  # fmt: skip
Sample = tuple[int, float]  # (round of the interleaved block, milliseconds)


@dataclass(frozen=True)
class RunData:
    """A run as read back."""

    path: Path
    manifest: dict[str, Any]
    records: list[Record]

    @property
    def name(self) -> str:
        return str(self.manifest.get("run", self.path.name))


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, or every run below it, sorted. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / MANIFEST).exists():
        return [path]
    runs = sorted(manifest.parent for manifest in path.rglob(MANIFEST)) if path.is_dir() else []
    if not runs:
        raise UserError(f"{path}: no run here (a run is a folder with a {MANIFEST})")
    return runs


def read_run(path: Path) -> RunData:
    """A run's manifest and records. Raises UserError that names the file and line of what cannot be read, NothingMeasured
    for files of a newer schema."""
    return RunData(path, _read_manifest(path), _read_records(path / RECORDS))


def read_samples(path: Path) -> Any:
    """Raw samples as a pandas frame: key, block_round, sample, ms (empty where none were kept), those of a run in progress
    included. Raises UserError that names the file if it cannot be read."""
    import pandas as pd

    frames = []
    if (path / SAMPLES).exists():
        try:
            frames.append(pd.read_parquet(path / SAMPLES)[["key", "block_round", "sample", "ms"]])
        except (OSError, ValueError, KeyError) as e:  # pyarrow's errors are ValueErrors
            raise UserError(f"{path / SAMPLES}: cannot be read: {' '.join(str(e).split())}") from None
    if (path / SAMPLES_LIVE).exists():
        frames += _live_samples(path / SAMPLES_LIVE)
    if not frames:
        return pd.DataFrame({"key": [], "block_round": [], "sample": [], "ms": []})
    return pd.concat(frames, ignore_index=True)


def _live_samples(file: Path) -> list[Any]:
    import pandas as pd

    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:  # its run has just ended
        return []
    frames = []
    for line in lines:
        if not line.endswith(b"\n"):  # cut off while being written
            break
        row = json.loads(line)
        rounds, count = pd.array(row["block_round"], dtype="int32"), len(row["ms"])
        sample = pd.RangeIndex(count).astype("int32")
        frames.append(pd.DataFrame({"key": row["key"], "block_round": rounds, "sample": sample, "ms": row["ms"]}))
    return frames


def being_written(path: Path) -> bool:
    """Whether some gsbench holds the lock of this run now."""
    try:
        with open(path / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as e:
        return e.errno in (errno.EAGAIN, errno.EACCES)
    return False


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not a run folder (no {MANIFEST})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{file}: not valid JSON: {e}") from None
    return check_schema(manifest, file, SCHEMA, "gsbench manifest")


def check_schema(data: object, file: Path, newest: int, what: str) -> dict[str, Any]:
    """The document, if it has a schema that is read here. Raises UserError without one, NothingMeasured for a newer one."""
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise UserError(f"{file}: no schema version; this is not a {what}")
    if data["schema"] > newest:
        newer = f"schema {data['schema']} is newer than this gsbench reads ({newest}); upgrade gsbench"
        raise NothingMeasured(f"{file}: {newer}")
    return data


def _read_records(file: Path) -> list[Record]:
    if not file.exists():
        return []
    with uncollected():
        return _parsed(file)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: passes over thousands of records, none of them garbage, took a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _parsed(file: Path) -> list[Record]:
    lines = file.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_dict(json.loads(line)))
        except NewerSchema as e:
            raise NothingMeasured(f"{file}:{number}: {e}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            if number == len(lines):  # no newline at its end: cut off while being written
                continue
            raise UserError(f"{file}:{number}: not a record: {type(e).__name__}: {e}") from None
    return records


class RunWriter:
    """The one writer of a run folder. Use as a context manager; closing folds the raw samples."""

    def __init__(self, path: Path, manifest: dict[str, Any], lock: IO[str]) -> None:
        self.path, self.manifest, self._lock = path, manifest, lock

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> RunWriter:
        """A new run folder. Raises UserError where it exists or cannot be written."""
        try:
            path.mkdir(parents=True, exist_ok=False)
            writer = cls(path, manifest, _take_lock(path))
            writer.save_manifest()
        except FileExistsError:
            raise UserError(f"{path}: exists already; resume it with --resume {path}, or choose another --out") from None
        except OSError as e:
            why = f"{path}: cannot write results here: {e.strerror or e}; choose another folder with --out"
            raise UserError(why) from None
        return writer

    @classmethod
    def resume(cls, path: Path) -> RunWriter:
        """Reopen a run: take the lock, cut off a half-written line, fold left-over samples."""
        manifest = _read_manifest(path)
        writer = cls(path, manifest, _take_lock(path))
        _repair(path / RECORDS)
        _repair(path / SAMPLES_LIVE)
        writer._fold_samples()
        return writer

    def save_manifest(self) -> None:
        temporary = self.path / (MANIFEST + ".new")
        temporary.write_text(json.dumps(self.manifest, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, self.path / MANIFEST)

    def add(self, record: Record, samples: list[Sample]) -> None:
        """Append a case; on disk when this returns. Raises UserError (nothing half-written) when the disk is full."""
        if samples:
            row = {"key": record.key, "block_round": [r for r, _ in samples], "ms": [ms for _, ms in samples]}
            self._append(SAMPLES_LIVE, json.dumps(row))
        self._append(RECORDS, json.dumps(record.to_dict(), sort_keys=True, allow_nan=False))

    def _append(self, name: str, line: str) -> None:
        file = self.path / name
        with open(file, "ab") as stream:
            before = stream.tell()
            try:
                _write_durably(stream, line.encode() + b"\n")
            except OSError as e:
                os.truncate(file, before)
                what = "the disk is full" if e.errno == errno.ENOSPC else e.strerror or str(e)
                how = f"every case so far is kept, continue with: gsbench run --resume {self.path}"
                raise UserError(f"{file}: cannot write: {what}; {how}") from None

    def _fold_samples(self) -> None:
        live = self.path / SAMPLES_LIVE
        if not live.exists():
            return
        recorded = {record.key for record in _read_records(self.path / RECORDS)}
        samples = read_samples(self.path)
        samples = samples[samples.key.isin(recorded)]  # killed between samples and their record: the case is measured again
        if len(samples):
            temporary = self.path / (SAMPLES + ".new")
            samples.to_parquet(temporary, compression="zstd", index=False)
            os.replace(temporary, self.path / SAMPLES)
        live.unlink()

    def close(self) -> None:
        try:
            self._fold_samples()
        finally:
            self._lock.close()
            (self.path / LOCK).unlink(missing_ok=True)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_durably(stream: IO[bytes], data: bytes) -> None:
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())


def _take_lock(path: Path) -> IO[str]:
    try:
        lock = open(path / LOCK, "w")  # noqa: SIM115 - held by its open file
    except OSError as e:
        raise UserError(f"{path}: cannot write results here: {e.strerror or e}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"{path}: another gsbench is writing this run; wait for it to end") from None
    return lock


def _repair(file: Path) -> None:
    """Cut a file back to its last complete line."""
    if not file.exists():
        return
    data = file.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(file, data.rfind(b"\n") + 1)
