"""NVML sampled in the background: clocks, power, temperature, reasons, memory, other processes. Missing is recorded."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any

# Bits of nvmlClocksEventReasons (nvml.h).
REASONS = {
    0x1: "gpu_idle", 0x2: "applications_clocks_setting", 0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost",
    0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}  # fmt: skip
THERMAL = 0x20 | 0x40 | 0x80  # software thermal, hardware thermal, hardware power brake
HARDWARE_SLOWDOWN = 0x08
POWER_CAP = 0x04


@dataclass(frozen=True)
class Reading:
    at: float  # time.monotonic()
    sm_mhz: int
    memory_mhz: int
    power_w: float
    temperature_c: int
    reasons: int
    used_bytes: int

    def reason_names(self) -> list[str]:
        """The clock-event reasons that stand, by name."""
        return [name for bit, name in REASONS.items() if self.reasons & bit]


@dataclass
class Window:
    """What NVML saw during one stretch of timing."""

    readings: list[Reading] = field(default_factory=list)
    foreign_processes: int = 0

    @property
    def slowed_down(self) -> bool:
        """Thermal or hardware slowdown: the stretch is void and measured again."""
        return any(r.reasons & (THERMAL | HARDWARE_SLOWDOWN) for r in self.readings)

    @property
    def sm_mhz(self) -> float | None:
        """Median SM clock; None where nothing was read."""
        return statistics.median(r.sm_mhz for r in self.readings) if self.readings else None

    def flags(self) -> list[str]:
        """Validity flags, none of which voids the stretch."""
        flags = []
        if any(r.reasons & POWER_CAP for r in self.readings):
            flags.append("power_cap")
        if self.foreign_processes:
            flags.append(f"shared_gpu:{self.foreign_processes}")
        clocks = [r.sm_mhz for r in self.readings]
        if clocks and min(clocks) < 0.97 * max(clocks):
            flags.append(f"clock_moved:{min(clocks)}-{max(clocks)}MHz")
        return flags


class Monitor:
    """Polls one device from a thread. `available` is False, with `why`, where NVML cannot be used."""

    def __init__(self, uuid: str | None, nvml: Any = None, period_s: float = 0.02) -> None:
        self.available, self.why, self._nvml, self._period = False, "", nvml, period_s
        self._own = 0  # contexts of this process in NVML's list: none, or one
        self.partners = 0  # processes of our own session that sit on the card while this one measures
        self._readings: list[Reading] = []
        self._stop = threading.Event()
        if uuid is None:
            self.why = "no NVIDIA device"
            return
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._before = self._processes()  # before this process has a context: whoever is there is foreign
            self._readings.append(self._read())
        except Exception as e:  # the library raises many types, and none may end a sweep
            self.why = f"{type(e).__name__}: {e}"
            return
        self.available = True
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def adopt_own_context(self) -> None:
        """Call once after this process has its CUDA context, which is then one of those that NVML lists.

        Which one is not known: inside a container NVML names the host's numbers, and a partner may have come meanwhile.
        """
        if self.available:
            self._own = min(1, len(self._processes() - self._before))

    def window(self, since: float) -> Window:
        """Readings since `since` (time.monotonic()), and processes on the card that are not ours."""
        if not self.available:
            return Window()
        readings = [r for r in self._readings if r.at >= since] or [self._read()]
        return Window(readings, max(0, len(self._processes()) - self._own - self.partners))

    def used_bytes(self) -> int | None:
        return self._read().used_bytes if self.available else None

    def energy_mj(self) -> float | None:
        """Total energy since the driver was loaded, millijoules; None where the card does not count it."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) if self.available else None
        except Exception:  # not supported by every card
            return None

    def driver(self) -> str | None:
        return str(self._nvml.nvmlSystemGetDriverVersion()) if self.available else None

    def close(self) -> None:
        self._stop.set()

    def _processes(self) -> set[int]:
        return {p.pid for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}

    def _read(self) -> Reading:
        n, h = self._nvml, self._handle
        return Reading(
            time.monotonic(),
            n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),
            n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM),
            n.nvmlDeviceGetPowerUsage(h) / 1e3,
            n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
            n.nvmlDeviceGetCurrentClocksThrottleReasons(h),
            n.nvmlDeviceGetMemoryInfo(h).used,
        )

    def _poll(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self._readings.append(self._read())
                del self._readings[:-5000]
            except Exception:  # a reading that fails is a gap, not an end
                continue
