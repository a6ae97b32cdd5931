"""The transformer encoder, with a tiny model made here: random weights, a vocabulary of the slice's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from gsbench.errors import UserError
from gsbench.train import config, evaluate, loop, runs
from gsbench.train.data import wordnet
from gsbench.train.data.dataset import open_data_set
from gsbench.train.encoders import Transformer
from tests.gsbench.train import tiny

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """words/ and model/."""
    where = tmp_path_factory.mktemp("transformer")
    wordnet.prepare(Path(__file__).parent / "wordnet", where / "words")
    data = open_data_set(where / "words")
    assert data.train.texts is not None
    found = {word for row in range(data.train.rows) for word in re.findall(r"\w+", data.train.texts[row].lower())}
    (where / "model").mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (where / "vocabulary").write_text("\n".join([*special, *sorted(found)]))
    tokens = {token: i for i, token in enumerate([*special, *sorted(found)])}
    transformers.BertTokenizerFast(vocab=tokens).save_pretrained(where / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    made = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokens), max_position_embeddings=64, **sizes))
    made.save_pretrained(where / "model")
    return where


def settings(folder: Path, **encoder: object) -> config.Config:
    made = {"kind": "transformer", "model": str(folder / "model"), "dim": 24, "max_tokens": 32, "dropout": 0.1, **encoder}
    return tiny.settings(folder / "words", "head-tail SET", encoder=made, training={"epochs": 3, "batch": 32})


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_trains_saves_and_ranks(folder: Path, tmp_path: Path, pool: str) -> None:
    made = settings(folder, pool=pool)
    loop.train(made, runs.create(tmp_path / "run", made), quiet=True)
    opened = evaluate.open_trained(tmp_path / "run")
    ranking = next(evaluate.rank(opened.model, opened.data.test, np.arange(5), 3, batch=8))
    assert ranking.labels.shape == (5, 3)
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    epochs = [event["loss"] for event in losses if event["kind"] == "epoch"]
    assert epochs[-1] < epochs[0]


def test_padding_does_not_change_a_document(folder: Path) -> None:
    encoder = Transformer(settings(folder).encoder).train(False)
    assert isinstance(encoder, Transformer)
    with torch.no_grad():
        alone = encoder(encoder.tokenized(["a small tree"]))
        beside = encoder(encoder.tokenized(["a small tree", "a wind instrument that has a long body and a bell"]))
    torch.testing.assert_close(beside[:1], alone, rtol=1e-4, atol=1e-5)


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder.dim = 32, but .*model has a hidden size of 24"):
        Transformer(settings(folder, dim=32).encoder)
    with pytest.raises(UserError, match=r"encoder.model = '.*nowhere': "):
        Transformer(settings(folder, model=str(tmp_path / "nowhere")).encoder)
    made = settings(folder)
    data = tiny.data_folder(tmp_path)
    other = made.model_copy(update={"data": made.data.model_copy(update={"path": str(data)})})
    with pytest.raises(UserError, match="has features only, and encoder.kind = 'transformer' needs texts"):
        loop.train(other, tmp_path, quiet=True)
