"""Groups of exactly G, alike where the features say so, from nothing but what is passed in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from gskernels import grouping
from gskernels.grouping import orders, semantic

SIZES = [  # labels, group_size
    (64, 8),
    (61, 8),  # ragged last group
    (7, 3),
    (5, 5),  # one group
    (4, 9),  # one group that is not full
    (6, 1),  # every label its own
    (1, 1),
]


def clustered(clusters: int, each: int, dim: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of shuffled labels around far-apart centres, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.arange(clusters).repeat_interleave(each)[torch.randperm(clusters * each, generator=generator)]
    centres = torch.nn.functional.normalize(torch.randn(clusters, dim, generator=generator))
    return centres[cluster] + 0.02 * torch.randn(clusters * each, dim, generator=generator), cluster


def as_sparse(features: Tensor) -> sparse.csr_array:
    return sparse.csr_array(features.numpy())


@pytest.mark.parametrize(("labels", "group_size"), SIZES)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_permutation_whatever_the_sizes(labels: int, group_size: int, kind: str) -> None:
    features = torch.randn(labels, 5, generator=torch.Generator().manual_seed(1))
    order = grouping.semantic_order(features if kind == "dense" else as_sparse(features), group_size)
    assert torch.equal(order.sort().values, torch.arange(labels))


@pytest.mark.parametrize("clusters", [8, 6, 5])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_clusters_of_the_group_size_are_found(clusters: int, kind: str) -> None:
    features, cluster = clustered(clusters, 16)
    order = grouping.semantic_order(features if kind == "dense" else as_sparse(features), 16, seed=3)
    groups = cluster[order].view(clusters, 16)
    whole = (groups == groups[:, :1]).all(1)
    assert int(whole.sum()) >= clusters - 2  # a local optimum may leave two groups mixed
    told = grouping.report(order, 16, features, torch.ones(len(order)))
    assert told.cohesion > 0.9
    assert told.random_cohesion < 0.6


def test_dense_and_sparse_features_give_the_same_order() -> None:
    features, _ = clustered(7, 9)
    features[features.abs() < 0.1] = 0
    assert torch.equal(grouping.semantic_order(features, 4), grouping.semantic_order(as_sparse(features), 4))
    assert torch.equal(grouping.semantic_order(features, 4), grouping.semantic_order(features.numpy(), 4))


def test_chunks_of_nodes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = clustered(16, 8)
    whole = grouping.report(grouping.semantic_order(as_sparse(features), 8), 8, features, torch.ones(128))
    monkeypatch.setitem(semantic.CHUNK, "cpu", 1)
    parts = grouping.report(grouping.semantic_order(as_sparse(features), 8), 8, features, torch.ones(128))
    assert parts.cohesion == pytest.approx(whole.cohesion, rel=0.02)  # other draws, the same quality


def test_seeds_and_the_global_generator() -> None:
    features, _ = clustered(9, 7)
    torch.manual_seed(0)
    first = grouping.semantic_order(features, 4, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(grouping.semantic_order(features, 4, seed=1), first)


def test_labels_without_features_are_placed_too() -> None:
    features, _ = clustered(4, 8)
    features[::3] = 0
    order = grouping.semantic_order(as_sparse(features), 8)
    assert torch.equal(order.sort().values, torch.arange(32))
    assert torch.equal(grouping.semantic_order(sparse.csr_array((6, 3)), 2).sort().values, torch.arange(6))
    assert 0 < grouping.report(order, 8, as_sparse(features), torch.zeros(32)).cohesion <= 1


def test_label_features_sum_the_documents_of_a_label() -> None:
    x = sparse.csr_array(np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]))
    y = sparse.csr_array(np.array([[1, 0, 1], [1, 0, 0], [0, 0, 1]]))
    expected = np.array([[1, 2, 0], [0, 0, 0], [1, 0, 3]], dtype=np.float32)
    expected[[0, 2]] /= np.linalg.norm(expected[[0, 2]], axis=1, keepdims=True)
    np.testing.assert_allclose(grouping.label_features(x, y).toarray(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="features have 3 rows, targets 2"):
        grouping.label_features(x, y[:2])
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        grouping.label_features(x, y, keep=0)


def test_only_the_largest_features_of_a_label_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    x = sparse.random_array((60, 40), density=0.3, rng=draw, format="csr")
    y = sparse.random_array((60, 25), density=0.2, rng=draw, format="csr")
    y.data[:] = 1
    whole = (y.T @ x).toarray()
    whole[np.argsort(np.argsort(-np.abs(whole), axis=1, kind="stable"), axis=1) >= 5] = 0
    whole /= np.linalg.norm(whole, axis=1, keepdims=True).clip(min=1e-30)
    np.testing.assert_allclose(grouping.label_features(x, y, keep=5).toarray(), whole, rtol=1e-5)
    monkeypatch.setattr(semantic, "LABELS", 4)
    np.testing.assert_allclose(grouping.label_features(x, y, keep=5).toarray(), whole, rtol=1e-5)


def test_frequency_and_random() -> None:
    assert grouping.frequency_order(torch.tensor([1, 5, 5, 0])).tolist() == [1, 2, 0, 3]
    assert torch.equal(grouping.random_order(9, seed=2), grouping.random_order(9, seed=2))
    assert not torch.equal(grouping.random_order(9, seed=2), grouping.random_order(9, seed=3))


def test_report_counts_sizes_and_load() -> None:
    features = torch.eye(5)
    told = grouping.report(torch.arange(5), 2, features, torch.tensor([4, 0, 2, 2, 4]))
    assert (told.groups, told.smallest, told.largest, told.load_spread) == (3, 1, 2, 0.0)
    assert told.cohesion == pytest.approx((4 / 2**0.5 + 1) / 5)
    with pytest.raises(ValueError, match=r"must be \[5\], got \[4\] and \[5\]"):
        grouping.report(torch.arange(4), 2, features, torch.ones(5))


def test_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = clustered(4, 8)
    first = grouping.grouped("semantic", 4, features=as_sparse(features), cache=tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 1

    def not_again(*_: object, **__: object) -> Tensor:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(orders, "semantic_order", not_again)
        assert torch.equal(grouping.grouped("semantic", 4, features=as_sparse(features), cache=tmp_path), first)
    features[0] += 1
    for changed in ({"features": as_sparse(features)}, {"features": as_sparse(features), "seed": 1}):
        grouping.grouped("semantic", 4, cache=tmp_path, **changed)  # type: ignore[arg-type]
    grouping.grouped("semantic", 8, features=as_sparse(features), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    for damage in (b"", b"no array", files[0].read_bytes()[:-8], files[0].read_bytes()[:-8] + b"\xff" * 8):
        files[0].write_bytes(damage)
        features, _ = clustered(4, 8)
        assert torch.equal(grouping.grouped("semantic", 4, features=as_sparse(features), cache=tmp_path), first)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_on_a_gpu(kind: str) -> None:
    features, _ = clustered(64, 16)
    given = features if kind == "dense" else as_sparse(features)
    order = grouping.semantic_order(given, 16, device="cuda")
    assert torch.equal(order.sort().values, torch.arange(1024))
    assert grouping.report(order, 16, features, torch.ones(1024)).cohesion > 0.9


@pytest.mark.parametrize(
    ("features", "group_size", "message"),
    [
        (torch.zeros(3), 1, r"features must be \[L, F\] with at least one label, got \[3\]"),
        (torch.zeros(0, 4), 1, r"got \[0, 4\]"),
        (torch.zeros(3, 2), 0, "at least 1, got 0 and 16"),
        (torch.full((3, 2), torch.nan), 2, "finite"),
        (sparse.csr_array(np.array([[1.0], [np.inf]])), 2, "finite"),
    ],
)
def test_errors_say_what_is_wrong(features: Tensor, group_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grouping.semantic_order(features, group_size)


def test_errors_of_the_methods() -> None:
    with pytest.raises(ValueError, match="one of semantic, frequency, random, got 'best'"):
        grouping.grouped("best", 4, frequencies=torch.ones(3))
    with pytest.raises(ValueError, match="grouping 'semantic' needs features"):
        grouping.grouped("semantic", 4, frequencies=torch.ones(3))
    with pytest.raises(ValueError, match="grouping 'random' needs frequencies"):
        grouping.grouped("random", 4)
    with pytest.raises(ValueError, match="numbers from 0 on"):
        grouping.frequency_order(torch.tensor([-1]))
    with pytest.raises(ValueError, match="labels must be at least 1"):
        grouping.random_order(0)
