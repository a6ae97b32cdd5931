"""Profiles on disk, beside their run. Imports no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gsbench.case import Case
from gsbench.errors import NothingMeasured, UserError
from gsbench.profile.model import SCHEMA, Profile

FOLDER = "profiles"
_PROFILE = TypeAdapter(Profile)


def stem(case: Case) -> str:
    """The name that the files of a case's profile share."""
    return f"{case.implementation.replace('/', '-')}-{case.pass_}-{case.key}"


def to_json(profile: Profile) -> str:
    return _PROFILE.dump_json(profile, indent=1).decode()


def write(run: Path, profile: Profile) -> Path:
    """Keep a profile beside its run, in one step; an earlier one of the case is replaced."""
    file = run / FOLDER / f"{stem(Case.from_dict(profile.case))}.json"
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(to_json(profile) + "\n")
    os.replace(temporary, file)
    return file


def read(run: Path) -> list[Profile]:
    """The profiles beside a run, by file name; none is fine. Raises as `read_file` does."""
    return [read_file(file) for file in files(run)]


def files(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob("*.json"))


def read_file(file: Path) -> Profile:
    """Raises UserError that names the file and what is wrong with it, NothingMeasured for one of a newer schema."""
    try:
        data = json.loads(file.read_text())
        if isinstance(data, dict) and isinstance(data.get("schema"), int) and data["schema"] > SCHEMA:
            newer = f"profile schema {data['schema']} is newer than this gsbench reads ({SCHEMA}); upgrade gsbench"
            raise NothingMeasured(f"{file}: {newer}")
        return _PROFILE.validate_python(data)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{file}: not a profile: {place}: {first['msg']}") from None
    except (ValueError, OSError) as e:
        raise UserError(f"{file}: not a profile: {e}") from None
