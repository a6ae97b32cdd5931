"""Rankings for evaluation, and the model of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gsbench.train import config, evaluate, loop, memory, methods
from gsbench.train.data.csr import Csr
from tests.gsbench.train import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_folder(tmp_path_factory.mktemp("evaluate"))


def state_of(made: config.Config) -> tuple[loop.State, evaluate.DataSet]:
    data = evaluate.open_data(made.data)
    known = methods.TrainingLabels(data, np.arange(data.train.rows))
    torch.manual_seed(0)
    return loop.new_state(made, data, known, 10, torch.device("cpu")), data


def ranked(state: loop.State, split: evaluate.Split, k: int, batch: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    rows = np.arange(20)
    return np.concatenate([part.labels for part in evaluate.rank(state.model, split, rows, k, batch=batch)])


@pytest.mark.parametrize("system", ["dense", "chunked dense", "head-tail static"])
def test_filtered_pairs_do_not_come_up(system: str, folder: Path) -> None:
    state, data = state_of(tiny.settings(folder, system))
    before = ranked(state, data.test, 8, 20)
    gone = np.sort(before[:, [0, 3]], axis=1)
    gone[5] = gone[5, 0]
    lists = [np.unique(row) for row in gone] + [np.empty(0, np.int64)] * (data.test.rows - 20)
    pointers = np.cumsum([0, *map(len, lists)])
    split = replace(data.test, filtered=Csr(pointers, np.concatenate(lists).astype(np.int32), None, data.labels))
    for batch in (20, 7):
        after = ranked(state, split, 5, batch)
        for row in range(20):
            assert after[row].tolist() == [label for label in before[row] if label not in lists[row]][:5]


def test_fewer_labels_than_asked_for(folder: Path) -> None:
    state, data = state_of(tiny.settings(folder))
    found = next(evaluate.rank(state.model, data.test, np.arange(3), tiny.LABELS + 4, batch=3))
    assert found.labels.shape == found.scores.shape == (3, tiny.LABELS + 4)
    assert (found.labels[:, tiny.LABELS :] == -1).all()
    assert sorted(found.labels[0, : tiny.LABELS].tolist()) == list(range(tiny.LABELS))


@pytest.mark.parametrize("system", tiny.SYSTEMS)
def test_the_modelled_layer_is_the_real_one(system: str, folder: Path) -> None:
    """Weights, gradients, the optimizer's state and index lists, to 10 %: biases are left out of the model."""
    made = tiny.settings(folder, system)
    state, data = state_of(made)
    output = state.model.output
    for parameter in output.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    if "output" in state.optimizers:
        state.optimizers["output"].step()
    real = [t for name, t in output.named_parameters() if not name.endswith("bias")]
    real += [t.grad for t in real if t.grad is not None]
    real += [buffer for name, buffer in output.named_buffers() if name.endswith("indices")]
    if "output" in state.optimizers:
        kept = state.optimizers["output"].state
        matrices = [t for parameter in kept for t in kept[parameter].values() if torch.is_tensor(t) and t.dim() == 2]
        real += matrices
    size = sum(t.numel() * t.element_size() for t in real)
    modelled = memory.modelled_bytes(made, data.features, data.labels)
    assert modelled["output layer"] == pytest.approx(size, rel=0.1)
    encoder = data.features * 24 * 4 * 4  # weight, gradient, two moments
    assert modelled["encoder"] == encoder


def test_advice_is_about_the_largest_part(folder: Path) -> None:
    made = tiny.settings(folder)
    assert "output.method" in memory.advice(made, 100, 10**6)
    assert "encoder.dim" in memory.advice(made, 10**6, 100)
    wide = tiny.settings(folder, output={"method": "dense", "fused": False}, training={"batch": 4096})
    assert "training.batch" in memory.advice(wide, 100, 10**6)
    assert "use 'chunked_dense'" in memory.advice(wide, 100, 10**6)
    assert memory.peak_bytes(torch.device("cpu")) > 10**7
