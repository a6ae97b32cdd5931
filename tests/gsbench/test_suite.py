"""Suites: what is shipped is valid, and what is wrong is said in one line with file, key and what is allowed."""

from __future__ import annotations

import pytest

from gsbench.errors import UserError
from gsbench.suite import load_suite, suite_names

GOOD = """
title = "t"
passes = ["forward"]
dtypes = ["fp32"]
[axes]
batch = [8, 16]
dim = [64]
labels = [256]
fan_in = [8]
group_size = [4]
[cpu.axes]
batch = [2]
"""


@pytest.fixture
def write(tmp_path):
    def write_(text: str):
        file = tmp_path / "mine.toml"
        file.write_text(text)
        return str(file)

    return write_


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_are_valid(name, device):
    suite, resolved = load_suite(name, device)
    assert suite.title
    assert resolved["name"] == name
    assert resolved["scaled_for_cpu"] == (device == "cpu")


def test_the_promised_suites_ship():
    promised = {"smoke", "forward", "backward", "memory", "labels", "batch", "fan_in", "group_size", "paper", "step", "topk"}
    promised |= {"head_tail", "rewire", "train_step"}
    assert promised <= set(suite_names())


def test_a_file_path_works_and_cpu_overrides_apply_only_there(write):
    file = write(GOOD)
    assert load_suite(file, "cuda")[0].axes.batch == [8, 16]
    assert load_suite(file, "cpu")[0].axes.batch == [2]
    assert load_suite(file, "cpu")[0].axes.labels == [256]


def test_set_overrides(write):
    suite, resolved = load_suite(write(GOOD), "cpu", ["batch=64,1_024", "pass=backward", "timing.budget_s=2", "grid=cross"])
    assert load_suite(write(GOOD), "cpu", ["head_share=0.1,0.2"])[0].axes.head_share == [0.1, 0.2]
    assert suite.axes.batch == [64, 1024]
    assert suite.passes == ["backward"]
    assert suite.timing.budget_s == 2
    assert suite.grid == "cross"
    assert resolved["overrides"] == ["batch=64,1_024", "pass=backward", "timing.budget_s=2", "grid=cross"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title", "titel"), "unknown key 'titel'; known: title, passes"),
        (("group_size", "groupsize"), "unknown key 'axes.groupsize'; known: batch, dim, labels, fan_in, group_size"),
        (("group_size", "groupsize"), "axes.group_size is missing; "),
        (("passes", "pases"), ": passes is missing; unknown key 'pases'; known: "),
        (("[axes]", "[axes]\nhead_share = [1.0]"), "axes.head_share.0: input should be less than 1, got 1.0"),
        (("[axes]", "[axes]\nhead_share = ['a']"), "axes.head_share.0: input should be a valid number, got 'a'"),
        (("[8, 16]", '["8"]'), "axes.batch.0: input should be a valid integer, got '8'"),
        (("[8, 16]", "[true]"), "axes.batch.0: input should be a valid integer, got True"),
        (("[8, 16]", "[0]"), "greater than or equal to 1, got 0"),
        (("[8, 16]", "8"), "axes.batch: input should be a valid list, got 8"),
        (('["forward"]', '["forwards"]'), "'forward', 'grad_input', 'grad_weight', 'backward', 'step', "),
        (("fan_in = [8]", "fan_in = [65]"), "fan_in=65 exceeds dim=64"),
        (("group_size = [4]", "group_size = [257]"), "group_size=257 exceeds labels=256"),
        (("[axes]", "[axis]"), "unknown key 'axis'; known: title"),
        (('["fp32"]', '["fp32", "fp32"]'), "a value is given twice"),
        (("[cpu.axes]\nbatch = [2]", "[cpu]\nbath = 1"), "[cpu]: unknown key 'bath'"),
        (("batch = [2]", "batch = [2.5]"), "[cpu]: axes.batch.0: input should be a valid integer, got 2.5"),
        (('title = "t"', "title = "), "not a TOML file"),
    ],
)
def test_a_fault_in_the_file_is_named(write, change, message):
    file = write(GOOD.replace(*change))
    with pytest.raises(UserError) as e:
        load_suite(file, "cpu")
    assert message in str(e.value)
    assert "mine.toml" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_unknown_suite_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown suite 'bakward'; known: .*backward"):
        load_suite("bakward", "cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "write KEY=VALUE"),
        ("batch=", "write KEY=VALUE"),
        ("batch=many", "takes whole numbers, got 'many'"),
        ("bach=3", "unknown key 'bach'; known: batch, dim"),
        ("mode=warm", "'warm' is not one of cold, hot, graph, host"),
        ("timing.budget=3", "timing.budget_s"),
        ("timing.budget_s=long", "takes numbers"),
        ("fan_in=65", "fan_in=65 exceeds dim=64"),
        ("grid=all", "grid: input should be 'star' or 'cross', got 'all'"),
    ],
)
def test_a_wrong_override_is_named(write, text, message):
    with pytest.raises(UserError) as e:
        load_suite(write(GOOD), "cpu", [text])
    assert message in str(e.value)


def test_a_narrow_layer_beside_a_wide_fan_in_is_fine_where_they_never_meet(write):
    file = write(GOOD.replace("dim = [64]", "dim = [64, 16]").replace("fan_in = [8]", "fan_in = [8, 32]"))
    assert load_suite(file, "cuda")[0].grid_size() == 4
    with pytest.raises(UserError, match="fan_in=32 exceeds dim=16"):
        load_suite(file, "cuda", ["grid=cross"])
