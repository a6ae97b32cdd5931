"""TF-IDF features, by hand and against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gsbench.train.data import wordnet
from gsbench.train.data.tfidf import TfIdf

SLICE = Path(__file__).parent / "wordnet"


def test_tfidf_by_hand() -> None:
    fitted = TfIdf.fit(["a b b", "b c", "c"], min_df=2)
    assert list(fitted.vocabulary) == ["b", "c"]
    columns, values = fitted.row("B b x C")
    weights = np.array([1 + np.log(2), 1]) * (np.log(4 / 3) + 1)
    np.testing.assert_allclose(values, weights / np.linalg.norm(weights), rtol=1e-6)
    assert columns.tolist() == [0, 1]
    assert [len(part) for part in fitted.row("nothing known")] == [0, 0]


def test_tfidf_against_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = [document.text for document in wordnet.documents(SLICE)]
    theirs = text.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+")
    expected = theirs.fit_transform(texts)
    mine = TfIdf.fit(texts)
    assert mine.vocabulary == theirs.vocabulary_
    for row in range(0, len(texts), 13):
        columns, values = mine.row(texts[row])
        dense = np.zeros(mine.columns)
        dense[columns] = values
        np.testing.assert_allclose(dense, expected[row].toarray()[0], atol=1e-6)
