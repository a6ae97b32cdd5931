"""Numbers in GPU memory that the blocks of a launch draw their work from.

Multiprocessors of one GPU differ in speed, by 5 % on an H200, so that with equal shares all wait for the slowest. A kernel
whose blocks draw the last part of their work from a counter needs one that is zero at its start and that no other
launch uses meanwhile.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

LEAST = 64

_counters: dict[tuple[int, int], Tensor] = {}
_lock = threading.Lock()


def counters(count: int, device_index: int) -> Tensor:
    """int32 [count or more], all zero, for one launch on the current stream, which has to leave them zero.

    Launches on one stream follow each other, so they share theirs. A graph may be replayed beside anything else: in a
    capture each launch has its own, which the graph zeroes.
    """
    device = torch.device("cuda", device_index)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device_index, torch._C._cuda_getCurrentRawStream(device_index)
    found = _counters.get(key)
    if found is None or len(found) < count:
        with _lock:
            found = _counters[key] = torch.zeros(max(count, LEAST), dtype=torch.int32, device=device)
    return found
