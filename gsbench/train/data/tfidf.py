"""TF-IDF of unigrams and bigrams: what the bag-of-words encoder reads. Fitted on training texts alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsbench.errors import UserError

_WORD = re.compile(r"\w+")
VOCABULARY = "vocabulary.json"


def terms(text: str, ngrams: int) -> Iterator[str]:
    """Words in lower case, then pairs of neighbours up to `ngrams` words."""
    words = _WORD.findall(text.lower())
    yield from words
    for n in range(2, ngrams + 1):
        yield from (" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


@dataclass(frozen=True)
class TfIdf:
    """A fitted vectoriser. The value of a term is (1 + ln tf) (ln((1 + N) / (1 + df)) + 1), rows scaled to length 1."""

    vocabulary: dict[str, int]  # term -> column, in the order of the terms
    idf: NDArray[np.float32]  # [columns]
    ngrams: int

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_df: int = 2, ngrams: int = 2) -> TfIdf:
        """From the TRAINING texts; a term counts if at least `min_df` of them have it. Raises UserError if none has."""
        documents, count = Counter[str](), 0
        for text in texts:
            documents.update(set(terms(text, ngrams)))
            count += 1
        kept = sorted(term for term, df in documents.items() if df >= min_df)
        if not kept:
            raise UserError(f"no term occurs in {min_df} of the {count} training texts; lower features.min_df")
        df = np.array([documents[term] for term in kept])
        idf = (np.log((1 + count) / (1 + df)) + 1).astype(np.float32)
        return cls({term: column for column, term in enumerate(kept)}, idf, ngrams)

    @property
    def columns(self) -> int:
        return len(self.idf)

    def row(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(ascending columns, values) of one text. Terms that training did not have are left out."""
        found = Counter(self.vocabulary[term] for term in terms(text, self.ngrams) if term in self.vocabulary)
        columns = np.array(sorted(found), dtype=np.int32)
        tf = np.array([found[column] for column in columns.tolist()], dtype=np.float32)
        values = (1 + np.log(tf)) * self.idf[columns]
        return columns, (values / np.linalg.norm(values) if len(values) else values).astype(np.float32)

    def save(self, folder: Path) -> None:
        data = {"ngrams": self.ngrams, "terms": list(self.vocabulary), "idf": [round(float(v), 7) for v in self.idf]}
        (folder / VOCABULARY).write_text(json.dumps(data))

    @classmethod
    def load(cls, folder: Path) -> TfIdf:
        """Raises UserError where the folder has no vocabulary or it cannot be read."""
        file = folder / VOCABULARY
        try:
            data = json.loads(file.read_text())
            vocabulary = {term: column for column, term in enumerate(data["terms"])}
            return cls(vocabulary, np.array(data["idf"], dtype=np.float32), int(data["ngrams"]))
        except FileNotFoundError:
            raise UserError(f"{file}: no such file: this data set has features but no texts") from None
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{file}: not a vocabulary: {e}") from None
