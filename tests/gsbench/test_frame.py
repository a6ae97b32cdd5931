from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gsbench import frame
from gsbench.errors import UserError
from tests.gsbench import synthetic as s

PROMISED = (
    "run implementation family backend pass batch dim labels fan_in group_size pattern dtype device world_size mode "
    "status verified median_ms ci_low_ms ci_high_ms samples floor_ms roof_share useful_flops min_bytes "
    "peak_extra_bytes modelled_extra_bytes layer_bytes energy_mj validity config binary_hash reason method block"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [
        s.timed("group_shared/triton", 0.5, floor_ms=0.25, roof_share=0.5, peak_extra_bytes=2**33, energy_mj=1.5,
                validity=("power cap", "shared card"), config={"BLOCK": 64}, binary_hash="ab12"),
        s.failed("fixed_fan_in/csr", "unsupported", "fp32 only", pass_="grad_weight"),
    ]  # fmt: skip
    return s.write(tmp_path / "results" / "first", records)


def test_one_row_a_case_with_every_promised_column(run: Path) -> None:
    cases = frame.load(run)
    assert len(cases) == 2
    assert not set(PROMISED.split()) - set(cases.columns)
    timed = cases.iloc[0]
    assert (timed.run, timed.family, timed.backend, timed["pass"]) == ("first", "group_shared", "triton", "forward")
    assert (timed.batch, timed.labels, timed.fan_in, timed.group_size) == (256, 131072, 32, 64)
    assert (timed.median_ms, timed.roof_share, timed.peak_extra_bytes) == (0.5, 0.5, 2**33)
    assert timed.ci_low_ms == pytest.approx(0.499)
    assert (timed.validity, json.loads(timed.config)) == ("power cap; shared card", {"BLOCK": 64})
    assert timed.device_name == "Made-up GPU"


def test_a_failed_case_has_missing_figures_and_a_reason(run: Path) -> None:
    failed = frame.load(run).query("status != 'ok'").iloc[0]
    assert (failed.status, failed.reason, failed.method) == ("unsupported", "fp32 only", "")
    assert pd.isna(failed.median_ms)
    assert pd.isna(failed.samples)
    assert pd.isna(failed.capped)
    assert not failed.verified


def test_column_types_do_not_depend_on_the_data(run: Path, tmp_path: Path) -> None:
    empty = frame.load(s.write(tmp_path / "empty", []))
    assert len(empty) == 0
    assert dict(empty.dtypes) == dict(frame.load(run).dtypes)
    assert str(empty.dtypes["samples"]) == "Int64"
    assert str(empty.dtypes["batch"]) == "int64"
    assert str(empty.dtypes["median_ms"]) == "float64"


def test_a_later_record_of_a_case_wins(tmp_path: Path) -> None:
    case = "group_shared/triton"
    records = [s.failed(case, "oom", "no memory"), s.timed("dense/torch", 2.0), s.timed(case, 0.5), s.timed(case, 0.7)]
    cases = frame.load(s.write(tmp_path / "again", records))
    assert cases.set_index("implementation").median_ms.to_dict() == {case: 0.7, "dense/torch": 2.0}


def test_a_folder_or_a_list_of_runs_reads_each_once(run: Path) -> None:
    second = s.write(run.parent / "deeper" / "second", [s.timed("dense/torch", 1.0)])
    assert sorted(frame.load(run.parent).run) == ["first", "first", "second"]
    assert sorted(frame.load([second, run.parent, str(run)]).run) == ["first", "first", "second"]


def test_the_same_case_in_two_runs_is_two_rows(run: Path) -> None:
    s.write(run.parent / "second", [s.timed("group_shared/triton", 0.6)])
    cases = frame.load(run.parent).query("implementation == 'group_shared/triton'")
    assert list(cases.median_ms) == [0.5, 0.6]
    assert cases.key.nunique() == 1


def test_a_half_written_last_line_is_no_fault(run: Path) -> None:
    with open(run / "records.jsonl", "a") as file:
        file.write('{"case": {"implem')
    assert len(frame.load(run)) == 2


def test_bad_input_is_one_clear_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        frame.load(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no run here"):
        frame.load(tmp_path / "bare")
    lines = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text("{broken\n" + lines)
    with pytest.raises(UserError, match=r"records\.jsonl:1"):
        frame.load(run)
    (run / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="newer"):
        frame.load(run)


def test_columns_are_documented_once_and_named_once() -> None:
    names = [column.name for column in frame.COLUMNS]
    assert len(names) == len(set(names))
    assert all(column.meaning and column.kind in frame.DTYPES for column in frame.COLUMNS)
    assert all(f" {name} " in (frame.load.__doc__ or "") for name in names)
    assert frame.column_table().count("\n") == len(names) + 1


@pytest.mark.parametrize(
    ("code", "light"),
    [
        ("import gsbench, gsbench.frame, gsbench.cli.report, gsbench.cli.show, gsbench.report", True),
        ("import gsbench; gsbench.load(PATH)", False),
        ("from gsbench.report import render; render(PATH, Path(PATH) / 'out')", False),
        ("from gsbench.cli.show import show; show(Path(PATH))", False),
        ("from gsbench.cli.show import show; show(Path(PATH), as_json=True)", True),
    ],
)
def test_reading_runs_never_imports_torch(code: str, light: bool, run: Path) -> None:
    """`light`: not even pandas and matplotlib, which --help and the first lines of output would wait for."""
    banned = ["torch", "triton", *(["pandas", "matplotlib"] if light else [])]
    program = f"import sys; from pathlib import Path; PATH = {str(run)!r}; {code}\n" + (
        f"print('LOADED', [m for m in {banned} if m in sys.modules])"
    )
    roots = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "kernels")]
    program = f"import sys; sys.path[:0] = {roots}\n" + program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
