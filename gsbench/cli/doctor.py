"""gsbench doctor: what this machine can measure, and what is in the way."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from gsbench.errors import EXIT_FAILED


class Finding(NamedTuple):
    what: str
    ok: bool
    detail: str
    required: bool = False


def doctor(
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what this machine can measure; exit 1 if nothing can be.

    [bold]Example:[/] gsbench doctor
    """
    findings = [*_software(), *_gpu(), _profiler(), *_defaults(), *_folders(out)]
    if as_json:
        print(json.dumps([f._asdict() for f in findings], indent=1))
    else:
        from rich.console import Console

        console = Console()
        for f in findings:
            mark = "[green]ok  [/]" if f.ok else ("[red]FAIL[/]" if f.required else "[yellow]none[/]")
            console.print(f"{mark} {f.what:<24} {f.detail}", highlight=False)
    if any(f.required and not f.ok for f in findings):
        raise typer.Exit(EXIT_FAILED)


def _software() -> list[Finding]:
    from gsbench.measure.environment import versions

    found = versions()
    findings = [Finding("python", True, f"{found['python']} on {found['platform']}")]
    try:
        import torch

        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        findings.append(Finding("torch", True, f"{torch.__version__}, {built}, {torch.get_num_threads()} threads", True))
    except Exception as e:
        findings.append(Finding("torch", False, f"cannot be imported: {e}", True))
    triton = found["triton"]
    findings.append(Finding("triton", triton is not None, triton or "not installed: Triton implementations cannot run"))
    return findings


def _gpu() -> list[Finding]:
    findings = []
    try:
        import pynvml

        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
            busy = f"; {others} processes on it, figures will be flagged" if others else ""
            findings.append(
                Finding(
                    f"GPU {index}", True,
                    f"{pynvml.nvmlDeviceGetName(handle)}, {memory.total / 1e9:.0f} GB ({memory.used / 1e9:.1f} used), "
                    f"driver {pynvml.nvmlSystemGetDriverVersion()}{busy}",
                )
            )  # fmt: skip
    except Exception as e:  # no library, driver or permission
        findings.append(Finding("NVML", False, f"{type(e).__name__}: {e}: clocks, power and GPU memory are not recorded"))
    try:
        import torch

        seen = torch.cuda.is_available()
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if seen else ""
        findings.append(Finding("CUDA in torch", seen, names or "none: the CPU implementations are measured"))
    except Exception as e:
        findings.append(Finding("CUDA in torch", False, str(e)))
    return findings


def _defaults() -> list[Finding]:
    """What a layer with groups runs on here, a pass at a time, at the point around which the suites turn."""
    from gsbench.tuning import DEFAULT_POINT

    try:
        import torch

        from gskernels import ops

        chosen = ops.explain(DEFAULT_POINT, "bf16", "cuda" if torch.cuda.is_available() else "cpu")
    except Exception as e:
        return [Finding("default kernels", False, str(e))]
    findings = []
    for pass_, choice in chosen.items():
        findings.append(Finding(f"default {pass_}", True, f"{choice.implementation}: {choice.reason}"))
    return findings


def _profiler() -> Finding:
    from gsbench.profile.ncu import find

    path = find()
    return Finding("Nsight Compute", path is not None, path or "no ncu: gsbench profile gives no hardware counters")


def _folders(out: Path) -> list[Finding]:
    findings = []
    cache = Path(os.environ.get("GSKERNELS_CACHE", Path.home() / ".cache" / "gskernels"))
    for what, folder, required in (("results folder", out, True), ("tuning cache", cache, False)):
        existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
            free = shutil.disk_usage(existing).free
            findings.append(Finding(what, True, f"{folder} ({free / 1e9:.0f} GB free)", required))
        except OSError as e:
            findings.append(Finding(what, False, f"{folder}: cannot be written: {e.strerror}", required))
    return findings
