"""The loop: every system learns, a killed run goes on bit by bit, and nothing bad is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gsbench.errors import UserError
from gsbench.train import checkpoint, config, encoders, evaluate, loop, methods, runs
from gsbench.train.data import synthetic
from gsbench.train.demo import popularity
from gsbench.train.log import SECONDS, read_log
from gsbench.train.outputs import LinearOutput
from tests.gsbench.train import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_folder(tmp_path_factory.mktemp("tiny"))


def curve(run: Path) -> list[dict[str, Any]]:
    """The log less what the clock decides."""
    return [{key: value for key, value in event.items() if key not in SECONDS} for event in read_log(run)]


def assert_same(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    mine, theirs = tiny.weights(one), tiny.weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
    results = [json.loads((run / "result.json").read_text()) | {"peak_bytes": 0} for run in (one, other)]
    assert results[0] == results[1]


# ---- every system -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", tiny.SYSTEMS)
def test_every_system_learns(system: str, data: Path, tmp_path: Path) -> None:
    made = tiny.settings(data, system, training={"epochs": 12, "batch": 32, "log_every": 1, "keep": 2})
    result = tiny.trained(tmp_path / "run", made)
    events = read_log(tmp_path / "run")
    losses = [event["loss"] for event in events if event["kind"] == "epoch"]
    assert losses[-1] < 0.75 * losses[0]
    popular = popularity(evaluate.open_data(made.data))
    best = max(event["P@5"] for event in events if event["kind"] == "epoch")
    assert best > 1.5 * popular["P@5"]
    rewired = [event for event in events if event["kind"] == "rewire"]
    assert bool(rewired) == (made.rewire is not None)
    if rewired:  # fault 4: the fraction that decays is the one that is used, and it is in the log
        fractions = [event["fraction"] for event in rewired]
        assert fractions == sorted(fractions, reverse=True)
        assert fractions[-1] < 0.5 * fractions[0]
        assert rewired[-1]["regrown"] < rewired[0]["regrown"]
    opened = evaluate.open_trained(checkpoint.newest(tmp_path / "run"))
    rows = np.arange(opened.data.test.rows)
    again = evaluate.evaluate(opened.model, opened.data, opened.data.test, rows, batch=50)
    assert again == pytest.approx(result["test"], abs=0.3)  # other batches, other sums
    assert result["output_parameters"] == opened.model.output_parameters()


def test_sparse_layers_read_distinct_inputs_to_the_end(data: Path, tmp_path: Path) -> None:
    """Fault 1, through the whole programme."""
    for system in ("group-shared RigL", "head-tail SET", "fixed fan-in SET"):
        tiny.trained(tmp_path / system, tiny.settings(data, system))
        output = evaluate.open_trained(tmp_path / system).model.output
        assert isinstance(output, LinearOutput)
        assert int(output.sparse.indices.long().sort(1).values.diff(dim=1).min()) > 0


def test_momentum_of_regrown_slots_is_zero(data: Path, tmp_path: Path) -> None:
    """Fault 2, through the whole programme: the state that the loop's own optimizer keeps."""
    made = tiny.settings(data, "group-shared SET")
    folder = evaluate.open_data(made.data)
    known = methods.TrainingLabels(folder, np.arange(folder.train.rows))
    state = loop.new_state(made, folder, known, 100, torch.device("cpu"))
    assert state.rewirer is not None
    assert isinstance(state.model.output, LinearOutput)
    sparse, optimizer = state.model.output.sparse, state.optimizers["output"]
    for parameter in state.model.output.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = sparse.indices.clone()
    state.rewirer.apply(3)
    fresh = (sparse.indices[:, :, None] != before[:, None, :]).all(2)  # lists are put in order again: by input, not by slot
    regrown = fresh.repeat_interleave(8, 0)[: sparse.labels]
    momentum = optimizer.state[sparse.weight]["momentum_buffer"]
    assert int(regrown.sum()) > 0
    assert bool((momentum[regrown] == 0).all())
    assert bool((momentum[~regrown] == 1).all())


def test_accumulated_batches_are_one_update(data: Path, tmp_path: Path) -> None:
    options = {"encoder": {"dim": 24, "dropout": 0.0}}
    small = tiny.settings(data, training={"epochs": 1, "batch": 16, "accumulate": 4, "log_every": 1}, **options)
    large = tiny.settings(data, training={"epochs": 1, "batch": 64, "log_every": 1}, **options)
    a, b = tiny.trained(tmp_path / "a", small), tiny.trained(tmp_path / "b", large)
    assert a["updates"] == b["updates"]
    losses = [[e["loss"] for e in read_log(tmp_path / run) if e["kind"] == "step"] for run in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_learning_rates_rise_and_fall() -> None:
    made = config.Optimizer(name="sgd", lr=2.0, warmup=0.1)
    rates = [methods.learning_rate(made, update, 100) for update in range(100)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.01
    assert methods.learning_rate(config.Optimizer(name="sgd", lr=2.0, decay="none"), 99, 100) == 2.0


def test_bf16_activations(data: Path, tmp_path: Path) -> None:
    for system in ("dense", "head-tail SET", "chunked dense"):
        made = tiny.settings(data, system, training={"epochs": 1, "batch": 32, "precision": "bf16"})
        assert np.isfinite(tiny.trained(tmp_path / system, made)["test"]["P@1"])


def test_residual_blocks_clipping_and_squared_hinge(data: Path, tmp_path: Path) -> None:
    made = tiny.settings(
        data, output={"method": "dense", "loss": "squared_hinge", "bias": -1.0}, encoder={"dim": 24, "blocks": 2},
        encoder_optimizer={"name": "adam", "lr": 1e-3, "clip": 1.0},
        output_optimizer={"name": "sgd", "lr": 1e-3, "clip": 5.0},
    )  # fmt: skip
    tiny.trained(tmp_path / "run", made)
    losses = [e["loss"] for e in read_log(tmp_path / "run") if e["kind"] == "epoch"]
    assert losses[1] < losses[0]


def test_features_are_left_out_in_training_alone() -> None:
    some = config.Encoder(dim=16, dropout=0.0, feature_dropout=0.5)
    encoder, n = encoders.BagOfWords(400, some), 400
    inputs = {"columns": torch.arange(n), "pointers": torch.tensor([0, n]), "values": torch.ones(n)}
    torch.nn.init.ones_(encoder.embedding.weight)
    kept = encoder.train()(inputs) / 2  # what is left grows by 1 / (1 - share)
    assert 150 < float(kept[0, 0].detach()) < 250
    assert float(encoder.eval()(inputs)[0, 0].detach()) == n


@pytest.mark.parametrize("blocks", [0, 1])
def test_head_and_tail_read_views_of_their_own_dropouts(blocks: int) -> None:
    some = config.Encoder(dim=16, dropout=0.0, tail_dropout=0.5, blocks=blocks)
    encoder = encoders.BagOfWords(400, some)
    inputs = {"columns": torch.arange(400), "pointers": torch.arange(0, 401, 4), "values": torch.ones(400)}
    evaluated, trained = encoder.eval()(inputs), encoder.train()(inputs)
    assert (evaluated.shape, encoder.width) == ((100, 32), 32)
    assert torch.equal(evaluated[:, :16], evaluated[:, 16:])  # a document is ranked by one view
    assert torch.equal(trained[:, :16], evaluated[:, :16])
    if blocks == 0:
        left_out = (trained[:, 16:] == 0) & (evaluated[:, 16:] != 0)
        assert 0.3 < float(left_out.float().sum() / (evaluated[:, 16:] != 0).sum()) < 0.7


def test_the_tail_of_a_head_tail_layer_has_a_rate_and_a_decay_of_its_own(data: Path) -> None:
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "tail": 8.0, "tail_weight_decay": 0.0}
    changes = {"output_optimizer": sgd}
    made = tiny.settings(data, "head-tail SET", **changes)
    folder = evaluate.open_data(made.data)
    known = methods.TrainingLabels(folder, np.arange(folder.train.rows))
    state = loop.new_state(made, folder, known, 100, torch.device("cpu"))
    methods.set_rate(state.optimizers["output"], 0.05)
    rates = {p: group["lr"] for group in state.optimizers["output"].param_groups for p in group["params"]}
    named = {name: rates[p] for name, p in state.model.output.named_parameters()}
    assert named == {"layer.head.weight": 0.05, "layer.head.bias": 0.05, "layer.tail.weight": 0.4, "layer.tail.bias": 0.4}
    assert [group["weight_decay"] for group in state.optimizers["output"].param_groups] == [0.01, 0.0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("system", tiny.SYSTEMS)
def test_every_system_on_a_gpu(system: str, precision: str, data: Path, tmp_path: Path) -> None:
    training = {"epochs": 4, "batch": 32, "precision": precision}
    made = tiny.settings(data, system, device="cuda", deterministic=False, training=training)
    result = tiny.trained(tmp_path / "run", made)
    losses = [event["loss"] for event in read_log(tmp_path / "run") if event["kind"] == "epoch"]
    assert losses[-1] < 0.95 * losses[0]
    assert result["peak_bytes"] > 0
    opened = evaluate.open_trained(checkpoint.newest(tmp_path / "run"), device=torch.device("cuda"))
    rows = np.arange(opened.data.test.rows)
    again = evaluate.evaluate(opened.model, opened.data, opened.data.test, rows, batch=32, precision=precision)
    assert again == pytest.approx(result["test"], abs=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("system", ["dense bf16", "group-shared RigL", "head-tail SET"])
def test_fused_training_on_a_gpu_has_the_same_losses(system: str, data: Path, tmp_path: Path) -> None:
    losses = []
    for fused in (True, False):
        made = tiny.settings(data, system, device="cuda", deterministic=False, training={"epochs": 3, "batch": 32})
        made = made.model_copy(update={"output": made.output.model_copy(update={"fused": fused})})
        run = tmp_path / str(fused)
        tiny.trained(run, made)
        losses.append([event["loss"] for event in read_log(run) if event["kind"] == "epoch"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# ---- training data only -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["head-tail static", "group-shared static", "Spartex"])
def test_a_planted_leak_changes_nothing(system: str, tmp_path: Path) -> None:
    """Fault 3: head, groups, clusters and biases that look at test labels or test text.

    Two data sets have the same training documents and wholly different test documents, in which the rarest labels are
    the most frequent and every text is the same: whatever looks at them comes out differently.
    """
    built = []
    for name in ("honest", "planted"):
        folder = tmp_path / name
        synthetic.prepare(folder, tiny.LABELS, documents=640, features=400)
        made = tiny.settings(folder, system)
        opened = evaluate.open_data(made.data)
        if name == "planted":
            rare = int(opened.train.y.column_counts().argmin())
            for stem, value in (("test_y", rare), ("test_x", 7)):
                stored = (folder / f"{stem}.indices").stat().st_size // 4
                np.full(stored, value, np.int32).tofile(folder / f"{stem}.indices")
            opened = evaluate.open_data(made.data)
        rows, held = evaluate.halves(opened, made.data)
        known = methods.TrainingLabels(opened, rows)
        assert known.documents == len(rows) == opened.train.rows - len(held)
        torch.manual_seed(0)
        built.append(loop.new_state(made, opened, known, 10, torch.device("cpu")).model)
    for name, part in built[0].modules().items():
        other = built[1].modules()[name].state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in part.state_dict().items() if torch.is_tensor(tensor))


def test_held_out_documents_are_not_trained_on(data: Path) -> None:
    made = tiny.settings(data, "head-tail static", data={"path": str(data), "validation": 0.3})
    opened = evaluate.open_data(made.data)
    rows, held = evaluate.halves(opened, made.data)
    assert len(held) == 192
    assert not set(rows.tolist()) & set(held.tolist())
    assert (methods.TrainingLabels(opened, rows).frequency <= opened.train.y.column_counts()).all()
    limited = made.data.model_copy(update={"validation_limit": 10})
    assert len(evaluate.halves(opened, limited)[1]) == 10


# ---- killed and gone on with --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("system", ["head-tail RigL", "chunked dense", "group-shared RigL", "Spartex", "dense bf16"])
@pytest.mark.parametrize("at", [7, 20, 31])  # in mid-epoch, at an epoch's end, in the second epoch
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    system: str, at: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny.settings(data, system, training={"epochs": 2, "batch": 32, "log_every": 1, "checkpoint_every": 5})
    if not (data.parent / system).exists():
        tiny.trained(data.parent / system, made)
    update = loop._update

    def killed(settings: Any, state: loop.State, *rest: Any) -> float:
        if state.update == at:
            raise Killed
        return update(settings, state, *rest)

    monkeypatch.setattr(loop, "_update", killed)
    with pytest.raises(Killed):
        tiny.trained(tmp_path / "run", made)
    monkeypatch.setattr(loop, "_update", update)
    torch.manual_seed(99)  # whatever the process did meanwhile
    loop.train(runs.settings_of(tmp_path / "run"), tmp_path / "run", resume=True, quiet=True)
    assert_same(data.parent / system, tmp_path / "run")


def test_sigkill_in_mid_epoch(data: Path, tmp_path: Path) -> None:
    """A process that is killed without warning, and another that goes on: the same curve, bit by bit."""
    made = tiny.settings(data, "head-tail SET", training={"epochs": 15, "batch": 32, "log_every": 1, "checkpoint_every": 7})
    text = f"""
name = "tiny"
device = "cpu"
deterministic = true
data = {{ path = "{data}" }}
encoder = {{ dim = 24, dropout = 0.1, std = 0.3 }}
encoder_optimizer = {{ name = "adamw", lr = 0.01, warmup = 0.05 }}
output = {{ method = "head_tail", private_features = true, fan_in = 8, group_size = 8 }}
rewire = {{ grow = "random", interval = 3 }}
training = {{ epochs = 15, batch = 32, log_every = 1, checkpoint_every = 7 }}
"""
    (tmp_path / "tiny.toml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "gsbench", "train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "runs")]
    run = tmp_path / "runs" / "tiny"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        for _ in range(6000):
            if len(read_log(run)) > 60 or process.poll() is not None:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert checkpoint.checkpoints(run)
    subprocess.run([*command[:4], "--resume", str(run)], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert runs.settings_of(run) == made
    tiny.trained(tmp_path / "whole", made)
    assert_same(tmp_path / "whole", run)


def test_a_run_that_never_had_a_checkpoint_starts_again(data: Path, tmp_path: Path) -> None:
    made = tiny.settings(data, training={"epochs": 1, "batch": 64})
    run = runs.create(tmp_path / "run", made)
    assert runs.create(run, made) == run
    (run / "log.jsonl").write_text('{"kind": "step", "update": 1}\n{"kind": "st')
    loop.train(made, run, resume=True, quiet=True)
    assert [event["kind"] for event in read_log(run)] == ["epoch"]
    with pytest.raises(UserError, match=r"run: exists already; go on with --resume"):
        runs.create(run, made)


def test_one_process_trains_a_run(data: Path, tmp_path: Path) -> None:
    made = tiny.settings(data)
    run = runs.create(tmp_path / "run", made)
    with runs.locked(run), pytest.raises(UserError, match="another gsbench is training this run; wait for it to end"):
        loop.train(made, run, quiet=True)
