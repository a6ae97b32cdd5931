"""Training configurations: strict TOML. Pure; imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gsbench.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Count = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
_STRICT = ConfigDict(extra="forbid", frozen=True)
SPARSE = ("fixed_fan_in", "group_shared", "head_tail")
GROUPED = ("group_shared", "head_tail")


class Data(BaseModel):
    model_config = _STRICT

    path: str = Field(description="a folder in any format of `gsbench data`; relative to the current one")
    format: Literal["auto", "prepared", "xmc", "pair", "raw"] = "auto"
    validation: Share = Field(default=0.05, description="share of the training documents held out to choose by")
    validation_limit: Count = Field(default=5000, description="the most documents held out")
    min_df: Count = 2
    ngrams: Count = 2
    content: bool = Field(default=True, description="raw texts: title and content, or the title alone")
    propensity: Literal["wikipedia", "amazon", "default"] = "default"


class Encoder(BaseModel):
    model_config = _STRICT

    kind: Literal["bag_of_words", "transformer"] = "bag_of_words"
    dim: Count = Field(default=768, description="D; of a transformer, its hidden size")
    dropout: Share = 0.3
    tail_dropout: Share | None = Field(default=None, description="of what a head-tail layer's tail reads, drawn apart: then "
                                       "`dropout` is the head's. By default both read the same")  # fmt: skip
    feature_dropout: Share = Field(default=0.0, description="bag of words: share of the features left out at random")
    blocks: int = Field(default=0, strict=True, ge=0, description="residual blocks of two layers each")
    std: float = Field(default=0.05, gt=0, description="of the initial embeddings")
    model: str = Field(default="", description="transformer: a name or folder that transformers can load")
    pool: Literal["mean", "first"] = "mean"
    max_tokens: Count = 128

    @property
    def dropouts(self) -> tuple[float, ...]:
        """Of each view of the documents that the output layer reads: one for all labels, or one for the head and one for
        the tail."""
        return (self.dropout,) if self.tail_dropout is None else (self.dropout, self.tail_dropout)


class Output(BaseModel):
    model_config = _STRICT

    method: Literal["dense", "chunked_dense", "bottleneck", "fixed_fan_in", "group_shared", "head_tail"]
    fan_in: Count = Field(default=64, description="K; the bottleneck's rank matches its FLOPs")
    group_size: Count = 32
    grouping: Literal["semantic", "frequency", "random"] = "semantic"
    head_share: float = Field(default=0.1, gt=0, lt=1)
    private_features: bool = Field(default=False, description="head and tail read different halves of the encoder's output")
    loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy"
    bias: float | None = Field(default=None, description="initial bias; by default the logit of the share of positives")
    implementation: str = Field(default="", description="of the sparse layer; by default the fastest of the device")
    chunk_labels: Count = Field(default=8192, description="labels of a chunk of chunked_dense")
    weights: Literal["fp32", "bf16"] = "fp32"
    fused: bool = Field(default=True, description="loss, gradients and, by sgd, the update in one pass, where they can be")


class Rewire(BaseModel):
    """SET grows at random, RigL by the gradient. Without this table the topology is static."""

    model_config = _STRICT

    grow: Literal["random", "gradient", "banked_random", "banked_gradient"]
    score: Literal["mean_weight", "max_weight", "weight_gradient"] = "mean_weight"
    drop: Literal["group", "global"] = "group"
    interval: Count = Field(description="steps")
    fraction: float = Field(default=0.25, gt=0, le=1, description="of the slots at first; decays by a cosine")
    until: float = Field(default=0.66, gt=0, le=1, description="share of training after which nothing is rewired")


class Auxiliary(BaseModel):
    """Spartex: a loss over coarse clusters of labels whose weight falls to zero (Ullah et al. 2024)."""

    model_config = _STRICT

    clusters: Count
    weight: float = Field(default=1.0, gt=0)
    until: float = Field(default=0.5, gt=0, le=1, description="share of training at which the weight is zero")


class Optimizer(BaseModel):
    model_config = _STRICT

    name: Literal["sgd", "adamw", "adam"]
    lr: float = Field(gt=0)
    momentum: Share = 0.0
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: Share = Field(default=0.0, description="share of training")
    decay: Literal["cosine", "none"] = "cosine"
    clip: float = Field(default=0.0, ge=0, description="largest norm of the gradients; 0: not clipped")
    update: Literal["nearest", "stochastic", "kahan"] = Field(default="nearest", description="how bf16 weights are updated")
    tail: float = Field(default=1.0, gt=0, description="factor of lr for the tail of a head-tail layer, whose labels "
                        "read K of D inputs: at one rate their logits move K / D as far as the head's")  # fmt: skip
    tail_weight_decay: float | None = Field(default=None, ge=0, description="the tail's own; by default weight_decay")

    @model_validator(mode="after")
    def _fits(self) -> Optimizer:
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum is for sgd, not for {self.name}")
        if self.update != "nearest" and self.name != "sgd":
            raise ValueError(f"update {self.update!r} is for sgd, not for {self.name}")
        return self


class Training(BaseModel):
    model_config = _STRICT

    epochs: Count = 10
    batch: Count = 256
    accumulate: Count = Field(default=1, description="batches of one update")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of the activations (autocast)")
    evaluate_every: Count = Field(default=1, description="epochs")
    checkpoint_every: Count = Field(default=1000, description="updates; and at the end of each epoch")
    keep: int = Field(default=2, strict=True, ge=0, description="newest checkpoints kept, beside the best; 0: none")
    log_every: Count = Field(default=50, description="updates")


class Config(BaseModel):
    """One run."""

    model_config = _STRICT

    name: str = Field(pattern=r"^[\w.-]+$", description="letters, digits, dots, dashes")
    seed: int = Field(default=0, strict=True, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    deterministic: bool = Field(default=False, description="the same curve, bit by bit, on the same machine")
    data: Data
    encoder: Encoder = Encoder()
    output: Output
    rewire: Rewire | None = None
    auxiliary: Auxiliary | None = None
    encoder_optimizer: Optimizer = Optimizer(name="adamw", lr=1e-3, warmup=0.05)
    output_optimizer: Optimizer = Optimizer(name="sgd", lr=0.05, momentum=0.9)
    training: Training = Training()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        out, sgd = self.output, self.output_optimizer
        if self.rewire is not None and out.method not in SPARSE:
            raise ValueError(f"[rewire] needs output.method = {' or '.join(SPARSE)}, not {out.method}")
        if out.method in SPARSE and out.fan_in > self.tail_dim:
            raise ValueError(f"output.fan_in = {out.fan_in} exceeds the {self.tail_dim} inputs of the sparse layer")
        if out.private_features and out.method != "head_tail":
            raise ValueError("output.private_features is for method head_tail")
        if self.encoder.kind == "transformer" and not self.encoder.model:
            raise ValueError("encoder.model must name a transformer")
        if sgd.update != "nearest" and out.weights != "bf16":
            raise ValueError(f"output_optimizer.update = {sgd.update!r} is for output.weights = 'bf16'")
        self._check_tail()
        if self.encoder_optimizer.update != "nearest":
            raise ValueError("encoder_optimizer.update: the encoder's weights are fp32; only 'nearest' is allowed")
        if out.method == "chunked_dense":
            self._check_fused()
        return self

    def _check_tail(self) -> None:
        """What is of a head-tail layer's tail alone."""
        out, sgd, encoder = self.output, self.output_optimizer, self.encoder_optimizer
        if out.method != "head_tail":
            if sgd.tail != 1:
                raise ValueError("output_optimizer.tail is for method head_tail; for other layers set lr")
            if sgd.tail_weight_decay is not None:
                raise ValueError(
                    "output_optimizer.tail_weight_decay is for method head_tail; for other layers set weight_decay"
                )
            if self.encoder.tail_dropout is not None:
                raise ValueError("encoder.tail_dropout is for method head_tail; for other layers set dropout")
        if out.private_features and self.encoder.tail_dropout is not None:
            raise ValueError("encoder.tail_dropout: with output.private_features the tail has half of the encoder's output")
        for name in ("tail", "tail_weight_decay"):
            if getattr(encoder, name) != Optimizer.model_fields[name].default:
                raise ValueError(f"encoder_optimizer.{name}: the encoder has no tail; set output_optimizer.{name}")

    def _check_fused(self) -> None:
        optimizer, loss = self.output_optimizer, self.output.loss
        wrong = {
            "name": (optimizer.name, "sgd"), "momentum": (optimizer.momentum, 0.0), "clip": (optimizer.clip, 0.0),
            "update": (optimizer.update if optimizer.update == "kahan" else "", ""),
        }  # fmt: skip
        for key, (value, allowed) in wrong.items():
            if value != allowed:
                raise ValueError(
                    f"output_optimizer.{key} = {value!r}: chunked_dense updates as it goes, by sgd without momentum, "
                    "clipping or Kahan sums"
                )
        if self.training.accumulate > 1 or loss != "cross_entropy":
            raise ValueError("chunked_dense updates as it goes: training.accumulate must be 1, output.loss cross_entropy")

    @property
    def tail_dim(self) -> int:
        """Inputs that the sparse layer may read."""
        return self.encoder.dim - self.encoder.dim // 2 if self.output.private_features else self.encoder.dim


def shipped(name: str) -> Path:
    """The configuration of that name that comes with gsbench. Raises UserError that lists them."""
    folder = Path(__file__).parent / "configs"
    file = folder / f"{name}.toml"
    if not file.exists():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.toml")))
        raise UserError(f"unknown configuration {name!r}; known: {known}; or give the path of a .toml file")
    return file


def find(name: str) -> Path:
    """A .toml file, or a shipped one by name."""
    return Path(name) if name.endswith(".toml") or Path(name).exists() else shipped(name)


def load_toml(file: Path) -> dict[str, Any]:
    """Raises UserError where there is no such file, or it is no TOML."""
    try:
        table: dict[str, Any] = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: no such configuration") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise UserError(f"{file}: not a TOML file: {e}") from None
    return table


def load_config(file: Path) -> Config:
    """The configuration of a file. Raises UserError as `validate`."""
    return validate(load_toml(file), str(file))


def validate(data: dict[str, Any], source: str) -> Config:
    """data.path is made absolute. Raises UserError: one line that names source, key, fault and, for an unknown key,
    the known ones."""
    try:
        config = Config.model_validate(data)
    except ValidationError as e:
        raise UserError(f"{source}: " + "; ".join(_in_words(dict(error)) for error in e.errors()[:3])) from None
    absolute = str(Path(config.data.path).absolute())
    return config.model_copy(update={"data": config.data.model_copy(update={"path": absolute})})


_TABLES: dict[str, type[BaseModel]] = {
    "data": Data, "encoder": Encoder, "output": Output, "rewire": Rewire, "auxiliary": Auxiliary,
    "encoder_optimizer": Optimizer, "output_optimizer": Optimizer, "training": Training,
}  # fmt: skip


def _in_words(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        table = _TABLES.get(str(error["loc"][0])) if len(error["loc"]) > 1 else None
        return f"unknown key {place!r}; known: {', '.join((table or Config).model_fields)}"
    if error["type"] == "missing":
        return f"{place}: is missing"
    if error["type"] == "value_error":
        return (f"{place}: " if place else "") + str(error["msg"]).removeprefix("Value error, ")
    message = str(error["msg"])
    return f"{place}: {message[0].lower()}{message[1:]}, got {error['input']!r}"
