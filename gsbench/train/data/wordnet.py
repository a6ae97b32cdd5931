"""WordNet words: find the words that belong to a definition. Real text, 141,000 labels, and no download service.

A document is a synset's definition: its gloss up to the quoted examples, without words or examples. Its labels are the
words of the synset and of every synset that it points to directly. WordNet 3.0's dict folder has four data files; the
Debian package wordnet-base installs them in /usr/share/wordnet. Format: the manual page wndb(5).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gsbench.errors import UserError
from gsbench.train.data.csr import CsrWriter
from gsbench.train.data.dataset import building, write_features, write_labels, write_manifest, write_texts
from gsbench.train.data.tfidf import TfIdf

FOLDER = Path("/usr/share/wordnet")
FILES = {"data.noun": "n", "data.verb": "v", "data.adj": "a", "data.adv": "r"}
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand; not part of the word
SYNSETS = 117_659  # of WordNet 3.0; from them a faithful build has, with the features of the default settings:
COUNTS = {"train": 93_740, "test": 23_595, "labels": 141_639, "features": 116_141}
Key = tuple[str, str]  # (part of speech, offset)


class Document(NamedTuple):
    text: str
    labels: list[str]  # ascending

    @property
    def in_test(self) -> bool:
        """A fifth, by the text alone: equal definitions fall on one side."""
        return int(hashlib.md5(self.text.encode(), usedforsecurity=False).hexdigest(), 16) % 5 == 0


class _Synset(NamedTuple):
    words: list[str]
    pointers: list[Key]
    definition: str


def documents(folder: Path) -> list[Document]:
    """One document a synset, in the order of the files. Raises UserError that names file and line."""
    synsets: dict[Key, _Synset] = {}
    for name, part in FILES.items():
        for offset, synset in _synsets(folder / name):
            synsets[part, offset] = synset
    made = []
    for key, synset in synsets.items():
        words = set(synset.words)
        for pointer in synset.pointers:
            if pointer not in synsets:
                raise UserError(f"{folder}: synset {key} points to {pointer}, which is missing")
            words.update(synsets[pointer].words)
        made.append(Document(synset.definition, sorted(words)))
    return made


def _synsets(file: Path) -> Iterator[tuple[str, _Synset]]:
    if not file.exists():
        raise UserError(f"{file}: no such file; --dict must be WordNet 3.0's dict folder, with {', '.join(FILES)}")
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(" ") or not line.strip():  # the licence
                continue
            try:
                yield _parsed(line)
            except (ValueError, IndexError):
                raise UserError(f"{file}:{number}: not a line of WordNet's data files (see wndb(5))") from None


def _parsed(line: str) -> tuple[str, _Synset]:
    """offset lex type words (word lex)* pointers (symbol offset pos source/target)* [frames] | gloss"""
    data, bar, gloss = line.partition("|")
    fields = data.split()
    if not bar or not fields[0].isdigit():
        raise ValueError
    count = int(fields[3], 16)
    words = [_MARKER.sub("", word).lower().replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    at = 4 + 2 * count
    pointers = []
    for i in range(at + 1, at + 1 + 4 * int(fields[at]), 4):
        _, offset, part, _ = fields[i : i + 4]
        pointers.append(("a" if part == "s" else part, offset))
    return fields[0], _Synset(words, pointers, gloss.partition('"')[0].strip().rstrip(";").strip())


def prepare(folder: Path, out: Path, *, min_df: int = 2, ngrams: int = 2) -> None:
    """Write the prepared data set. Labels with fewer than two documents, or none in training, are left out; so are
    documents without a label, though the features are fitted on all training definitions.

    Raises UserError as `documents`, where nothing is left, and where all of WordNet 3.0 gives other counts than `COUNTS`.
    """
    found = documents(folder)
    everywhere = Counter(label for document in found for label in document.labels)
    trained = Counter(label for document in found if not document.in_test for label in document.labels)
    names = sorted(label for label, n in everywhere.items() if n >= 2 and trained[label] >= 1)
    number = {name: i for i, name in enumerate(names)}
    sides: dict[str, list[Document]] = {"train": [], "test": []}
    for document in found:
        if any(label in number for label in document.labels):
            sides["test" if document.in_test else "train"].append(document)
    if not sides["train"] or not sides["test"]:
        raise UserError(f"{folder}: {len(found)} synsets leave no training or no test documents")
    vectoriser = TfIdf.fit((d.text for d in found if not d.in_test), min_df=min_df, ngrams=ngrams)
    if len(found) == SYNSETS and (min_df, ngrams) == (2, 2):
        counts = {split: len(chosen) for split, chosen in sides.items()}
        counts |= {"labels": len(names), "features": vectoriser.columns}
        if counts != COUNTS:
            raise UserError(f"{folder}: WordNet 3.0 gives {COUNTS}, these files give {counts}; are they damaged?")
    with building(out) as target:
        for split, chosen in sides.items():
            write_features(target, split, vectoriser, (d.text for d in chosen))
            write_texts(target / f"{split}_text", (d.text for d in chosen))
            with CsrWriter(target / f"{split}_y", len(names), values=False) as writer:
                for document in chosen:
                    writer.add(np.array([number[label] for label in document.labels if label in number]))
        vectoriser.save(target)
        write_labels(target, names)
        write_manifest(target, "wordnet", {"kind": "wordnet", "min_df": min_df, "ngrams": ngrams},
                       vectoriser.columns, len(names))  # fmt: skip
