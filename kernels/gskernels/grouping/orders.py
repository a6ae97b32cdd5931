"""Orders by name, kept by content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gskernels.grouping.semantic import ITERATIONS, semantic_order

METHODS = ("semantic", "frequency", "random")
_VERSION = 1  # of what `grouped` keeps: raised when the same input would give another order


def frequency_order(frequencies: Tensor) -> Tensor:
    """[L] int64: labels by falling frequency [L] in the TRAINING data, ties by number."""
    if frequencies.dim() != 1 or not bool((frequencies >= 0).all()):
        raise ValueError(f"frequencies must be [L] numbers from 0 on, got {list(frequencies.shape)}")
    return frequencies.argsort(descending=True, stable=True).cpu()


def random_order(labels: int, *, seed: int = 0) -> Tensor:
    """[L] int64: a seeded permutation."""
    if labels < 1:
        raise ValueError(f"labels must be at least 1, got {labels}")
    return torch.randperm(labels, generator=torch.Generator().manual_seed(seed))


def grouped(
    method: str, group_size: int, *, features: Any = None, frequencies: Tensor | None = None, seed: int = 0,
    device: torch.device | str = "cpu", cache: Path | None = None,
) -> Tensor:  # fmt: skip
    """The order [L] of a method of `METHODS`, kept in the folder `cache` under a name made of all that decides it, except
    the device: what one has found serves them all.

    semantic needs `features`, frequency and random `frequencies` (random: for the number of labels). A kept file that
    cannot be read is made again. Raises ValueError for another method or where its input is missing.
    """
    given = features if method == "semantic" else frequencies
    if method not in METHODS or given is None:
        needs = "features" if method == "semantic" else "frequencies"
        raise ValueError(
            f"grouping {method!r} needs {needs}" if method in METHODS
            else f"grouping must be one of {', '.join(METHODS)}, got {method!r}"
        )  # fmt: skip
    name = f"{method}-{_digest(given, method, group_size, seed)}.npy"
    kept = None if cache is None else cache / name
    labels = int(given.shape[0])
    if kept is not None and (order := _kept(kept, labels)) is not None:
        return order
    if method == "semantic":
        order = semantic_order(features, group_size, seed=seed, device=device)
    elif frequencies is not None and method == "frequency":
        order = frequency_order(frequencies)
    else:
        order = random_order(labels, seed=seed)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}.new")
        with open(temporary, "wb") as stream:
            np.save(stream, order.numpy())
        os.replace(temporary, kept)
    return order


def _kept(file: Path, labels: int) -> Tensor | None:
    try:
        order = torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    whole = order.dim() == 1 and order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(labels))
    return order if whole else None


def _digest(content: Any, *settings: object) -> str:
    digest = hashlib.blake2b(repr((_VERSION, ITERATIONS, tuple(content.shape), *settings)).encode(), digest_size=16)
    csr = content.tocsr() if hasattr(content, "tocsr") else None
    for part in (csr.indptr, csr.indices, csr.data) if csr is not None else (content,):
        array = np.ascontiguousarray(part.cpu().numpy() if isinstance(part, Tensor) else part)
        digest.update(str(array.dtype).encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
