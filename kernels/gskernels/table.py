"""Every implementation, one line each. Imports nothing heavy: planning a sweep needs no torch.

An implementation's module (imported on first use) defines, for ``layer: gskernels.layer.Layer``:

    forward(x, layer) -> y                        x [B, D], y [B, L]
    grad_input(grad_out, layer) -> dx             grad_out [B, L], dx [B, D]
    grad_weight(grad_out, x, layer) -> dw         dw has the shape of layer.weight
    backward(grad_out, x, layer) -> (dx, dw)      optional: both gradients from one read of grad_out
    step(x, layer, targets, updates, guard)       optional, as in `gskernels.steps`; without it, forward and backward
    topk(x, layer, k, exclude, ties)              optional, as in `gskernels.ranking`; without it, forward and torch.topk

A head-tail layer has the gradient of `layer.head` after dw, a bottleneck that of `layer.down`. Rules of rewiring (layout
"rules") are measured like layers, by the functions score_slots and grow of `gskernels.rewire`.

All tensors are row-major contiguous and share one dtype; sums accumulate in fp32. `Implementation.options`
are passed on as keywords.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from gskernels import models
from gskernels.routes import aligned_rows, chunk_labels, takes_dense
from gskernels.shape import Limit, Shape, Workspace

FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD = "forward", "grad_input", "grad_weight", "backward"
STEP, TOPK = "step", "topk"
SCORE, GROW = "score", "grow"
LINEAR_PASSES = (FORWARD, GRAD_INPUT, GRAD_WEIGHT, BACKWARD)
ALL_PASSES = (*LINEAR_PASSES, STEP, TOPK)  # of a layer
USES = {STEP: (FORWARD, BACKWARD), TOPK: (FORWARD,)}  # where a module has none of its own
RULE_PASSES = (SCORE, GROW)  # of a rewiring
FLOATS = ("fp32", "fp16", "bf16")
Layout = Literal["dense", "bottleneck", "masked", "sparse", "head_tail", "rules"]


def no_limit(shape: Shape, pass_: str, dtype: str, device: str) -> str | None:
    return None


def no_workspace(shape: Shape, pass_: str, item: int) -> int:
    return 0


@dataclass(frozen=True)
class Implementation:
    """One way to compute the layer. `name` is ``family/backend``.

    limit(shape, pass, dtype, device): why a case is impossible, in words. workspace(shape, pass, bytes an element):
    modelled bytes of temporaries beside the outputs; fused: the same of step and topk, where the module has a step of its
    own (without it: what forward and backward need, and the logits). tuned: whether a measurement decides something of it,
    its configuration (`gskernels.tune`) or where it is the default (`gskernels.dispatch`). needs: of a rule, what it reads
    beside weights and lists: "dw", or "x" and "y".
    """

    name: str
    module: str
    layout: Layout
    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = FLOATS
    passes: tuple[str, ...] = ALL_PASSES
    limit: Limit = no_limit
    workspace: Workspace = no_workspace
    fused: Workspace | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: bool = False
    needs: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return self.name.split("/")[0]

    @property
    def backend(self) -> str:
        return self.name.split("/")[1]

    def topology_group_size(self, group_size: int) -> int:
        """Labels that share an index list here: per-label families have groups of one."""
        return 1 if self.family == "fixed_fan_in" else group_size

    def belongs(self, pass_: str, shape: Shape) -> bool:
        """Whether the case makes sense: a rule has its own pass, and no layer has that; a head-tail layer needs a head."""
        if self.layout == "rules" or pass_ in RULE_PASSES:
            return pass_ in self.passes
        return self.layout != "head_tail" or shape.head > 0

    def unsupported(self, shape: Shape, pass_: str, dtype: str, device: str) -> str | None:
        """Why this case cannot run, in words, or None if it can."""
        if device not in self.devices:
            return f"{self.name} runs on {' and '.join(self.devices)}, not on {device}"
        if pass_ not in self.passes:
            return f"{self.name} has no {pass_} pass (it has {', '.join(self.passes)})"
        if dtype not in self.dtypes:
            return f"{self.name} takes {', '.join(self.dtypes)}, not {dtype}"
        for used in USES.get(pass_, (pass_,)) if self.fused is None else (pass_,):
            reason = self.limit(shape, used, dtype, device)
            if reason is not None:
                return reason
        return None

    def temporaries(self, shape: Shape, pass_: str, item: int) -> int:
        """Modelled bytes beside the outputs of one call."""
        if pass_ not in (STEP, TOPK):
            return self.workspace(shape, pass_, item)
        if self.fused is not None:
            return self.fused(shape, pass_, item)
        return shape.batch * shape.labels * item + max(self.workspace(shape, one, item) for one in USES[pass_])

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


def _csr_limit(shape: Shape, pass_: str, dtype: str, device: str) -> str | None:
    if device == "cpu" and dtype != "fp32":
        return f"torch.sparse on the CPU multiplies in fp32 only, not {dtype}"
    if pass_ in (GRAD_WEIGHT, BACKWARD) and dtype != "fp32":
        return f"torch.sparse.sampled_addmm (cuSPARSE SDDMM) takes fp32, not {dtype}"
    return None


def _embedding_bag_limit(shape: Shape, pass_: str, dtype: str, device: str) -> str | None:
    if device == "cuda" and dtype == "bf16" and pass_ in (GRAD_WEIGHT, BACKWARD):
        return "torch's embedding_bag has no bf16 gradient of per-sample weights on CUDA"
    return None


# ---- modelled temporaries: bytes beside the outputs of one call -------------------------------------------------


def _masked_workspace(shape: Shape, pass_: str, item: int) -> int:
    return shape.labels * shape.dim * item if pass_ in (FORWARD, GRAD_INPUT) else 0  # weight * mask


def _bottleneck_workspace(shape: Shape, pass_: str, item: int) -> int:
    return 0 if pass_ == GRAD_WEIGHT else shape.batch * shape.bottleneck_rank * item  # the hidden activations


def _densify_workspace(shape: Shape, pass_: str, item: int) -> int:
    chunk = min(64 << 20, shape.labels * shape.dim * item)
    return chunk + (4 * shape.batch * shape.dim if pass_ in (GRAD_INPUT, BACKWARD) else 0)


def _gather_workspace(shape: Shape, pass_: str, item: int) -> int:
    return min(64 << 20, shape.labels * shape.fan_in * shape.batch * item) + shape.batch * shape.dim * item


def _group_shared_workspace(shape: Shape, pass_: str, item: int) -> int:
    """X^T in the input type and, for grad_input, four accumulators of dX^T in fp32."""
    return shape.batch * shape.dim * (item + (16 if pass_ in (GRAD_INPUT, BACKWARD) else 0))


def _group_shared_cuda_workspace(shape: Shape, pass_: str, item: int) -> int:
    """As above, with rows of the batch padded to slices, and four accumulators only while these are small.

    Where the Hopper kernels run (`group_shared.hopper`): nothing but the partial sums of grad_input, in 24 bits each,
    and for both gradients X^T.
    """
    if _on_hopper(shape, item):
        if pass_ == FORWARD:
            return 0
        if pass_ in (GRAD_INPUT, BACKWARD):
            return _ordered_sums(shape) * 3 // 4 + (shape.batch * shape.dim * item if pass_ == BACKWARD else 0)
    wide = math.ceil(shape.batch / 32) * 32 * shape.dim
    forward = math.ceil(shape.batch / 64) * 64 * shape.dim * item if shape.batch > 32 else wide * item
    if pass_ == FORWARD:
        return forward
    if pass_ == GRAD_INPUT and shape.group_size <= 16 and shape.batch > 32:
        return _ordered_sums(shape)
    sums = wide * 4 * (4 if wide < 1 << 21 else 1) if pass_ in (GRAD_INPUT, BACKWARD) else 0
    return sums + (wide * item if pass_ in (GRAD_WEIGHT, BACKWARD) else 0)


def _on_hopper(shape: Shape, item: int) -> bool:
    """Whether the Hopper kernels take forward and grad_input, as their plans say for an H200."""
    whole = shape.dim % 64 == 0 and shape.dim <= 832 and shape.fan_in % 64 == 0 and shape.labels % 8 == 0
    return whole and item == 2 and shape.batch > 32 and shape.group_size in (16, 32, 64, 128, 256)


def _best_on_hopper(shape: Shape, item: int) -> bool:
    """Whether the Hopper kernel takes topk, as its plan says for an H200."""
    whole = shape.dim % 64 == 0 and shape.group_size % 16 == 0 and shape.fan_in in (64, 128, 192, 256)
    return whole and item == 2 and shape.dim * 128 + 272 * shape.fan_in <= 231_424


def _group_shared_ordered_workspace(shape: Shape, pass_: str, item: int) -> int:
    """The partial sums of grad_input; grad_weight, which runs after it, needs less."""
    return _ordered_sums(shape)


def _ordered_sums(shape: Shape) -> int:
    """fp32 sums of a slice of 64 rows for each multiprocessor of an H200, or of the whole batch."""
    return 4 * shape.dim * max(132 * 64, math.ceil(shape.batch / 64) * 64)


def _per_label_workspace(shape: Shape, pass_: str, item: int) -> int:
    """X^T and, in another order, the weights; for grad_input dY^T as well."""
    weights = 0 if pass_ == GRAD_WEIGHT else shape.labels * shape.fan_in * item
    grad_out = shape.batch * shape.labels * item if pass_ in (GRAD_INPUT, BACKWARD) else 0
    return shape.batch * shape.dim * item + weights + grad_out


def _per_label_cuda_workspace(shape: Shape, pass_: str, item: int) -> int:
    """The larger gradient's; on the multiprocessors of an H200."""
    if pass_ == BACKWARD:
        return max(_per_label_cuda_workspace(shape, one, item) for one in (GRAD_INPUT, GRAD_WEIGHT))
    batch, dim, labels, fan_in = shape.batch, shape.dim, shape.labels, shape.fan_in
    if takes_dense(pass_, batch, dim, labels, fan_in, item):
        chunk = chunk_labels(labels, dim, item)
        rows = 0 if aligned_rows(labels, item) else batch * chunk * item
        return chunk * dim * item + rows + (batch * dim * (4 + item) if pass_ == GRAD_INPUT else 0)
    if pass_ == GRAD_INPUT:  # the weights in another order, padded; the sums of every block
        columns = 128 // item
        slices = -(-batch // columns)
        parts = max(1, min(-(-labels // 768), 264 // slices))
        return labels * fan_in * item * 5 // 4 + (parts + 1) * dim * slices * columns * 4
    padded = labels * -(-fan_in // 8) * 8 * item if pass_ == FORWARD and fan_in % 8 else 0
    sums = labels * fan_in * 4 if pass_ == GRAD_WEIGHT and batch * item > 256 else 0
    return batch * dim * item + padded + sums


def _apart_workspace(shape: Shape, pass_: str, item: int) -> int:
    """The larger of what the two passes may need, whoever computes them."""
    either = (_group_shared_workspace, _group_shared_cuda_workspace)
    return max(workspace(shape, one, item) for one in (GRAD_INPUT, GRAD_WEIGHT) for workspace in either)


def _chunked_fused(shape: Shape, pass_: str, item: int) -> int:
    """A chunk's logits and, as it is multiplied out in fp32, its gradient; dx in fp32."""
    labels = min(shape.labels, max(128, (32 << 20) // (shape.batch * item)))
    return labels * (shape.batch * item + shape.dim * 4) + 8 * shape.batch * shape.dim


def _step_in_chunks(shape: Shape, pass_: str, item: int) -> int:
    """As above for the step; topk stores the logits."""
    return _chunked_fused(shape, pass_, item) if pass_ == STEP else shape.batch * shape.labels * item


def _group_shared_fused(shape: Shape, pass_: str, item: int) -> int:
    """X^T, four dX^T in fp32 and where each group's positives begin; for topk a chunk of tiles' largest logits, twice."""
    if pass_ == STEP:
        return _group_shared_workspace(shape, GRAD_INPUT, item) + 4 * math.ceil(shape.labels / shape.group_size)
    tiles = math.ceil(shape.labels / shape.group_size) * math.ceil(shape.group_size / 128)
    return 2 * min(64 << 20, 8 * tiles * shape.batch) + shape.batch * shape.dim * item


def _group_shared_cuda_fused(shape: Shape, pass_: str, item: int) -> int:
    """For the step on an H200 X^T, dX^T in fp32, the ring between its blocks, and where each unit's positives begin; for
    topk the largest logit of each 64 labels and of each 256, and what is known of their parts, in whole windows of 512."""
    if pass_ != STEP and _best_on_hopper(shape, item):
        return 6 * shape.batch * math.ceil(shape.labels / 512) * 8
    if pass_ != STEP or item == 4:
        return _group_shared_fused(shape, pass_, item)  # Triton's
    unit, slices = 32 if shape.group_size % 32 == 0 else 16, math.ceil(shape.batch / 64)
    stages = min(16, max(2, (231_424 - shape.dim * 256) // (unit * (shape.fan_in + 64) * 2)))  # of who owns batch rows
    slots = math.ceil(slices / 2) * (5 * 76 + 3 * (stages + 1) * max(1, 56 // slices))
    ring = slots * unit * (shape.fan_in + 64 * min(slices, 2)) * item
    return ring + slices * 64 * shape.dim * (item + 4) + 4 * math.ceil(shape.labels / unit)


def _head_tail(backend: str, summary: str, devices: tuple[str, ...] = ("cpu", "cuda")) -> Implementation:
    tail = f"group_shared/{backend}"

    def of_tail(shape: Shape, pass_: str, item: int) -> int:
        gradient = shape.labels * shape.fan_in * item if pass_ == STEP and find(tail).fused is None else 0
        return find(tail).temporaries(shape, pass_, item) + gradient

    memory = models.beside_head(_chunked_fused, of_tail)
    return Implementation(
        f"head_tail/{backend}", "gskernels.head_tail_passes", "head_tail", summary, devices,
        passes=(FORWARD, BACKWARD, STEP, TOPK), limit=models.head_limit, workspace=memory, fused=memory,
        options={"tail": tail},
    )  # fmt: skip


def _rule(pass_: str, rule: str, summary: str, needs: tuple[str, ...] = ()) -> Implementation:
    limit, workspace = (models.growth_limit, models.growth(needs)) if pass_ == GROW else (no_limit, models.score)
    return Implementation(
        f"{pass_}/{rule}", "gskernels.rewire", "rules", summary, passes=(pass_,), needs=needs, options={"rule": rule},
        limit=limit, workspace=workspace,
    )  # fmt: skip


IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation("dense/torch", "gskernels.dense", "dense", "full matrix, cuBLAS / MKL"),
    Implementation("dense/chunked", "gskernels.chunked", "dense",
                   "chunks of labels, their update fused with their gradient; no logits of all labels", passes=(STEP, TOPK),
                   fused=_chunked_fused),
    Implementation("bottleneck/torch", "gskernels.bottleneck", "bottleneck", "FLOPs-matched D -> r -> L, cuBLAS / MKL",
                   workspace=_bottleneck_workspace),
    Implementation("bottleneck/chunked", "gskernels.chunked", "bottleneck", "the same over the hidden activations",
                   passes=(STEP, TOPK), fused=_chunked_fused),
    Implementation("masked_dense/torch", "gskernels.masked_dense", "masked",
                   "simulated sparsity: full matrix times a mask, what most sparse-training code does",
                   workspace=_masked_workspace),
    Implementation("fixed_fan_in/gather", "gskernels.fixed_fan_in.gather", "sparse", "plain torch: gather, multiply, sum",
                   workspace=_gather_workspace),
    Implementation("fixed_fan_in/csr", "gskernels.fixed_fan_in.csr", "sparse", "torch.sparse CSR: cuSPARSE / MKL",
                   limit=_csr_limit),
    Implementation("fixed_fan_in/embedding_bag", "gskernels.fixed_fan_in.embedding_bag", "sparse",
                   "weighted bags over the columns of X", limit=_embedding_bag_limit),
    Implementation("fixed_fan_in/densify", "gskernels.fixed_fan_in.densify", "sparse",
                   "scatter a chunk of labels to dense, then cuBLAS / MKL", workspace=_densify_workspace,
                   fused=_step_in_chunks),
    Implementation("fixed_fan_in/triton", "gskernels.fixed_fan_in.triton", "sparse", "gather kernels over X^T rows",
                   devices=("cuda",), workspace=_per_label_workspace, tuned=True),
    Implementation("fixed_fan_in/cuda", "gskernels.fixed_fan_in.cuda", "sparse",
                   "X^T in shared memory, whole rows, tensor cores; or expanded to dense for cuBLAS, where that is faster",
                   devices=("cuda",), workspace=_per_label_cuda_workspace, fused=_step_in_chunks),
    Implementation("group_shared/torch", "gskernels.group_shared.torch", "sparse", "chunked gather and batched product",
                   fused=_step_in_chunks),
    Implementation("group_shared/triton", "gskernels.group_shared.triton", "sparse",
                   "gather and tensor-core product, atomic grad_input; step and topk store no logits", devices=("cuda",),
                   workspace=_group_shared_workspace, fused=_group_shared_fused, tuned=True),
    Implementation("group_shared/triton_deterministic", "gskernels.group_shared.triton", "sparse",
                   "the same with a fixed summation order in grad_input", devices=("cuda",),
                   passes=(GRAD_INPUT, BACKWARD), options={"deterministic": True}, tuned=True),
    Implementation("group_shared/cuda", "gskernels.group_shared.cuda", "sparse",
                   "CUDA C++: gather and tensor-core product, off Hopper atomic grad_input; step and topk store no logits",
                   devices=("cuda",), workspace=_group_shared_cuda_workspace, fused=_group_shared_cuda_fused, tuned=True),
    Implementation("group_shared/cuda_deterministic", "gskernels.group_shared.cuda", "sparse",
                   "the same with a fixed summation order in grad_input", devices=("cuda",),
                   passes=(GRAD_INPUT, BACKWARD), workspace=_group_shared_ordered_workspace,
                   options={"deterministic": True}, tuned=True),
    Implementation("group_shared/apart", "gskernels.group_shared.apart", "sparse",
                   "one gradient after the other, each by what is fastest for it", devices=("cuda",), passes=(BACKWARD,),
                   workspace=_apart_workspace),
    _head_tail("torch", "dense head over the first labels, group_shared/torch over the others, one buffer of logits"),
    _head_tail("triton", "the same with group_shared/triton; step and topk store no logits of all labels", ("cuda",)),
    _head_tail("cuda", "the same with group_shared/cuda", ("cuda",)),
    _rule(SCORE, "mean_weight", "what a slot is worth: mean of |w| over the group's labels (SET, RigL)"),
    _rule(SCORE, "max_weight", "what a slot is worth: the largest |w|"),
    _rule(SCORE, "weight_gradient", "what a slot is worth: mean of |w * grad|", needs=("dw",)),
    _rule(GROW, "random", "grows any input that is not read (SET)"),
    _rule(GROW, "banked_random", "the same, with residues mod 8 kept"),
    _rule(GROW, "gradient", "grows by the group norm of the dense gradient, in chunks of labels (RigL)", needs=("x", "y")),
    _rule(GROW, "banked_gradient", "the same, with residues mod 8 kept", needs=("x", "y")),
)


def find(name: str) -> Implementation:
    """The implementation of that name. Raises KeyError that lists the known names."""
    for implementation in IMPLEMENTATIONS:
        if implementation.name == name:
            return implementation
    known = ", ".join(i.name for i in IMPLEMENTATIONS)
    raise KeyError(f"unknown implementation {name!r}; known: {known}")
