"""gsbench train, evaluate and predict as a person uses them: on the slice of WordNet, and with mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gsbench.cli import app
from gsbench.errors import UserError
from gsbench.train import comparison, demo, loop
from gsbench.train.data import wordnet
from tests.gsbench.train import tiny

CONFIG = """
name = "words"
device = "cpu"
data = { path = "words", validation = 0.1 }
encoder = { dim = 32, dropout = 0.0, std = 0.3 }
output = { method = "head_tail", fan_in = 8, group_size = 16 }
rewire = { grow = "random", interval = 10 }
encoder_optimizer = { name = "adamw", lr = 0.01 }
training = { epochs = 12, batch = 32 }
"""


def ran(*words: object, input_: str | None = None) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words], input=input_)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and a trained run in runs/words."""
    folder = tmp_path_factory.mktemp("cli")
    wordnet.prepare(Path(__file__).parent / "wordnet", folder / "words")
    (folder / "words.toml").write_text(CONFIG.replace('"words", v', f'"{folder}/words", v'))
    done = ran("train", folder / "words.toml", "--out", folder / "runs")
    assert "epoch 12/12" in done.output
    assert "test: P@1" in done.output
    return folder


def test_evaluate(words: Path) -> None:
    shown = ran("evaluate", words / "runs" / "words", "--device", "cpu").output
    assert all(name in shown for name in ("PSnDCG", "P head", "P tail"))
    found = json.loads(ran("evaluate", words / "runs" / "words", "--json").output)["metrics"]
    assert found["P@1"] > 10
    assert found["P@3/head"] + found["P@3/torso"] + found["P@3/tail"] == pytest.approx(found["P@3"])


def test_predict_texts_from_a_pipe_and_a_file(words: Path, tmp_path: Path) -> None:
    run, texts = words / "runs" / "words", "a stringed instrument with a body and a neck\n\nan evergreen tree\n"
    answers = [json.loads(line) for line in ran("predict", run, "-k", 3, input_=texts).output.splitlines()]
    assert len(answers) == 3  # an empty line is a document without words
    assert any("instrument" in label for label in answers[0]["labels"])
    assert answers[0]["scores"] == sorted(answers[0]["scores"], reverse=True)
    (tmp_path / "texts").write_text(texts)
    again = ran("predict", run, "-k", 3, "--input", tmp_path / "texts", "--batch", 1).output
    assert [json.loads(line)["labels"] for line in again.splitlines()] == [answer["labels"] for answer in answers]


def test_predict_answers_a_line_before_the_next_comes(words: Path) -> None:
    from gsbench.train.evaluate import open_trained
    from gsbench.train.predict import Predictor

    asked = []

    def lines() -> Any:
        for text in ("a tree", "a horn"):
            asked.append(text)
            yield text

    answers = Predictor(open_trained(words / "runs" / "words")).answers(lines(), k=2, batch=1, source="here")
    next(answers)
    assert asked == ["a tree"]


def test_predict_features(words: Path, tmp_path: Path) -> None:
    run = words / "runs" / "words"
    answers = ran("predict", run, "--features", "-k", 2, input_="3:0.5 7:1\n5:1\n").output.splitlines()
    assert len(answers) == 2
    with pytest.raises(UserError, match=r"<stdin>:2: feature 999999 is outside 0\.\."):
        ran("predict", run, "--features", input_="3:1\n999999:1\n")
    with pytest.raises(UserError, match=r"nowhere: no such file; --input takes a file, or -"):
        ran("predict", run, "--input", tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="latin: not UTF-8"):
        ran("predict", run, "--input", tmp_path / "latin")


def test_predict_text_of_a_data_set_without_texts(tmp_path: Path) -> None:
    data = tiny.data_folder(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    loop.train(tiny.settings(data, training={"epochs": 1, "batch": 64}), run, quiet=True)
    with pytest.raises(UserError, match=r"vocabulary.json: no such file: this data set has features but no texts"):
        ran("predict", run, input_="text\n")
    assert len(ran("predict", run, "--features", input_="3:1\n").output.splitlines()) == 1


def test_a_run_is_not_overwritten_nor_gone_on_with_when_done(words: Path) -> None:
    with pytest.raises(UserError, match=r"runs/words: exists already; go on with --resume"):
        ran("train", words / "words.toml", "--out", words / "runs")
    with pytest.raises(UserError, match=r"runs/words: is trained to its end"):
        ran("train", "--resume", words / "runs" / "words")
    with pytest.raises(UserError, match=r"not a run of gsbench train \(no config.json\)"):
        ran("train", "--resume", words)


@pytest.mark.parametrize("arguments", [[], ["--grid"], ["x.toml", "--demo"], ["x.toml", "--resume", "y"]])
def test_one_thing_at_a_time(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="one of: CONFIG, --grid CONFIG, --resume RUN, --demo"):
        ran("train", *arguments)


GRID = """
name = "table"
seeds = [0, 1]
[base]
data = { path = "data" }
device = "cpu"
encoder = { dim = 16 }
training = { epochs = 1, batch = 64 }
[methods.dense]
output = { method = "dense" }
[methods.shared]
output = { method = "group_shared", fan_in = 4, group_size = 8 }
"""


def test_a_grid_is_compared_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.data_folder(tmp_path)
    file, out = tmp_path / "grid.toml", tmp_path / "runs" / "table"
    monkeypatch.chdir(tmp_path)
    file.write_text(GRID)
    train, started = loop.train, []

    def counted(settings: Any, run: Path, **options: Any) -> dict[str, Any]:
        started.append((run.name, options.get("resume", False)))
        if len(started) == 3:
            raise KeyboardInterrupt
        return train(settings, run, **options)

    monkeypatch.setattr(loop, "train", counted)
    assert ran("train", file, "--grid", "--out", tmp_path / "runs").exit_code == 130
    done = ran("train", file, "--grid", "--out", tmp_path / "runs")
    assert started == [("dense-0", False), ("dense-1", False), ("shared-0", False), ("shared-0", True), ("shared-1", False)]
    assert "shared" in done.output
    table = json.loads((out / "comparison.json").read_text())
    assert [row["seeds"] for row in table["rows"]] == [2, 2]
    seeds = [json.loads((out / f"dense-{seed}" / "result.json").read_text())["test"]["P@3"] for seed in (0, 1)]
    mean, half = table["rows"][0]["metrics"]["P@3"]
    assert mean == pytest.approx(sum(seeds) / 2)
    assert half == pytest.approx(12.706 * abs(seeds[0] - seeds[1]) / 2, rel=1e-3)
    assert "mean ± half of the 95 % confidence interval" in (out / "comparison.md").read_text()
    assert (out / "comparison.png").stat().st_size > 10_000
    file.write_text(GRID.replace("epochs = 1", "epochs = 2"))
    with pytest.raises(UserError, match=r"dense-0: holds a run of other settings; choose another --out, or remove it"):
        ran("train", file, "--grid", "--out", tmp_path / "runs")


def test_demo_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The four methods end in one table; --demo itself has 20,000 labels and takes minutes."""
    prepare, table = demo.prepare, demo.grid
    monkeypatch.setattr(demo, "prepare", lambda out: prepare(out, 640, 1500))
    monkeypatch.setattr(demo, "grid", lambda data: table(data, epochs=1))
    shown = ran("train", "--demo", "--out", tmp_path).output
    for method in ("dense", "bottleneck", "group_shared", "head_tail"):
        assert f"\n  {method} " in shown
    assert "times popularity's" in shown


def test_interval() -> None:
    mean, half = comparison.interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.3027 / 3**0.5, rel=1e-4))
    assert comparison.interval([5.0])[0] == 5.0
