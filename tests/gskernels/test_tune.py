"""The choice of configurations: shape classes, tables, the cache and its faults. No GPU is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gskernels import tune

SHAPE: dict[str, Any] = {
    "batch": 256, "dim": 768, "labels": 655_360, "fan_in": 64, "group_size": 32, "dtype": torch.bfloat16,
}  # fmt: skip
CANDIDATES = [{"BLOCK": 64, "num_warps": 4}, {"BLOCK": 128, "num_warps": 8}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSKERNELS_CACHE", str(tmp_path))
    tune.forget()
    tune.reset()
    return tmp_path / "tuned.json"


def named(**changes: Any) -> str:
    return tune.shape_class(**{**SHAPE, **changes})


def test_shapes_that_behave_alike_share_a_class() -> None:
    assert named() == "B256 D1024 L1048576 K64 G32 aligned bfloat16"
    assert named(batch=200, dim=1000, labels=131_072, fan_in=50, group_size=31) == named()
    assert named(rows="ragged") != named()
    assert named(dtype=torch.float32) != named()
    assert named(batch=1, dim=1, labels=1, fan_in=1, group_size=1) == "B1 D1 L1 K1 G1 aligned bfloat16"


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_power_of_two(n: int, power: int) -> None:
    assert tune.power_of_two(n) == power


def test_nearest_prefers_the_sizes_that_matter() -> None:
    table = {f"k|{named(group_size=16)}": {"a": 1}, f"k|{named(labels=2**22)}": {"a": 2}, f"other|{named()}": {"a": 3}}
    assert tune.distance(named(), named()) == 0
    assert tune.nearest(table, "k", named()) == {"a": 2}
    assert tune.nearest(table, "k", named(dtype=torch.float16)) == {"a": 2}
    assert tune.nearest(table, "k", named(), legal=lambda c: c["a"] != 2) == {"a": 1}
    assert tune.nearest(table, "k", named(dtype=torch.float32)) is None
    assert tune.nearest(table, "absent", named()) is None


def test_without_a_gpu_the_first_candidate_is_taken_and_nothing_is_kept(own_cache: Path) -> None:
    def never(config: tune.Config) -> None:
        raise AssertionError("timed without a GPU")

    assert tune.choose("k", named(), CANDIDATES, never, torch.empty(1)) == CANDIDATES[0]
    assert not own_cache.exists()


def test_a_choice_on_disk_is_used_if_it_is_legal(own_cache: Path) -> None:
    full = f"cpu|k|{named()}"
    assert tune.write_cache(own_cache, {full: CANDIDATES[1]}, tune.fingerprint())
    chosen = tune.choose("k", named(), CANDIDATES, lambda c: None, torch.empty(1))
    assert chosen == CANDIDATES[1]
    tune.forget()
    chosen = tune.choose("k", named(), CANDIDATES, lambda c: None, torch.empty(1), legal=lambda c: c["BLOCK"] < 100)
    assert chosen == CANDIDATES[0]


def test_deterministic_results_do_not_depend_on_the_cache(own_cache: Path) -> None:
    tune.write_cache(own_cache, {f"cpu|k|{named()}": CANDIDATES[1]}, tune.fingerprint())
    assert tune.choose("k", named(), CANDIDATES, lambda c: None, torch.empty(1), measure=False) == CANDIDATES[0]


def test_writing_merges_and_leaves_no_temporary_files(own_cache: Path) -> None:
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        assert tune.write_cache(own_cache, {key: {"x": value}}, "now")
    assert tune.read_cache(own_cache, "now") == {"a": {"x": 3}, "b": {"x": 2}}
    assert [p.name for p in own_cache.parent.iterdir()] == [own_cache.name]


def test_choices_of_other_kernels_or_of_another_triton_are_not_read(own_cache: Path) -> None:
    tune.write_cache(own_cache, {"a": {"x": 1}}, "then")
    assert tune.read_cache(own_cache, "now") == {}


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"version": 1}', '{"version": 99, "valid_for": "now", "choices": {}}',
     '{"version": 1, "valid_for": "now", "choices": []}',
     '{"version": 1, "valid_for": "now", "choices": {"a": {"x": "y"}}}'],
)  # fmt: skip
def test_a_damaged_cache_holds_nothing_and_is_replaced(own_cache: Path, damage: str) -> None:
    own_cache.write_text(damage)
    assert tune.read_cache(own_cache, "now") == {}
    assert tune.write_cache(own_cache, {"a": {"x": 1}}, "now")
    assert tune.read_cache(own_cache, "now") == {"a": {"x": 1}}


def test_bytes_that_are_no_text_and_a_folder_in_the_way_are_survived(own_cache: Path) -> None:
    own_cache.write_bytes(b"\xff\xfe\x00")
    assert tune.read_cache(own_cache, "now") == {}
    own_cache.unlink()
    own_cache.mkdir()
    assert tune.read_cache(own_cache, "now") == {}
    assert not tune.write_cache(own_cache, {"a": {"x": 1}}, "now")


def test_a_cache_that_cannot_be_written_is_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not tune.write_cache(tmp_path / "file" / "tuned.json", {"a": {"x": 1}}, "now")


@pytest.mark.parametrize("path", sorted(Path(tune.__file__).with_name("tuned").glob("*.json")), ids=lambda p: p.stem)
def test_packaged_tables_name_what_kernels_understand(path: Path) -> None:
    table = tune.parse(path.read_text(), None)
    assert len(table) == len(json.loads(path.read_text())["choices"]) > 0
    for key, config in table.items():
        kernel, shape = key.split("|")
        assert {"num_warps", "num_stages", "BLOCK_B"} <= set(config)
        assert tune.distance(shape, shape) == 0
        assert tune.nearest(table, kernel, shape) == config


def test_what_was_launched_is_described() -> None:
    tune.record("a", {"sha256": "1", "registers": 32}, {"BLOCK": 64})
    tune.record("b", {"sha256": "2"})
    launched = tune.launched_kernels()
    assert launched["a"] == {"config": {"BLOCK": 64}, "sha256": "1", "registers": 32}
    assert tune.combined_hash(launched) == tune.combined_hash(dict(reversed(launched.items())))
    tune.reset()
    assert tune.launched_kernels() == {}
    assert tune.combined_hash({}) == ""


@pytest.mark.gpu
def test_the_faster_candidate_is_measured_once_and_kept_on_disk(own_cache: Path) -> None:
    x = torch.ones(1 << 22, device="cuda")
    ran: list[int] = []

    def run(config: tune.Config) -> None:
        ran.append(config["times"])
        for _ in range(config["times"]):
            x.add_(1)

    shape = named(labels=3)  # in no table
    candidates = [{"times": 20}, {"times": 1}]
    for _ in range(2):
        chosen = tune.choose("a kernel without a table", shape, candidates, run, x)
        assert chosen == candidates[1]
        assert ran.count(20) == tune.SAMPLES + 1
        tune.forget()
    assert tune.read_cache(own_cache, tune.fingerprint())


@pytest.mark.gpu
def test_nothing_is_measured_inside_a_graph_capture() -> None:
    x = torch.ones(8, device="cuda")
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        chosen = tune.choose("a kernel without a table", named(), CANDIDATES, lambda config: x.add_(1), x)
    assert chosen == CANDIDATES[0]
