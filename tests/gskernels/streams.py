"""The same call elsewhere than on the default stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Outputs = TypeVar("Outputs")


def beside_and_captured(call: Callable[[], Outputs]) -> tuple[Outputs, Outputs]:
    """What `call` returns on a side stream, and in a graph that was replayed twice."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(2):
        graph.replay()
    return beside, captured
