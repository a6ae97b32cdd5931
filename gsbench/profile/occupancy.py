"""How many blocks a multiprocessor holds, from what the compiler says and the architecture's facts. Pure.

Limits from the CUDA C++ Programming Guide, "Features and Technical Specifications per Compute Capability";
allocation units as in NVIDIA's occupancy calculator (registers by 256 a warp, shared memory by 128 bytes and 1 KiB of
it a block for the system).
"""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 65_536  # of a multiprocessor, on every architecture here
_SCHEDULERS = 4


@dataclass(frozen=True)
class Architecture:
    """warps, blocks, shared_bytes: of a multiprocessor. block_bytes: shared memory that one block may have.
    processors: multiprocessors of the GPU that stands for it where there is none to ask."""

    warps: int
    blocks: int
    shared_bytes: int
    block_bytes: int
    processors: int
    gpu: str


ARCHITECTURES: dict[str, Architecture] = {
    "sm_80": Architecture(64, 32, 164 << 10, 163 << 10, 108, "NVIDIA A100-SXM4-80GB"),
    "sm_86": Architecture(48, 16, 100 << 10, 99 << 10, 84, "NVIDIA A40"),
    "sm_89": Architecture(48, 24, 100 << 10, 99 << 10, 142, "NVIDIA L40S"),
    "sm_90a": Architecture(64, 32, 228 << 10, 227 << 10, 132, "NVIDIA H200"),
    "sm_100": Architecture(64, 32, 228 << 10, 227 << 10, 148, "NVIDIA B200"),
    "sm_120": Architecture(48, 24, 100 << 10, 99 << 10, 188, "NVIDIA RTX PRO 6000"),
}


@dataclass(frozen=True)
class Occupancy:
    """limited_by: those of registers, shared memory, warps and blocks that allow no more blocks."""

    blocks: int
    percent: float
    limited_by: str


def occupancy(arch: Architecture, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """threads and shared_bytes: of a block; registers: of a thread. Raises ValueError for a block without threads."""
    if threads < 1:
        raise ValueError(f"a block has at least one thread, not {threads}")
    warps = -(-threads // 32)
    per_warp = -(-max(1, registers) * 32 // 256) * 256
    resident = _REGISTERS // _SCHEDULERS // per_warp * _SCHEDULERS
    shared = -(-(shared_bytes + 1024) // 128) * 128
    limits = {
        "registers": resident // warps,
        "shared memory": arch.shared_bytes // shared if shared_bytes <= arch.block_bytes else 0,
        "warps": arch.warps // warps,
        "blocks": arch.blocks,
    }
    blocks = min(limits.values())
    limiters = " and ".join(name for name, limit in limits.items() if limit == blocks)
    return Occupancy(blocks, 100.0 * blocks * warps / arch.warps, limiters)


def architecture_of(capability: str) -> str:
    """Such as "sm_90a" for "9.0"; that of an H200 for "" and for one without a row in the table."""
    wanted = "sm_" + capability.replace(".", "")
    return next((name for name in ARCHITECTURES if name.rstrip("a") == wanted), "sm_90a")
