"""Balanced clusters of exactly G labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gskernels.grouping.rows import Rows, as_rows

ITERATIONS = 16  # of 2-means at each level: 30 raised the cohesion of WordNet's groups by 0.3 %
KEEP = 256  # features of a label that `label_features` keeps; of WordNet's labels 2 % have more
LABELS = 1 << 14  # labels whose features are summed at once
SETTLED = 0.002  # share of labels that still change sides at which a level ends early
# Numbers of the nodes' directions held at once. CPU: 4 MiB; CUDA: enough work for a launch.
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}


def label_features(features: Any, targets: Any, *, keep: int = KEEP) -> Any:
    """Features of the labels: the sum of the rows that carry a label, its `keep` largest (by size), scaled to length 1.

    Made in chunks of labels, so that the whole product, which frequent labels make almost dense, never exists.

    Args:
        features: scipy sparse [N, F], the TRAINING documents.
        targets: scipy sparse [N, L], their labels.
        keep: the most features of a label.

    Returns:
        scipy CSR [L, F] fp32. A label that no document carries has an empty row.

    Raises:
        ValueError: rows that do not match, or keep below 1.
    """
    from scipy import sparse

    if features.shape[0] != targets.shape[0]:
        raise ValueError(f"features have {features.shape[0]} rows, targets {targets.shape[0]}")
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    documents = sparse.csr_matrix(features, dtype=np.float32)
    carried = sparse.csr_matrix(targets, dtype=np.float32).T.tocsr()  # [L, N]
    parts = []
    for start in range(0, carried.shape[0], LABELS):
        summed = _largest((carried[start : start + LABELS] @ documents).tocsr(), keep)
        length = np.sqrt(np.asarray(summed.multiply(summed).sum(1)).ravel())
        summed.data /= np.repeat(length, np.diff(summed.indptr)).clip(min=1e-30)
        parts.append(summed)
    return sparse.vstack(parts, format="csr", dtype=np.float32)


def _largest(matrix: Any, keep: int) -> Any:
    """The `keep` largest numbers of each row, by size; ties go to the smaller column."""
    from scipy import sparse

    counts = np.diff(matrix.indptr)
    if counts.max(initial=0) <= keep:
        return matrix
    row = np.repeat(np.arange(matrix.shape[0]), counts)
    order = np.lexsort((matrix.indices, -np.abs(matrix.data), row))
    kept = np.sort(order[np.arange(len(row)) - np.repeat(matrix.indptr[:-1], counts) < keep])
    pointers = np.concatenate([[0], np.minimum(counts, keep).cumsum()])
    return sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], pointers), shape=matrix.shape)


def semantic_order(
    features: Any, group_size: int, *, seed: int = 0, device: torch.device | str = "cpu", iterations: int = ITERATIONS
) -> Tensor:
    """[L] int64 on the CPU: the labels in an order in which each G neighbours are alike.

    Recursive balanced 2-means (as in Parabel, Prabhu et al. 2018, but with sides of whole groups): a node of n labels
    is cut by the sign of the best linear function, its threshold moved so that the sides hold whole groups. All nodes of
    a level go together. Euclidean, so scale the rows to one length first for cosines.

    Args:
        features: [L, F], scipy sparse, NumPy array or tensor; finite. Of the training data only.
        group_size: G, from 1 on. Every group has exactly G labels but the last, which has what is left.
        seed: of the first directions. The same seed gives the same order on the same type of device.
        device: where to compute.
        iterations: the most at each level.

    Raises:
        ValueError: a matrix of another rank, without labels, with numbers that are not finite, or sizes below 1.
    """
    rows, labels = as_rows(features, torch.device(device))
    if group_size < 1 or iterations < 1:
        raise ValueError(f"group_size and iterations must be at least 1, got {group_size} and {iterations}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(labels, device=device)
    nodes = [math.ceil(labels / group_size)]  # groups of each node, in order; only the last node may be ragged
    while max(nodes) > 1:
        left = [(groups + 1) // 2 for groups in nodes]
        better = _cut(rows, nodes, left, group_size, labels, generator, iterations)
        rows, order = rows.take(better), order[better]
        pairs = zip(left, nodes, strict=True)
        nodes = [side for first, both in pairs for side in (first, both - first) if side]
    return order.cpu()


def _cut(
    rows: Rows, nodes: list[int], left: list[int], group_size: int, labels: int, generator: torch.Generator,
    iterations: int,
) -> Tensor:  # fmt: skip
    """[L]: the rows reordered within each node, its left side first."""
    device = rows.device
    starts = (torch.tensor([0, *nodes]).cumsum(0) * group_size).clamp_(max=labels)
    middles = (starts[:-1] + torch.tensor(left) * group_size).clamp_(max=labels)
    step = max(1, CHUNK.get(device.type, CHUNK["cpu"]) // max(1, rows.width))
    order = torch.empty(labels, dtype=torch.int64, device=device)
    for first in range(0, len(nodes), step):
        last = min(first + step, len(nodes))
        start, stop = int(starts[first]), int(starts[last])
        bounds = (starts[first : last + 1] - start).to(device)
        cuts = (middles[first:last] - start).to(device)
        part = rows.part(start, stop)
        order[start:stop] = _two_means(part, bounds, cuts, generator, iterations) + start
    return order


def _two_means(
    rows: Rows, bounds: Tensor, cuts: Tensor, generator: torch.Generator, iterations: int
) -> Tensor:
    """[n]: the rows of nodes [bounds[i], bounds[i + 1]) ordered so that the left side ends at cuts[i].

    With sides of fixed sizes the assignment of least distortion orders a node's rows by their product with the
    difference of the two means, so that one signed sum serves both.
    """
    sizes = bounds[1:] - bounds[:-1]
    node = torch.arange(len(sizes), device=rows.device).repeat_interleave(sizes)
    left, right = (cuts - bounds[:-1]), (bounds[1:] - cuts)
    share = torch.stack([1 / left.float(), -1 / right.clamp(min=1).float()])  # of a row in its side's mean
    place = torch.arange(len(node), device=rows.device)
    order = _by_node(torch.rand(len(node), generator=generator).to(rows.device), node)
    on_right = torch.empty_like(place, dtype=torch.bool)
    on_right[order] = place >= cuts[node]
    sums, dots = rows.within(node, len(sizes))
    for _ in range(iterations):
        order = _by_node(dots(sums(share[on_right.long(), node])), node)
        before = on_right.clone()
        on_right[order] = place >= cuts[node]
        if int((on_right != before).sum()) <= SETTLED * len(node):
            break
    return order


def _by_node(score: Tensor, node: Tensor) -> Tensor:
    """[n]: rows by node, in a node by falling score, equals in their order."""
    order = score.argsort(descending=True, stable=True)
    return order[node[order].argsort(stable=True)]
