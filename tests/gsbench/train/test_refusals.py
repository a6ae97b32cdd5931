"""What a run keeps, and what it refuses: checkpoints, other data, numbers that are not finite, too little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gsbench.errors import UserError
from gsbench.train import checkpoint, evaluate, loop, memory
from gsbench.train.data import synthetic
from gsbench.train.log import read_log
from tests.gsbench.train import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_folder(tmp_path_factory.mktemp("tiny"))


def test_newest_and_best_are_kept(data: Path, tmp_path: Path) -> None:
    made = tiny.settings(data, training={"epochs": 4, "batch": 32, "keep": 2})
    tiny.trained(tmp_path / "run", made)
    events = [e for e in read_log(tmp_path / "run") if e["kind"] == "epoch"]
    names = [file.name for file in checkpoint.checkpoints(tmp_path / "run")]
    assert names == [f"{event['update']:08d}.pt" for event in events[-2:]]
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best["best"] == max(event["P@1"] for event in events)
    assert best["update"] == next(e["update"] for e in events if e["P@1"] == best["best"])
    assert not list((tmp_path / "run" / "checkpoints").glob("*.new"))


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    tiny.trained(data.parent / "kept", tiny.settings(data))
    return data.parent / "kept"


def test_a_checkpoint_of_other_data(run: Path, tmp_path: Path) -> None:
    synthetic.prepare(tmp_path / "more", 400, documents=640, features=400)
    synthetic.prepare(tmp_path / "other", tiny.LABELS, documents=640, features=400, seed=5)
    with pytest.raises(UserError, match=rf"was trained on {tiny.LABELS} labels, but .*more has 400"):
        evaluate.open_trained(run, tmp_path / "more")
    with pytest.raises(UserError, match=r"was trained on another data set \(\w+\) than .*other \(\w+\)"):
        evaluate.open_trained(run, tmp_path / "other")


def test_checkpoints_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    good = checkpoint.newest(run).read_bytes()
    file = tmp_path / "bad.pt"
    for damage in (b"", b"nothing", good[: len(good) // 2], good[:1000] + bytes(1000) + good[2000:]):
        file.write_bytes(damage)
        with pytest.raises(UserError, match=r"bad.pt: (damaged, or not a checkpoint|does not fit)"):
            evaluate.open_trained(file)
    torch.save({"weights": 1}, file)
    with pytest.raises(UserError, match=r"bad.pt: not a checkpoint of gsbench"):
        checkpoint.load(file)
    torch.save({"schema": 99}, file)
    with pytest.raises(UserError, match=r"bad.pt: schema 99 is newer than this gsbench reads \(1\); upgrade gsbench"):
        checkpoint.load(file)
    with pytest.raises(UserError, match=r"none.pt: no such checkpoint or run"):
        checkpoint.find(tmp_path / "none.pt")
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        checkpoint.find(tmp_path)


def test_a_checkpoint_that_does_not_fit_its_configuration(run: Path, tmp_path: Path) -> None:
    state = checkpoint.load(checkpoint.newest(run))
    state["config"]["encoder"]["dim"] = 20
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other.pt: does not fit the encoder: size mismatch for bias"):
        evaluate.open_trained(tmp_path / "other.pt")


def test_a_full_disk_leaves_the_earlier_ones(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"update": 1}, keep=2, best=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"00000002.pt: cannot write the checkpoint: .*No space left.* are whole"):
        checkpoint.save(tmp_path, {"update": 2}, keep=2, best=False)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["00000001.pt"]


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("encoder", "embedding.weight", "the first tensor that is not finite is encoder.embedding.weight"),
        ("output", "layer.weight", "the first tensor that is not finite is output.layer.weight"),
    ],
)
def test_a_loss_that_is_nan_stops_the_run(
    part: str, name: str, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny.settings(data, training={"epochs": 2, "batch": 32, "checkpoint_every": 5})
    update = loop._update

    def poisoned(settings: Any, state: loop.State, *rest: Any) -> float:
        if state.update == 8:
            dict(state.model.modules()[part].named_parameters())[name].data[0:3] = torch.nan
            state.model.encoder.dropouts = (0.0,)
        return update(settings, state, *rest)

    monkeypatch.setattr(loop, "_update", poisoned)
    with pytest.raises(loop.Diverged, match=rf"update (9|1\d): the loss is nan; {message}") as e:
        tiny.trained(tmp_path / "run", made)
    assert e.value.exit_code == 1
    assert checkpoint.newest(tmp_path / "run").name == "00000005.pt"
    assert all(bool(t.isfinite().all()) for t in tiny.weights(tmp_path / "run").values())


def test_weights_that_are_not_finite_are_not_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.settings(data, training={"epochs": 1, "batch": 32, "checkpoint_every": 5})
    update = loop._update

    def poisoned(settings: Any, state: loop.State, *rest: Any) -> float:
        loss = update(settings, state, *rest)
        if state.update == 10:
            next(state.model.output.parameters()).data[0] = torch.inf
        return loss

    monkeypatch.setattr(loop, "_update", poisoned)
    with pytest.raises(loop.Diverged, match=r"update 10: output.layer.weight is not finite; the last good"):
        tiny.trained(tmp_path / "run", made)
    assert checkpoint.newest(tmp_path / "run").name == "00000005.pt"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("[enforce] can't allocate memory: 9 bytes")])
def test_out_of_memory_says_what_to_change(
    error: Exception, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> float:
        raise error

    monkeypatch.setattr(loop, "_update", exhausted)
    with pytest.raises(UserError, match=r"out of memory on cpu; modelled: output layer .* GiB, logits .* GiB, .*; ") as e:
        tiny.trained(tmp_path / "run", tiny.settings(data))
    assert "\n" not in str(e.value)


def test_the_modelled_logits_of_a_fused_step_are_a_chunk(data: Path) -> None:
    def logits(system: str, **output: Any) -> int:
        made = tiny.settings(data, system)
        made = made.model_copy(update={"output": made.output.model_copy(update=output)})
        return memory.modelled_bytes(made, 1000, 10_000_000)["logits"]

    whole = 32 * 10_000_000 * 4
    assert logits("dense", fused=False) == logits("fixed fan-in static") == logits("group-shared RigL") == whole
    assert logits("dense") == logits("head-tail static") == 32 << 20


def test_a_device_that_is_not_there(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(UserError, match=r"device = 'cuda:3': torch sees no CUDA device here; allowed are auto, cpu"):
        tiny.trained(tmp_path / "run", tiny.settings(data, device="cuda:3"))


def test_groups_larger_than_the_label_set(data: Path, tmp_path: Path) -> None:
    made = tiny.settings(data, output={"method": "group_shared", "fan_in": 8, "group_size": 400})
    with pytest.raises(UserError, match=r"output.group_size = 400 exceeds the labels of the sparse layer"):
        tiny.trained(tmp_path / "run", made)
