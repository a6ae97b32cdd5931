"""Memory: what a configuration needs by the model, what a run has used."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from gsbench.train import config
from gskernels.chunked import CHUNK_BYTES
from gskernels.shape import Shape

_LOGITS = {"fp32": 4, "bf16": 2}


def modelled_bytes(settings: config.Config, features: int, labels: int) -> dict[str, int]:
    """Bytes of the output layer with its gradients and optimizer's state, of the logits and of the encoder's same."""
    out, batch, dim = settings.output, settings.training.batch, settings.encoder.dim
    item = _LOGITS[out.weights]
    head, head_dim = round(out.head_share * labels), dim // 2 if out.private_features else dim
    shape = Shape(batch, dim, labels, out.fan_in, 1)
    weights = {
        "dense": labels * dim, "chunked_dense": labels * dim,
        "bottleneck": shape.bottleneck_rank * (labels + dim),
        "fixed_fan_in": labels * out.fan_in, "group_shared": labels * out.fan_in,
        "head_tail": head * head_dim + (labels - head) * out.fan_in,
    }[out.method]  # fmt: skip
    chunked = out.method == "chunked_dense"
    copies = 1 if chunked else 2 + _states(settings.output_optimizer)
    sharing = {"fixed_fan_in": 1, "group_shared": out.group_size, "head_tail": out.group_size}
    rows = (labels - head if out.method == "head_tail" else labels) // sharing[out.method] if out.method in sharing else 0
    lists = rows * out.fan_in * (2 if dim <= 2**15 else 4)
    logits = batch * (min(labels, out.chunk_labels) * 8 if chunked else labels * _LOGITS[settings.training.precision])
    if _never_whole(settings):
        logits = min(logits, max(CHUNK_BYTES.values()))
    embedding = features * dim * 4 if settings.encoder.kind == "bag_of_words" else 0
    encoder = embedding * (2 + _states(settings.encoder_optimizer))
    return {"output layer": weights * item * copies + lists, "logits": logits, "encoder": encoder}


def _never_whole(settings: config.Config) -> bool:
    """Whether no step stores the logits of all labels: fused ones do not, where the layer has a step of its own everywhere;
    a rewiring that looks at gradients does."""
    by_gradient = settings.rewire is not None and settings.rewire.grow.endswith("gradient")
    return settings.output.fused and settings.output.method != "fixed_fan_in" and not by_gradient


def _states(optimizer: config.Optimizer) -> int:
    """Tensors of the weight's size that the optimizer keeps."""
    return 2 if optimizer.name != "sgd" else int(optimizer.momentum > 0) + int(optimizer.update == "kahan")


def advice(settings: config.Config, features: int, labels: int) -> str:
    """What to say when memory has run out."""
    parts = modelled_bytes(settings, features, labels)
    figures = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in parts.items())
    largest = max(parts, key=lambda name: parts[name])
    change = {
        "output layer": "use output.method = 'group_shared', 'head_tail' or 'chunked_dense', or output.weights = 'bf16'",
        "logits": "set output.fused, make training.batch smaller (and training.accumulate larger), or use 'chunked_dense'",
        "encoder": "make encoder.dim smaller, or data.min_df larger",
    }[largest]
    return f"modelled: {figures}; {change}"


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: start the high-water mark again


def peak_bytes(device: torch.device) -> int:
    """Of the device since `reset_peak`; on a CPU the resident memory of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
