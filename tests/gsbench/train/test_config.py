"""Configurations: every fault in one line with file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsbench.errors import UserError
from gsbench.train.config import find, load_config
from gsbench.train.grid import load_grid

GOOD = """
name = "mine"
[data]
path = "words"
[output]
method = "head_tail"
fan_in = 64
[rewire]
grow = "random"
interval = 100
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def test_a_file_and_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = load_config(write(tmp_path, GOOD))
    assert made.data.path == str(tmp_path / "words")
    assert (made.encoder.dim, made.output_optimizer.lr, made.output_optimizer.momentum) == (768, 0.05, 0.9)
    assert made.rewire is not None
    assert (made.rewire.fraction, made.rewire.until) == (0.25, 0.66)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name", "nam"), "name: is missing"),
        (('"mine"', '"a/b"'), "name: string should match pattern"),
        (("[data]", "[dta]"), "unknown key 'dta'; known: name, seed, device"),
        (("fan_in", "fanin"), "unknown key 'output.fanin'; known: method, fan_in, group_size"),
        (("head_tail", "headtail"), "output.method: input should be 'dense', 'chunked_dense', .* got 'headtail'"),
        (("fan_in = 64", 'fan_in = "64"'), "output.fan_in: input should be a valid integer, got '64'"),
        (("fan_in = 64", "fan_in = 0"), "output.fan_in: input should be greater than or equal to 1, got 0"),
        (("fan_in = 64", "fan_in = 769"), "output.fan_in = 769 exceeds the 768 inputs of the sparse layer"),
        (("fan_in = 64", "fan_in = 385\nprivate_features = true"), "output.fan_in = 385 exceeds the 384 inputs"),
        (("head_tail", "dense"), r"\[rewire\] needs output.method = fixed_fan_in or group_shared or head_tail, not dense"),
        (("interval = 100", ""), "rewire.interval: is missing"),
        (("fan_in = 64", "head_share = 1.0"), "output.head_share: input should be less than 1, got 1.0"),
        (('"random"', '"SET"'), "rewire.grow: input should be 'random', .* got 'SET'"),
        (("[rewire]", '[encoder]\nkind = "transformer"\n[rewire]'), "encoder.model must name a transformer"),
        (("[rewire]", '[output_optimizer]\nname = "adam"\nlr = 1\nmomentum = 0.9\n[rewire]'), "momentum is for sgd"),
        (("[rewire]", '[output_optimizer]\nname = "sgd"\nlr = 1\nupdate = "kahan"\n[rewire]'), "is for output.weights"),
        (("head_tail", 'group_shared"\nprivate_features = true #'), "private_features is for method head_tail"),
        (('"head_tail"\nfan_in = 64', '"group_shared"\n[encoder]\ntail_dropout = 0.1'), "tail_dropout is for method head"),
        (("[rewire]", "private_features = true\n[encoder]\ntail_dropout = 0.1\n[rewire]"), "tail has half of the encoder's"),
        (('[rewire]\ngrow = "random"\ninterval = 100', ""), None),
        (('method = "head_tail"', 'method = "chunked_dense" #'), "rewire"),
        (("[data]", "[data"), "not a TOML file"),
        (('"words"', '"words"\npropensity = "wiki"'), "data.propensity: input should be 'wikipedia', 'amazon' or 'default'"),
    ],
)
def test_a_fault_in_the_file_is_named(tmp_path: Path, change: tuple[str, str], message: str | None) -> None:
    file = write(tmp_path, GOOD.replace(*change))
    if message is None:
        load_config(file)
        return
    with pytest.raises(UserError, match=message) as e:
        load_config(file)
    assert str(file) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('[output_optimizer]\nname = "sgd"\nlr = 1\nmomentum = 0.9', "output_optimizer.momentum = 0.9: chunked_dense"),
        ('[output_optimizer]\nname = "adamw"\nlr = 1', "output_optimizer.name = 'adamw': chunked_dense updates as it goes"),
        ('[output_optimizer]\nname = "sgd"\nlr = 1\n[training]\naccumulate = 2', "training.accumulate must be 1"),
    ],
)
def test_what_a_fused_update_cannot_do(tmp_path: Path, line: str, message: str) -> None:
    start = GOOD.split("[rewire]")[0].replace("head_tail", "chunked_dense")
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, start + line))


@pytest.mark.parametrize("name", ["wordnet", "wordnet-grid", "wordnet-tuned"])
def test_shipped_configurations_are_valid(name: str) -> None:
    read = load_config if name == "wordnet" else load_grid
    assert read(find(name)).name.startswith("wordnet")  # type: ignore[operator]


def test_no_such_file(tmp_path: Path) -> None:
    known = "wordnet, wordnet-grid, wordnet-tuned"
    with pytest.raises(UserError, match=f"unknown configuration 'words'; known: {known}; or give the path"):
        find("words")
    with pytest.raises(UserError, match=r"none.toml: no such configuration"):
        load_config(tmp_path / "none.toml")


GRID = """
name = "table"
seeds = [0, 1]
[base]
data = { path = "words" }
[methods.dense]
output = { method = "dense" }
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = [0, 1]", "seeds = [0, 0]"), r"seeds: must be a list of distinct whole numbers from 0 on, got \[0, 0\]"),
        (("seeds", "sedes"), "unknown key 'sedes'; known: name, seeds, base, methods"),
        (('"table"', "3"), "name: must be a string"),
        (("[methods.dense]", "[methods]"), r"needs a table \[methods.NAME\]|methods.output"),
        (('"dense" }', '"dens" }'), r"mine.toml \[methods.dense\]: output.method: input should be 'dense'"),
    ],
)
def test_a_fault_in_a_grid_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert list(load_grid(write(tmp_path, GRID)).methods) == ["dense"]
    with pytest.raises(UserError, match=message):
        load_grid(write(tmp_path, GRID.replace(*change)))
