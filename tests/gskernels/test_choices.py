"""Files of choices: what holds, what is stale, what is damaged, and the tables that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gskernels import choices, dispatch, tune

TRITON, CUDA = "H200|group_shared.forward|B1", "H200|group_shared.cuda.forward|B1"
DISPATCH = "H200|dispatch.forward hopper|B1"
EVERY = {key: {"x": 1} for key in (TRITON, CUDA, DISPATCH)}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "tuned.json"


def now(kind: str) -> str:
    return "now"


def read(path: Path) -> dict[str, choices.Config]:
    return choices.read_cache(path, now)


def test_writing_merges_and_leaves_no_temporary_files(cache: Path) -> None:
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        assert choices.write_cache(cache, {key: {"x": value}}, now)
    assert read(cache) == {"a": {"x": 3}, "b": {"x": 2}}
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize(
    ("changed", "left"),
    [("triton", {CUDA}), ("cuda", {TRITON}), ("", {TRITON, CUDA, DISPATCH})],
    ids=["an edited Triton kernel", "an edited .cu", "nothing"],
)
def test_choices_hold_for_the_kernels_that_they_were_measured_with(cache: Path, changed: str, left: set[str]) -> None:
    def later(kind: str) -> str:
        if kind == "dispatch":
            return f"{later('triton')}; {later('cuda')}"
        return "later" if kind == changed else "now"

    def first(kind: str) -> str:
        return "now; now" if kind == "dispatch" else "now"

    choices.write_cache(cache, EVERY, first)
    assert set(choices.read_cache(cache, later)) == left
    assert choices.write_cache(cache, {"G|group_shared.backward|B1": {"x": 2}}, later)
    assert set(choices.read_cache(cache, later)) == left | {"G|group_shared.backward|B1"}


def test_a_table_that_ships_keeps_what_it_has_and_its_stamps() -> None:
    old = choices.merged("", {"group_shared.forward|B1": {"x": 1}}, now)
    pair = {"dispatch.forward hopper|B1": {"cuda_ns": 5, "triton_ns": 9}}
    new = choices.merged(old, pair, lambda kind: "later", stale=True)
    assert json.loads(new)["valid_for"] == {"triton": "now", "dispatch": "later"}
    assert choices.parse(new) == {"group_shared.forward|B1": {"x": 1}, **pair}


def test_a_stamp_is_of_the_sources_of_its_kind_alone(tmp_path: Path) -> None:
    sources = {name: tmp_path / name for name in ("triton.py", "triton_kernels.py", "forward.cu", "common.cuh", "hopper.py")}
    for path in sources.values():
        path.write_text("before")
    kinds = {"triton": choices.SOURCES["triton"], "cuda": choices.SOURCES["cuda"]}
    before = {kind: choices.digest(tmp_path, patterns) for kind, patterns in kinds.items()}
    of_kind = {"triton_kernels.py": "triton", "forward.cu": "cuda", "common.cuh": "cuda", "hopper.py": "cuda"}
    for name, kind in of_kind.items():
        sources[name].write_text("after")
        changed = {k for k, patterns in kinds.items() if choices.digest(tmp_path, patterns) != before[k]}
        assert changed == {kind}
        sources[name].write_text("before")
    assert choices.stamp("dispatch") == f"{choices.stamp('triton')}; {choices.stamp('cuda')}"


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"version": 2}', '{"version": 1, "valid_for": "now", "choices": {}}',
     '{"version": 99, "valid_for": {"triton": "now"}, "choices": {"a": {"x": 1}}}',
     '{"version": 2, "valid_for": "now", "choices": {"a": {"x": 1}}}',
     '{"version": 2, "valid_for": {"triton": "now"}, "choices": []}',
     '{"version": 2, "valid_for": {"triton": "now"}, "choices": {"a": {"x": "y"}}}'],
)  # fmt: skip
def test_a_damaged_cache_holds_nothing_and_is_replaced(cache: Path, damage: str) -> None:
    cache.write_text(damage)
    assert read(cache) == {}
    assert choices.write_cache(cache, {"a": {"x": 1}}, now)
    assert read(cache) == {"a": {"x": 1}}


def test_bytes_that_are_no_text_and_a_folder_in_the_way_are_survived(cache: Path) -> None:
    cache.write_bytes(b"\xff\xfe\x00")
    assert read(cache) == {}
    assert choices.write_cache(cache, {"a": {"x": 1}}, now)
    cache.unlink()
    cache.mkdir()
    assert read(cache) == {}
    assert not choices.write_cache(cache, {"a": {"x": 1}}, now)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not choices.write_cache(tmp_path / "file" / "tuned.json", {"a": {"x": 1}}, now)


@pytest.mark.parametrize("path", sorted((choices.PACKAGE / "tuned").glob("*.json")), ids=lambda p: p.stem)
def test_tables_that_ship_name_what_kernels_understand(path: Path) -> None:
    table = choices.parse(path.read_text())
    document = json.loads(path.read_text())
    assert len(table) == len(document["choices"]) > 0
    assert set(document["valid_for"]) == {choices.kind_of(key) for key in table}
    for key, config in table.items():
        kernel, shape = key.split("|")
        assert tune.distance(shape, shape) == 0
        if choices.kind_of(kernel) == "dispatch":
            pass_, way = kernel.removeprefix("dispatch.").split(" ")
            assert pass_.removesuffix("_deterministic") in dispatch.PASSES
            assert way in ("hopper", "portable")
            assert dispatch.kernel_name(pass_.removesuffix("_deterministic"), way, "_det" in pass_) == kernel
            assert set(config) == {"cuda_ns", "triton_ns"}
            assert min(config.values()) > 0
        elif choices.kind_of(kernel) == "triton":
            assert {"num_warps", "num_stages", "BLOCK_B"} <= set(config)
            assert tune.nearest(table, kernel, shape) == config
