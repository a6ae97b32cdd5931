"""Readers against small files written here: what is read, what is kept, and which line is to blame."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gsbench.errors import UserError
from gsbench.train.data import raw, synthetic, wordnet, xmc
from gsbench.train.data.csr import Csr, CsrWriter, open_csr
from gsbench.train.data.dataset import DataSet, open_data_set, statistics
from gsbench.train.data.sources import load
from gsbench.train.data.tfidf import TfIdf

SLICE = Path(__file__).parent / "wordnet"
TRAIN = "3 5 4\n0,2 1:0.5 4:1.5\n 0:2\n3,1 \n"  # the second document has no labels, the third no features
TEST = "1 5 4\n1 2:1e-3\n"


def rows(matrix: Csr) -> list[dict[int, float]]:
    found = []
    for row in range(matrix.rows):
        part = matrix.take(np.array([row]))
        values = np.ones(part.stored) if part.values is None else part.values
        found.append(dict(zip(part.indices.tolist(), [round(float(v), 6) for v in values], strict=True)))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def write(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.txt").write_text(text)
        return tmp_path

    return write


# ---- the matrix ---------------------------------------------------------------------------------------------------


def test_csr_round_trip(tmp_path: Path) -> None:
    with CsrWriter(tmp_path / "m", 9, values=True) as writer:
        writer.add(np.array([1, 8]), np.array([0.5, 2]))
        writer.add(np.array([], np.int64), np.array([]))
        writer.extend(np.array([1, 2]), np.array([0, 3, 4]), np.array([1, 2, 3]))
    matrix = open_csr(tmp_path / "m", 4, 9, 5, values=True)
    assert rows(matrix) == [{1: 0.5, 8: 2.0}, {}, {0: 1.0}, {3: 2.0, 4: 3.0}]
    assert rows(matrix.take(np.array([3, 1, 0, 3]))) == [{3: 2.0, 4: 3.0}, {}, {1: 0.5, 8: 2.0}, {3: 2.0, 4: 3.0}]
    assert matrix.column_counts().tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 1]
    matrix.save(tmp_path / "again")
    assert rows(open_csr(tmp_path / "again", 4, 9, 5, values=True)) == rows(matrix)
    assert rows(Csr.of(matrix.scipy())) == rows(matrix)
    with pytest.raises(UserError, match=r"m.values: expected 24 bytes, found 20 bytes; prepare the data set again"):
        open_csr(tmp_path / "m", 4, 9, 6, values=True) if (tmp_path / "m.indices").write_bytes(bytes(24)) else None


# ---- the XMC repository's formats ---------------------------------------------------------------------------------


def test_one_file_form(folder: Callable[..., Path]) -> None:
    data = load(folder(train=TRAIN, test=TEST))
    assert (data.labels, data.features, data.train.rows, data.test.rows) == (4, 5, 3, 1)
    assert rows(data.train.x) == [{1: 0.5, 4: 1.5}, {0: 2.0}, {}]
    assert rows(data.train.y) == [{0: 1.0, 2: 1.0}, {}, {1: 1.0, 3: 1.0}]
    assert rows(data.test.x) == [{2: 0.001}]
    found = statistics(data)
    assert found["documents_without_labels"] == {"train": 1, "test": 0}
    assert found["documents_without_features"] == {"train": 1, "test": 0}
    with pytest.raises(UserError, match="no texts"):
        TfIdf.load(data.folder)


def test_unsorted_and_repeated_columns(folder: Callable[..., Path]) -> None:
    data = load(folder(train="1 5 4\n2,0,2 4:1 1:2 4:3\n", test=TEST))
    assert rows(data.train.x) == [{1: 2.0, 4: 4.0}]
    assert rows(data.train.y) == [{0: 1.0, 2: 1.0}]


def test_pair_form(folder: Callable[..., Path]) -> None:
    data = load(folder(trn_X_Xf="2 3\n0:1 2:0.5\n\n", trn_X_Y="2 2\n\n1:1\n", tst_X_Xf="1 3\n1:1\n", tst_X_Y="1 2\n0:1\n"))
    assert rows(data.train.x) == [{0: 1.0, 2: 0.5}, {}]
    assert rows(data.train.y) == [{}, {1: 1.0}]
    assert data.folder.parent.name == ".gsbench"


def test_read_once_and_again_when_a_file_changes(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    where = folder(train=TRAIN, test=TEST)
    first = load(where)
    with monkeypatch.context() as patch:
        patch.setattr(xmc, "read_documents", None)
        assert load(where).folder == first.folder
    (where / "train.txt").write_text(TRAIN.replace("3,1", "3"))
    second = load(where)
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint
    assert rows(second.train.y)[2] == {3: 1.0}


def test_reciprocal_pairs_are_no_targets(folder: Callable[..., Path]) -> None:
    filters = {"filter_labels_train": "0 2\n0 2\n1 3\n", "filter_labels_test": "0 1\n"}
    data = load(folder(train=TRAIN, test=TEST, **filters))
    assert rows(data.train.y) == [{0: 1.0}, {}, {1: 1.0, 3: 1.0}]
    assert rows(data.test.y) == [{}]
    assert data.test.filtered is not None
    assert rows(data.test.filtered) == [{1: 1.0}]


def test_a_long_file_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    line = "1,5 " + " ".join(f"{i}:0.25" for i in range(0, 2000, 7)) + "\n"
    file = tmp_path / "train.txt"
    file.write_text("2000 2000 9\n" + line * 2000)
    tracemalloc.start()
    shape = xmc.read_documents(file, tmp_path, "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shape == (2000, 2000, 9)
    assert file.stat().st_size > 4_000_000
    assert peak < 1_000_000


BAD_XMC = {
    "header": ("3 5\n", r"train.txt:1: the header must be 'N D L', got '3 5'"),
    "empty": ("", r"train.txt:1: the header must be 'N D L', got ''"),
    "number": ("3 x 4\n", "train.txt:1: the header must be"),
    "huge": (f"3 {2**31} 4\n", r"train.txt:1: 2147483648 is more than 2\^31 - 1"),
    "truncated": ("3 5 4\n0 1:1\n0 1:1\n", "train.txt:3: the file ends after 2 of the header's 3 documents"),
    "too many": ("1 5 4\n0 1:1\n0 1:1\n", "train.txt:3: more documents than the 1 of the header"),
    "cut in a token": ("2 5 4\n0 1:1\n0 1:1 3", "train.txt:3: expected feature:value, got '3'"),
    "cut in a value": ("1 5 4\n0 1:1 3:", "train.txt:2: expected feature:value, got '3:'"),
    "two colons": ("1 5 4\n0 1:1:2\n", "train.txt:2: expected feature:value, got '1:1:2'"),
    "words": ("1 5 4\n0 1:1 a:2\n", "train.txt:2: expected feature:value, got 'a:2'"),
    "value": ("1 5 4\n0 1:one\n", "train.txt:2: a value of '1:one' is not a number"),
    "NaN": ("1 5 4\n0 1:1 2:nan\n", "train.txt:2: the value of feature 2 is nan; values must be finite"),
    "infinite": ("1 5 4\n0 1:-inf\n", "train.txt:2: the value of feature 1 is -inf"),
    "feature": ("1 5 4\n0 5:1\n", r"train.txt:2: feature 5 is outside 0\.\.4, as the header says"),
    "label": ("1 5 4\n0,4 1:1\n", r"train.txt:2: label 4 is outside 0\.\.3, as the header says"),
    "labels": ("1 5 4\n0,,1 1:1\n", "train.txt:2: labels must be numbers with commas between them, got '0,,1'"),
    "negative": ("1 5 4\n-1 1:1\n", "train.txt:2: labels must be numbers"),
    "no space": ("1 5 4\n1:1 2:1\n", "train.txt:2: starts with a feature; a document without labels starts with a space"),
}


@pytest.mark.parametrize("name", BAD_XMC)
def test_a_fault_in_a_line_is_named(name: str, folder: Callable[..., Path]) -> None:
    text, message = BAD_XMC[name]
    where = folder(train=text, test=TEST)
    with pytest.raises(UserError, match=message) as e:
        load(where)
    assert "\n" not in str(e.value)
    assert list((where / ".gsbench").iterdir()) == []  # nothing half-made is left


PAIR = {"trn_X_Xf": "1 3\n0:1\n", "trn_X_Y": "1 2\n0:1\n", "tst_X_Xf": "1 3\n0:1\n", "tst_X_Y": "1 2\n0:1\n"}
BAD_PAIR = {
    "rows": ({"trn_X_Y": "2 2\n0:1\n0:1\n"}, "trn_X_Y.txt:1: 2 rows, but .*trn_X_Xf.txt has 1"),
    "labels": ({"tst_X_Y": "1 3\n0:1\n"}, "tst_X_Y.txt:1: 3 labels, but .*trn_X_Y.txt has 2"),
    "features": ({"tst_X_Xf": "1 4\n0:1\n"}, "tst_X_Xf.txt:1: 4 features, but .*trn_X_Xf.txt has 3"),
    "label": ({"trn_X_Y": "1 2\n2:1\n"}, r"trn_X_Y.txt:2: label 2 is outside 0\.\.1"),
    "filter": ({"filter_labels_train": "0\n"}, "filter_labels_train.txt:1: expected 'document label', got '0'"),
    "range": ({"filter_labels_test": "0 1\n1 0\n"}, "test.txt:2: 1 0 is outside 1 documents and 2 labels"),
}


@pytest.mark.parametrize("name", BAD_PAIR)
def test_files_that_do_not_fit_together(name: str, folder: Callable[..., Path]) -> None:
    files, message = BAD_PAIR[name]
    with pytest.raises(UserError, match=message):
        load(folder(**{**PAIR, **files}))


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder of data"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no data set here; known are dataset.json, .*trn.json"):
        load(tmp_path)
    (tmp_path / "train.txt").write_text(TRAIN)
    with pytest.raises(UserError, match=r"test.txt: no such file, and the xmc format needs it"):
        load(tmp_path)
    with pytest.raises(UserError, match="data format 'csv': allowed are auto, prepared, xmc, pair, raw"):
        load(tmp_path, "csv")


# ---- raw texts ----------------------------------------------------------------------------------------------------


def write_raw(folder: Path, packed: bool, **changes: str) -> Path:
    files = {
        "trn": '{"title": "Red cat", "content": "a red cat", "target_ind": [1, 0]}\n'
        '{"title": "Red dog", "content": "the dog", "target_ind": []}\n',
        "tst": '{"title": "Blue cat", "content": "red", "target_ind": [1]}\n',
        "lbl": '{"title": "animals"}\n{"title": "cats"}\n',
        **changes,
    }
    for name, text in files.items():
        if packed:
            (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_raw_texts(tmp_path: Path, packed: bool) -> None:
    data = load(write_raw(tmp_path, packed))
    assert data.label_names() == ["animals", "cats"]
    assert rows(data.train.y) == [{0: 1.0, 1: 1.0}, {}]
    assert data.train.texts is not None
    assert data.train.texts[0] == "Red cat a red cat"
    vectoriser = TfIdf.load(data.folder)
    assert list(vectoriser.vocabulary) == ["dog", "red"] or "red" in vectoriser.vocabulary
    assert "blue" not in vectoriser.vocabulary  # only a test text has it
    columns, values = vectoriser.row("Red cat a red cat")
    stored = data.train.x.take(np.array([0]))
    assert columns.tolist() == stored.indices.tolist()
    np.testing.assert_allclose(values, stored.values, rtol=1e-6)  # type: ignore[arg-type]


BAD_RAW = {
    "json": ({"trn": '{"title": "a", "target_ind": [0]}\n{"title": \n'}, r"trn.json:2: not a JSON object"),
    "kind": ({"trn": "[1]\n"}, r"trn.json:1: expected a JSON object, got '\[1\]'"),
    "target": ({"trn": '{"title": "a"}\n'}, "trn.json:1: 'target_ind' must be a list of label numbers, got None"),
    "range": ({"tst": '{"title": "a", "target_ind": [0, 2]}\n'}, r"tst.json:1: label 2 is outside 0\.\.1"),
    "negative": ({"tst": '{"title": "a", "target_ind": [-1]}\n'}, r"tst.json:1: label -1 is outside 0\.\.1"),
    "text": ({"trn": '{"target_ind": [0]}\n'}, "trn.json:1: needs text under 'title' or 'content'"),
    "label text": ({"lbl": '{"name": "x"}\n'}, "lbl.json:1: needs text under 'title'"),
    "rare": ({"trn": '{"title": "a", "target_ind": [0]}\n'}, "no term occurs in 2 of the 1 training texts"),
}


@pytest.mark.parametrize("name", BAD_RAW)
def test_a_fault_in_raw_texts_is_named(name: str, tmp_path: Path) -> None:
    changes, message = BAD_RAW[name]
    with pytest.raises(UserError, match=message):
        load(write_raw(tmp_path, False, **changes))


def test_a_cut_off_archive_is_named(tmp_path: Path) -> None:
    write_raw(tmp_path, True)
    file = tmp_path / "trn.json.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"trn.json.gz:\d+: the compressed file is cut off or damaged"):
        list(raw.read_documents(file, 2))


# ---- WordNet ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    out = tmp_path_factory.mktemp("wordnet") / "slice"
    wordnet.prepare(SLICE, out)
    return open_data_set(out)


def test_documents_of_the_slice() -> None:
    found = wordnet.documents(SLICE)
    assert len(found) == 632
    instrument = next(d for d in found if "musical instrument" in d.labels and d.text.startswith("any of various devices"))
    assert "instrument" in instrument.labels
    assert "wind instrument" in instrument.labels  # a synset it points to
    assert not any('"' in d.text or d.text.endswith(";") for d in found)
    assert not any("(" in label or "_" in label for d in found for label in d.labels)


def test_prepared_slice(words: DataSet) -> None:
    names, found = words.label_names(), wordnet.documents(SLICE)
    assert names is not None
    assert len(names) == words.labels
    test = [d.text for d in found if d.in_test]
    train = {d.text for d in found if not d.in_test}
    assert 0.15 < len(test) / len(found) < 0.25
    assert not train & set(test)
    assert words.train.texts is not None
    assert {words.train.texts[row] for row in range(words.train.rows)} <= train
    counts = words.train.y.column_counts()
    assert counts.min() >= 1
    assert (counts + words.test.y.column_counts()).min() >= 2
    text = words.train.texts[3]
    labels = {names[label] for label in words.train.y.take(np.array([3])).indices}
    assert labels == {label for d in found if d.text == text for label in d.labels} & set(names)


@pytest.mark.skipif(not (wordnet.FOLDER / "data.noun").exists(), reason="WordNet is not installed (wordnet-base)")
def test_all_of_wordnet_has_the_known_counts(tmp_path: Path) -> None:
    wordnet.prepare(wordnet.FOLDER, tmp_path / "all")  # raises where they differ
    found = statistics(open_data_set(tmp_path / "all"))
    assert (found["median_documents_a_label"], found["share_of_labels_with_at_most_5"]) == (3.0, 0.805)


def test_faults_in_wordnets_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.noun: no such file; --dict must be WordNet 3.0's dict folder"):
        wordnet.documents(tmp_path)
    for name in wordnet.FILES:
        (tmp_path / name).write_text("  1 licence\n")
    good = "00000001 03 n 01 thing 0 001 @ 00000001 n 0000 | a thing\n"
    (tmp_path / "data.noun").write_text("  1 licence\n" + good + good[:30] + "\n")
    with pytest.raises(UserError, match=r"data.noun:3: not a line of WordNet's data files"):
        wordnet.documents(tmp_path)
    (tmp_path / "data.noun").write_text(good.replace("@ 00000001", "@ 00000002"))
    with pytest.raises(UserError, match=r"points to \('n', '00000002'\), which is missing"):
        wordnet.documents(tmp_path)
    (tmp_path / "data.noun").write_text(good)
    with pytest.raises(UserError, match="1 synsets leave no training or no test documents"):
        wordnet.prepare(tmp_path, tmp_path / "out")


# ---- synthetic ----------------------------------------------------------------------------------------------------


def test_synthetic(tmp_path: Path) -> None:
    synthetic.prepare(tmp_path / "a", 2000, seed=3)
    synthetic.prepare(tmp_path / "b", 2000, seed=3)
    synthetic.prepare(tmp_path / "c", 2000, seed=4)
    a, b, c = (open_data_set(tmp_path / name) for name in "abc")
    assert rows(a.train.x) == rows(b.train.x) != rows(c.train.x)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert (a.train.rows, a.test.rows, a.labels) == (4000, 500, 2000)
    frequency = np.sort(a.train.y.column_counts())[::-1]
    assert frequency[:200].sum() > 0.25 * frequency.sum()  # a head
    assert (frequency <= 5).mean() > 0.5  # a long tail
    first = a.train.y.take(np.array([0])).indices
    assert len(set(first % (2000 // synthetic.CLUSTER))) == 1  # the labels of a document share a cluster
    with pytest.raises(UserError, match="exists already"):
        synthetic.prepare(tmp_path / "a", 2000)
    with pytest.raises(UserError, match="at least 64 labels, 16 documents and 200 features, got 10"):
        synthetic.prepare(tmp_path / "d", 10)


# ---- prepared folders ---------------------------------------------------------------------------------------------


def damaged(words: DataSet, tmp_path: Path, change: Callable[[dict[str, object]], object]) -> Path:
    data = json.loads((words.folder / "dataset.json").read_text())
    change(data)
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    return tmp_path


def test_a_folder_that_is_not_whole(words: DataSet, tmp_path: Path) -> None:
    newer = damaged(words, tmp_path, lambda d: d.update(schema=99))
    with pytest.raises(UserError, match=r"schema 99 is newer than this gsbench reads \(1\); upgrade gsbench"):
        open_data_set(newer)
    with pytest.raises(UserError, match=r"dataset.json: lacks 'files'"):
        open_data_set(damaged(words, tmp_path, lambda d: d.pop("files")))
    with pytest.raises(UserError, match=r"train_x.pointers: expected \d+ bytes, found nothing"):
        open_data_set(damaged(words, tmp_path, lambda d: None))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not a data set's manifest"):
        open_data_set(tmp_path)


def test_mismatched_rows_of_a_prepared_folder(words: DataSet, tmp_path: Path) -> None:
    for file in words.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with CsrWriter(tmp_path / "train_y", words.labels, values=False) as writer:
        writer.add(np.array([0]))
    damaged(words, tmp_path, lambda d: d["files"].update(train_y={"rows": 1, "stored": 1}))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"train_x has \d+ rows, train_y has 1; prepare the data set again"):
        open_data_set(tmp_path)


def test_the_fingerprint_is_of_the_content(words: DataSet, tmp_path: Path) -> None:
    wordnet.prepare(SLICE, tmp_path / "same")
    wordnet.prepare(SLICE, tmp_path / "other", min_df=3)
    assert open_data_set(tmp_path / "same").fingerprint == words.fingerprint
    assert open_data_set(tmp_path / "other").fingerprint != words.fingerprint
