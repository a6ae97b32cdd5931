"""A baseline that somebody signed: who promoted which run, when and why, and the checksums of its files.

`baseline.json` lies in the run's folder. Schema history:
  1  first version
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import device_name, part
from gsbench.record import utc_now
from gsbench.store import LOCK, MANIFEST, RECORDS, SAMPLES, SAMPLES_LIVE, RunData, read_run

SCHEMA = 1
SIGNATURE = "baseline.json"
FILES = (MANIFEST, RECORDS, SAMPLES)
_BASELINES = Path("results/baselines")
_MAKERS = {"nvidia", "amd", "intel", "intel(r)", "geforce"}


def promote(run: Path, to: Path | None, why: str, who: str | None = None) -> Path:
    """Copy a finished run to `to` (results/baselines/<gpu>/<suite>) and sign it; an older baseline there is replaced,
    its signature kept as history. Returns the folder.

    Raises UserError, and changes nothing, where the run is unfit to be a baseline or the folder holds something else.
    """
    if not why.strip():
        raise UserError('--why "": say in a few words why this run is the new baseline')
    data = read_run(run)
    _fit(data)
    target = _BASELINES / _slug(device_name(data)) / _slug(suite_name(data)) if to is None else to
    before = _history(target)
    entry = {
        "who": who or _who(), "when": utc_now(), "why": why.strip(), "run": data.name,
        "commit": part(data.manifest, "environment").get("git_commit"), "cases": len(data.records),
    }  # fmt: skip
    same = target.exists() and target.resolve() == run.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for name in FILES:
                if (run / name).exists():
                    shutil.copyfile(run / name, staged / name)
            signature = {"schema": SCHEMA, "promoted": [entry, *before], "sha256": _checksums(staged)}
            (staged / SIGNATURE).write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")
            if same:  # signed where it lies
                os.replace(staged / SIGNATURE, target / SIGNATURE)
            else:
                staged.chmod(0o755)
                if target.exists():
                    shutil.rmtree(target)
                os.rename(staged, target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as e:
        raise UserError(f"{target}: cannot write the baseline here: {e.strerror or e}") from None
    return target


def verify(folder: Path) -> dict[str, Any] | None:
    """The latest promotion of this run, its checksums verified; None where nobody signed it.

    Raises UserError that names the file that is not as it was signed, and what to do.
    """
    signature = _signature(folder)
    if signature is None:
        return None
    expected, found = signature["sha256"], _checksums(folder)
    mend = f"restore it (git checkout -- {folder}), or promote another run"
    for name in sorted({*expected, *found}):
        if name not in found:
            raise UserError(f"{folder / name}: missing, though it was signed on {signature['promoted'][0]['when']}; {mend}")
        if expected.get(name) != found[name]:
            was = expected.get(name, "not there")[:12]
            raise UserError(
                f"{folder / name}: changed by hand since it was promoted (sha256 {found[name][:12]}, signed {was}); {mend}"
            )
    latest: dict[str, Any] = signature["promoted"][0]
    return latest


def suite_name(run: RunData) -> str:
    return str(part(run.manifest, "suite").get("name") or run.name)


def twice(run: RunData) -> list[str]:
    """Cases that are recorded more than once, in words."""
    seen: dict[str, int] = {}
    for record in run.records:
        seen[str(record.case)] = seen.get(str(record.case), 0) + 1
    return [case for case, count in seen.items() if count > 1]


def _fit(run: RunData) -> None:
    if (run.path / SAMPLES_LIVE).exists() or (run.path / LOCK).exists():
        raise UserError(f"{run.path}: not finished; continue it with gsbench run --resume {run.path}")
    if not any(record.timing for record in run.records):
        raise NothingMeasured(f"{run.path}: no case of it was timed, so nothing could be compared with it")
    if repeated := twice(run):
        first = f"{len(repeated)} cases are recorded twice, the first {repeated[0]}"
        raise UserError(f"{run.path / RECORDS}: {first}; measure again")
    environment = part(run.manifest, "environment")
    if environment.get("git_dirty"):
        raise UserError(f"{run.path}: measured with uncommitted changes, so no commit has its code; commit, measure again")


def _history(target: Path) -> list[dict[str, Any]]:
    if not target.exists():
        return []
    if not (target / MANIFEST).exists():
        if target.is_dir() and not any(target.iterdir()):
            return []
        raise UserError(f"{target}: exists and is no run; choose another folder with --to")
    signature = _signature(target)
    return [] if signature is None else list(signature["promoted"])


def _signature(folder: Path) -> dict[str, Any] | None:
    file = folder / SIGNATURE
    try:
        signature = json.loads(file.read_text(encoding="utf-8"))
        schema, promoted, sums = signature["schema"], signature["promoted"], signature["sha256"]
        fits = isinstance(sums, dict) and isinstance(promoted, list) and all(entry["when"] for entry in promoted)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: not a baseline's signature: {type(e).__name__}: {e}") from None
    if isinstance(schema, int) and schema > SCHEMA:
        raise NothingMeasured(f"{file}: schema {schema} is newer than this gsbench reads ({SCHEMA}); upgrade gsbench")
    if not fits or not promoted:
        raise UserError(f"{file}: not a baseline's signature: needs schema, promoted and sha256")
    return dict(signature)


def _checksums(folder: Path) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in FILES if (folder / n).exists()}


def _slug(name: str) -> str:
    """h200 from "NVIDIA H200", intel-xeon-processor from "Intel Xeon Processor"."""
    words = [word for word in name.lower().split() if word not in _MAKERS] or ["unknown"]
    return re.sub(r"[^a-z0-9._]+", "-", "-".join(words)).strip("-.") or "unknown"


def _who() -> str:
    """As git signs here; else the login."""
    try:
        done = subprocess.run(
            ["git", "var", "GIT_AUTHOR_IDENT"], capture_output=True, text=True, timeout=10, check=False
        )
        if done.returncode == 0:
            return done.stdout.rsplit(">", 1)[0].strip() + ">"
    except (OSError, subprocess.TimeoutExpired):
        pass
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
