"""Kernels of our own, as gsbench finds them. Imports nothing heavy: planning a sweep needs no torch."""

from gskernels.table import Implementation

IMPLEMENTATIONS = (
    Implementation(
        "dense/outside", "outside_kernels.chunked", "dense", "a dense product, a chunk of labels at a time",
        passes=("forward",),
    ),
)  # fmt: skip
