"""Which of its two routes fixed_fan_in/cuda takes for a pass: pure functions of the shape, which need no torch.

The costs are fits to an H200 at D = 384 to 4096, K = 16 to 256, B = 1 to 1024, bf16 and fp32: most within 15 %, all
within a third. A wrong choice costs less than that, since it is made where both routes take about as long.
"""

from __future__ import annotations

# In 1e-12 s a label. Gathering: a batch column, and an entry of a list a batch column; 16-bit numbers, twice that for fp32.
COLUMN = {"forward": 1.1, "grad_input": 4.3, "grad_weight": 2.5}
ENTRY = {"forward": 0.108, "grad_input": 0.114, "grad_weight": 0.075}
LABEL = 200.0
# Dense products: an input, and an input a row of the batch; by bytes a number.
INPUT = {2: 1.2, 4: 2.4}
PRODUCT = {2: 0.0023, 4: 0.038}
COPIED = 4.0  # a number of Y or dY, where its rows are not aligned

CHUNK_BYTES = 192 << 20  # of the dense block. H200 at R1, both gradients: 96 MiB 1.79 ms, 192 MiB 1.65, 384 MiB 1.58
ROW_BYTES = 96 << 10  # of the longest dense row that is expanded


def takes_dense(pass_: str, batch: int, dim: int, labels: int, fan_in: int, item: int) -> bool:
    """Whether D dense products a label are expected to be faster than K gathered ones. item: bytes a number."""
    if dim * item > ROW_BYTES:
        return False
    columns = -(-batch * item // 128) * 128 / 2  # rows of X^T are read in pieces of 128 bytes
    gathered = LABEL + columns * (COLUMN[pass_] + ENTRY[pass_] * fan_in)
    copied = 0 if aligned_rows(labels, item) else COPIED * batch
    return dim * (INPUT[item] + PRODUCT[item] * batch) + copied < gathered


def chunk_labels(labels: int, dim: int, item: int) -> int:
    """Labels of a chunk of the dense route."""
    return min(labels, max(128, CHUNK_BYTES // (dim * item) // 128 * 128))


def aligned_rows(labels: int, item: int) -> bool:
    """Whether every row of Y [B, L] begins on 16 bytes. cuBLAS is three times slower on others, so chunks are copied."""
    return labels * item % 16 == 0
