"""Which device a verb uses. Decided without importing torch."""

from __future__ import annotations

import re

from gsbench.errors import UserError


def resolve(device: str) -> str:
    """ "auto" becomes "cuda:0" where NVML sees a card, else "cpu". Raises UserError for anything but cpu, cuda, cuda:N."""
    if device == "auto":
        return "cuda:0" if _nvml_sees_a_card() else "cpu"
    if device == "cuda":
        return "cuda:0"
    if device == "cpu" or re.fullmatch(r"cuda:\d+", device):
        return device
    raise UserError(f"--device {device!r}: allowed are auto, cpu, cuda, cuda:N")


def kind(device: str) -> str:
    return device.split(":")[0]


def _nvml_sees_a_card() -> bool:
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except Exception:  # no library, no driver, no permission: no card for us
        return False
