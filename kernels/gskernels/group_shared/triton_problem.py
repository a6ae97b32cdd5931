"""What the Triton launchers of layers with lists of inputs share: sizes, configurations, transposition of X and dX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels import tune
from gskernels.group_shared import problem
from gskernels.group_shared.triton_kernels import transpose_kernel
from gskernels.tune import Config

# Atomics go to four accumulators of dX^T, tile by tile, while these are small. H200, default point, both gradients:
# 0.455 ms against 0.480 with one accumulator, at G = 128 0.207 against 0.209.
COPIED_NUMBERS = 1 << 21


@dataclass(frozen=True)
class Problem(problem.Problem):
    """The sizes that decide tiles and grids."""

    @property
    def block_g(self) -> int:
        """Labels of a tile: the smallest power of two that holds a group, within what registers hold."""
        return min(32 if self.dtype == torch.float32 else 128, max(16, tune.power_of_two(self.group_size)))

    @property
    def tiles(self) -> int:
        """Tiles of all groups; those past the end of a ragged last group hold no labels."""
        return tune.cdiv(self.labels, self.group_size) * tune.cdiv(self.group_size, self.block_g)

    @property
    def stride(self) -> int:
        """Row length of X^T and dX^T: B rounded up, so that every slice of up to 256 is whole and aligned."""
        return max(16, tune.power_of_two(self.batch)) if self.batch <= 256 else tune.cdiv(self.batch, 256) * 256

    @property
    def wide(self) -> bool:
        """Whether offsets into X^T and dX^T need 64 bits."""
        return self.dim * self.stride >= 2**31

    @property
    def copies(self) -> int:
        """Accumulators of dX^T that atomics go to."""
        return 4 if self.dim * self.stride < COPIED_NUMBERS else 1

    @property
    def shape_class(self) -> str:
        return tune.shape_class(
            batch=self.batch, dim=self.dim, labels=self.labels, fan_in=self.fan_in, group_size=self.group_size,
            dtype=self.dtype, rows=self.rows,
        )  # fmt: skip

    @property
    def tight(self) -> bool:
        """Whether groups are whole tiles."""
        return self.group_size % self.block_g == 0

    @property
    def contiguous_rows(self) -> bool:
        """Whether rows of Y are made of whole 16-byte pieces, in whole tiles: what the copy engine can write."""
        return self.tight and self.labels * self.dtype.itemsize % 16 == 0

    @property
    def rows(self) -> str:
        """What may be moved in 16-byte pieces: rows of W and Y ("aligned"), of W alone ("ragged"), neither ("narrow")."""
        if self.fan_in * self.dtype.itemsize % 16:
            return "narrow"
        return "aligned" if self.contiguous_rows else "ragged"

    def constants(self) -> dict[str, int]:
        return {"K": self.fan_in, "G": self.group_size, "BLOCK_G": self.block_g, "TIGHT": self.tight,
                "WIDE": self.wide}  # fmt: skip


def distinct(configs: Iterable[Config]) -> list[Config]:
    """The configurations in order, each once."""
    seen: list[Config] = []
    for config in configs:
        if config not in seen:
            seen.append(config)
    return seen


def without(config: Config, *keys: str) -> Config:
    """What goes to the kernel: the configuration less what only its launcher reads."""
    return {key: value for key, value in config.items() if key not in keys}


def transpose(
    src: Tensor,  # [R, C], or [parts, R, C] to sum
    dtype: torch.dtype,
    stride: int | None = None,
    columns: int | None = None,
    clear: Tensor | None = None,  # [copies, C, stride] fp32
) -> Tensor:
    """[C, stride]: the first `columns` of src transposed, zero from R on; `clear` is filled with zeros on the way."""
    parts = src.shape[0] if src.dim() == 3 else 1
    height, width = src.shape[-2], src.shape[-1] if columns is None else columns
    out = torch.empty(width, stride or height, dtype=dtype, device=src.device)
    block = 32 if height * width < 2**22 else 64  # small ones are bound by latency: more programs
    grid = (tune.cdiv(out.shape[1], block) * tune.cdiv(width, block),)
    scratch = out if clear is None else clear
    sizes = (height, width, src.stride(-2), out.shape[1], parts, src.stride(0) if parts > 1 else 0, out.numel())
    tune.launch(transpose_kernel, grid, (src, out, scratch, *sizes), {"num_warps": 4},
                BLOCK_R=block, BLOCK_C=block, CLEAR=0 if clear is None else len(clear))  # fmt: skip
    return out
