"""Imports run one way, and what must open quickly imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "triton", "pandas", "numpy", "scipy", "matplotlib", "pyarrow", "pydantic", "jinja2", "pynvml")


def loaded_after(code: str) -> set[str]:
    script = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n{code}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_the_command_line_starts_light():
    help_ = "sys.argv = ['gsbench', '--help']\nfrom gsbench.cli import app\ntry: app()\nexcept SystemExit: pass"
    assert not loaded_after(help_) & set(HEAVY)


@pytest.mark.parametrize(
    "module",
    ["suite", "plan", "costs", "case", "record", "store", "stats", "frame", "report", "implementations",
     "measure.session", "measure.client", "measure.environment", "cli.run", "cli.live", "cli.show", "cli.report",
     "compare", "decide", "differences", "policy", "anchor", "diagnosis", "baseline", "gate",
     "report.verdicts", "report.gates", "cli.compare", "cli.gate", "cli.baseline",
     "selftest", "report.selftests", "cli.selftest", "measure.interleaved",
     "export.pytest_benchmark", "export.tables", "export.github_action", "cli.exchange", "checkout", "cli.against",
     "pytest_plugin", "changepoints", "trend", "report.trends", "cli.trend",
     "tuning", "cli.tune",
     "profile.collect", "profile.cases", "profile.text", "cli.profile", "advise.answer", "cli.advise",
     "cli.train", "cli.evaluate", "cli.data", "train.config", "train.metrics", "train.data.sources", "train.data.wordnet"],
)  # fmt: skip
def test_the_harness_outside_of_the_worker_imports_no_torch(module):
    assert not loaded_after(f"import gsbench.{module}") & {"torch", "triton"}


def test_planning_a_shipped_suite_imports_no_torch():
    code = (
        "from gsbench import plan\nfrom gsbench.suite import load_suite\n"
        "from gsbench.implementations import all_implementations\n"
        "plan.build(load_suite('backward', 'cuda')[0], 'cuda', all_implementations())"
    )
    assert not loaded_after(code) & {"torch", "triton"}
