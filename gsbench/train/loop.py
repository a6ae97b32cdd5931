"""The training loop. `train` reads from top to bottom: data, model, epochs, result."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsbench.errors import EXIT_FAILED, UserError
from gsbench.train import checkpoint, config, encoders, memory, methods, runs
from gsbench.train.data.dataset import DataSet
from gsbench.train.evaluate import autocast, evaluate, halves, open_data
from gsbench.train.log import Log, Screen
from gsbench.train.outputs import ChunkedDense, LinearOutput
from gsbench.train.updates import Updater, can_update
from gskernels import Rewirer

CHOOSE_BY = "P@1"  # on the held-out documents


_PROGRESS = ("update", "epoch", "batch", "loss", "documents", "best")


class Diverged(UserError):
    """The loss or a weight is no longer finite."""

    exit_code = EXIT_FAILED


@dataclass
class State:
    """All that changes while a run trains; what a checkpoint holds."""

    model: methods.Model
    optimizers: dict[str, torch.optim.Optimizer]
    rewirer: Rewirer | None
    update: int = 0  # updates done
    epoch: int = 0
    batch: int = 0  # batches done of this epoch
    loss: float = 0.0  # of this epoch so far, summed
    documents: int = 0  # of this epoch so far
    best: float | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.encoder.parameters()).device

    @property
    def updater(self) -> Updater | None:
        """What lets a fused step do the output's updates; None where its optimizer does not allow it."""
        optimizer = self.optimizers.get("output")
        return Updater(optimizer) if optimizer is not None and can_update(optimizer) else None

    def saved(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            **{name: getattr(self, name) for name in _PROGRESS},
            "model": {name: part.state_dict() for name, part in self.model.modules().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "rewirer": None if self.rewirer is None else self.rewirer.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }  # fmt: skip

    def restore(self, file: Path, saved: dict[str, Any]) -> None:
        for name, part in self.model.modules().items():
            checkpoint.restore(file, part, saved["model"][name], name)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        if self.rewirer is not None:
            self.rewirer.load_state_dict(saved["rewirer"])
        for name in _PROGRESS:
            setattr(self, name, saved[name])
        torch.set_rng_state(saved["random"]["cpu"])
        if saved["random"]["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random"]["cuda"], self.device)


def train(
    settings: config.Config, run: Path, *, resume: bool = False, quiet: bool = False, test: bool = True
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if `resume` finds one, and return what result.json holds.

    test: measure the last weights on the test documents, beside the held-out ones; without it nothing looks at them.

    Raises UserError for data or settings that do not fit, memory that runs out (with the modelled figure), and a loss
    that is no longer finite (`Diverged`; the last good checkpoint stays).
    """
    device = pick_device(settings.device)
    data = open_data(settings.data)
    rows, held = halves(data, settings.data)
    per_update = settings.training.batch * settings.training.accumulate
    updates = settings.training.epochs * math.ceil(len(rows) / per_update)
    resume = resume and bool(checkpoint.checkpoints(run))
    with runs.locked(run), deterministic(settings.deterministic):
        try:
            torch.manual_seed(settings.seed)
            known = methods.TrainingLabels(data, rows)
            state = new_state(settings, data, known, updates, device)
            if resume:
                file = checkpoint.newest(run)
                saved = checkpoint.load(file)
                checkpoint.check_data(file, saved, data.fingerprint, data.labels, data.folder)
                state.restore(file, saved)
            memory.reset_peak(device)
            screen = Screen(settings.name, updates, state.update, quiet)
            with screen, Log(run, state.update) as log:
                _epochs(settings, state, data, rows, held, updates, run, log, screen)
                return _finish(settings, state, data, held, run, screen, test)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
            if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(e):
                raise
            advice = memory.advice(settings, data.features, data.labels)
            raise UserError(f"{settings.name}: out of memory on {device}; {advice}") from None


def new_state(
    settings: config.Config, data: DataSet, known: methods.TrainingLabels, updates: int, device: torch.device
) -> State:
    """Before the first update."""
    cache = data.folder / ".groups" if os.access(data.folder, os.W_OK) else None
    orders = methods.find_orders(settings, known, device, cache)
    mean = float(known.frequency.sum()) / max(1, known.documents)
    model = methods.build(settings, data, orders, updates, mean).to(device)
    encoder = [p for name, part in model.modules().items() if name != "output" for p in part.parameters()]
    own, tail = [], []
    if isinstance(model.output, LinearOutput):
        shared, tail = model.output.shared_parameters(), model.output.tail_parameters()
        encoder += shared
        own = [p for p in model.output.parameters() if not any(p is one for one in shared)]
    optimizers = {"encoder": methods.new_optimizer(settings.encoder_optimizer, encoder, settings.seed)}
    if own:
        optimizers["output"] = methods.new_optimizer(settings.output_optimizer, own, settings.seed, tail)
    rewirer = methods.new_rewirer(settings, model.output, optimizers.get("output"), updates)
    return State(model, optimizers, rewirer)


def _epochs(
    settings: config.Config, state: State, data: DataSet, rows: NDArray[np.int64], held: NDArray[np.int64],
    updates: int, run: Path, log: Log, screen: Screen,
) -> None:  # fmt: skip
    training, device = settings.training, state.device
    precision: float | None = state.best
    while state.epoch < training.epochs:
        began, before = time.perf_counter(), state.documents
        waiting: list[encoders.Batch] = []
        order = encoders.shuffled(rows, training.batch, settings.seed, state.epoch, state.batch)
        last = math.ceil(len(rows) / training.batch)
        for batch in _prefetched(encoders.take(state.model.encoder, data.train, some) for some in order):
            waiting.append(batch)
            state.batch += 1
            if len(waiting) < training.accumulate and state.batch < last:
                continue
            loss = _update(settings, state, [one.to(device) for one in waiting], updates, log)
            documents = sum(one.rows for one in waiting)
            waiting, state.loss, state.documents = [], state.loss + loss, state.documents + documents
            if state.update % training.log_every == 0:
                seconds = time.perf_counter() - began
                rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in state.optimizers.items()}
                pace = (state.documents - before) / seconds
                log.add("step", state.update, epoch=state.epoch, loss=loss / documents, lr=rates, examples_per_s=pace)
                screen.at(state.update, loss / documents, pace, precision, memory.peak_bytes(device))
            if state.update % training.checkpoint_every == 0 and state.batch < last:
                _save(settings, state, data, run, best=False)
        seconds = time.perf_counter() - began
        told: dict[str, Any] = {"loss": state.loss / max(1, state.documents)}
        state.epoch, state.batch, state.loss, state.documents = state.epoch + 1, 0, 0.0, 0
        best = False
        if len(held) and (state.epoch % training.evaluate_every == 0 or state.epoch == training.epochs):
            metrics = evaluate(state.model, data, data.train, held, batch=training.batch, precision=training.precision,
                               propensity=settings.data.propensity)  # fmt: skip
            precision = metrics[CHOOSE_BY]
            best = state.best is None or precision > state.best
            state.best = max(precision, state.best or 0.0)
            told |= metrics
        log.add("epoch", state.update, epoch=state.epoch, epoch_s=seconds if before == 0 else None,
                peak_bytes=memory.peak_bytes(device), **told)  # fmt: skip
        shown = ", ".join(f"{name} {told[name]:.1f}" for name in ("loss", "P@1", "P@5", "PSP@5") if name in told)
        screen.say(f"epoch {state.epoch}/{training.epochs}, {seconds:.1f} s: {shown}")
        _save(settings, state, data, run, best=best)


def _update(settings: config.Config, state: State, batches: list[encoders.Batch], updates: int, log: Log) -> float:
    """One update of all weights: forward, loss, backward, clip, step, and a rewiring where one is due."""
    model = state.model.train()
    rates = {"encoder": settings.encoder_optimizer, "output": settings.output_optimizer}
    for name, optimizer in state.optimizers.items():
        methods.set_rate(optimizer, methods.learning_rate(rates[name], state.update, updates))
    if isinstance(model.output, ChunkedDense):
        model.output.lr = methods.learning_rate(settings.output_optimizer, state.update, updates)
    rewires = state.rewirer is not None and state.rewirer.due(state.update)
    by_gradient = rewires and state.rewirer is not None and state.rewirer.grow.endswith("gradient")
    updater = None if rewires or len(batches) > 1 or rates["output"].clip > 0 else state.updater
    total = 0.0
    for batch in batches:
        if isinstance(model.output, LinearOutput):
            model.output.keep_gradients = by_gradient and batch is batches[-1]
            model.output.updater = updater
        with autocast(batch.pointers.device, settings.training.precision):
            hidden = model.encoder(batch.inputs)
            loss = model.output.loss(hidden, batch)
            objective = loss
            if model.auxiliary is not None and model.auxiliary.factor(state.update) > 0:
                objective = loss + model.auxiliary.loss(hidden, batch, state.update)
        value, plain = torch.stack([objective.detach(), loss.detach()]).tolist()  # the one place where the host waits
        if not math.isfinite(value):
            raise Diverged(f"update {state.update + 1}: the loss is {value}; {_blame(state, batch, hidden)}")
        objective.backward()
        total += plain
    for name, optimizer in state.optimizers.items():
        if rates[name].clip > 0:
            parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, rates[name].clip)
        optimizer.step()
    if rewires and state.rewirer is not None and isinstance(model.output, LinearOutput):
        told = state.rewirer.apply(state.update, *(model.output.kept_gradients() if by_gradient else ()))
        log.add("rewire", state.update + 1, **{key: value for key, value in asdict(told).items() if key != "step"})
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    state.update += 1
    return total


def _blame(state: State, batch: encoders.Batch, hidden: Tensor) -> str:
    """The first tensor on the way to the loss that is not finite."""
    on_the_way: list[tuple[str, Tensor]] = [(f"input {name}", tensor) for name, tensor in batch.inputs.items()]
    parts = state.model.modules()
    on_the_way += [(f"encoder.{name}", tensor) for name, tensor in parts["encoder"].named_parameters()]
    on_the_way += [("the encoder's output", hidden)]
    on_the_way += [(f"{n}.{name}", t) for n, part in parts.items() if n != "encoder" for name, t in part.named_parameters()]
    first = next((name for name, tensor in on_the_way if not bool(tensor.isfinite().all())), None)
    if first is None:
        return "every weight is finite, so the logits overflow; lower output_optimizer.lr, or set its clip"
    return f"the first tensor that is not finite is {first}; lower the learning rates, or set a clip"


def _save(settings: config.Config, state: State, data: DataSet, run: Path, *, best: bool) -> None:
    """Raises Diverged rather than write weights that are not finite over good ones."""
    for name, part in state.model.modules().items():
        for key, tensor in part.named_parameters():
            if not bool(tensor.isfinite().all()):
                raise Diverged(f"update {state.update}: {name}.{key} is not finite; the last good checkpoint is kept")
    if settings.training.keep == 0:
        return
    about = {"config": settings.model_dump(mode="json"), "fingerprint": data.fingerprint, "labels": data.labels}
    checkpoint.save(run, {**about, **state.saved()}, keep=settings.training.keep, best=best)


def _finish(
    settings: config.Config, state: State, data: DataSet, held: NDArray[np.int64], run: Path, screen: Screen, test: bool
) -> dict[str, Any]:
    """Metrics of the last weights on the held-out documents, and on the test documents if these are asked for."""
    device = state.device
    result: dict[str, Any] = {
        "name": settings.name, "method": settings.output.method, "seed": settings.seed, "updates": state.update,
        "output_parameters": state.model.output_parameters(), "peak_bytes": memory.peak_bytes(device),
        "device": str(device), "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }  # fmt: skip
    sides = {"validation": (data.train, held)} if len(held) else {}
    if test:
        sides["test"] = (data.test, np.arange(data.test.rows))
    for side, (split, rows) in sides.items():
        metrics = evaluate(state.model, data, split, rows, batch=settings.training.batch,
                           precision=settings.training.precision, propensity=settings.data.propensity)  # fmt: skip
        result[side] = metrics
        screen.say(f"{side}: " + ", ".join(f"{k} {metrics[k]:.2f}" for k in ("P@1", "P@3", "P@5", "PSP@1", "PSP@5")))
    temporary = run / "result.json.new"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, run / "result.json")
    return result


def _prefetched(batches: Iterator[encoders.Batch]) -> Iterator[encoders.Batch]:
    """One batch is read while another is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def pick_device(name: str) -> torch.device:
    """Raises UserError where a CUDA device is asked for and torch sees none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device = {name!r}: torch sees no CUDA device here; allowed are auto, cpu, cuda, cuda:N")
    return torch.device(name)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """torch's deterministic algorithms, and the setting that cuBLAS needs for them."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
