"""Types, configuration, token labels, and writing a corpus and reading it back."""

import itertools
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.data import Corpus, CorpusConfig, Example, load_corpus, token_labels, write_jsonl
from moe_jax.data import corpus as corpus_lib
from moe_jax.errors import UserError

# Any text that a UTF-8 file can hold, line ends and exotic separators included.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@st.composite
def examples(draw, num_labels):
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pairs = [pair for pair in itertools.pairwise(cuts) if draw(st.booleans())]
    return Example(text, tuple((a, b, draw(st.integers(0, num_labels - 1))) for a, b in pairs))


@st.composite
def corpora(draw):
    labels = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    some = st.lists(examples(len(labels)), max_size=4)
    return Corpus(draw(some.filter(bool)), draw(some), labels)


class TestConfig:
    def test_the_defaults_are_valid(self):
        CorpusConfig().validate()

    @pytest.mark.parametrize(
        "field, value",
        [
            ("path", " "),
            ("num_train", 0),
            ("num_test", -1),
            ("test_fraction", 1.0),
            ("test_fraction", -0.1),
            ("test_fraction", float("nan")),
            ("seed", -1),
            ("seed", 2**32),
        ],
    )
    def test_a_bad_value_is_named_by_its_field(self, field, value):
        with pytest.raises(UserError, match=rf"^corpus\.{field}=.*: must") as caught:
            CorpusConfig(**{field: value}).validate("corpus")
        assert "\n" not in str(caught.value)

    def test_load_corpus_validates(self):
        with pytest.raises(UserError, match=r"^seed=-1: must be from 0 to"):
            load_corpus(CorpusConfig(seed=-1))


class TestTokenLabels:
    def test_by_hand(self):
        spans = ((0, 5, 2), (6, 9, 0), (9, 12, 1))
        offsets = np.array([[0, 2], [2, 7], [5, 6], [6, 9], [8, 11], [9, 10], [11, 12], [12, 14]])
        expected = [2, 2, -1, 0, 0, 1, 1, -1]
        labels = token_labels(offsets, spans)
        assert labels.dtype == np.int32
        assert labels.tolist() == expected

    def test_without_spans_or_tokens(self):
        assert token_labels(np.zeros((2, 2), int), ()).tolist() == [-1, -1]
        assert token_labels(np.zeros((0, 2), int), ()).shape == (0,)
        assert token_labels(np.zeros((0, 2), int), ((0, 1, 0),)).shape == (0,)

    def test_a_token_of_no_characters_has_no_label(self):
        assert token_labels(np.array([[0, 0], [0, 1]]), ((0, 4, 3),)).tolist() == [-1, 3]

    @given(examples(3), st.data())
    @settings(max_examples=60, deadline=None)
    def test_against_a_loop(self, example, data):
        place = st.integers(0, len(example.text))
        offsets = np.array(
            data.draw(st.lists(st.tuples(place, place).map(sorted), max_size=8)), int
        ).reshape(-1, 2)
        expected = []
        for start, end in offsets:
            found = [k for a, b, k in example.spans if a <= start < b and end > start]
            expected.append(found[0] if found else -1)
        assert token_labels(offsets, example.spans).tolist() == expected


class TestWriteJsonl:
    @given(corpora())
    @settings(max_examples=60, deadline=None)
    def test_round_trip(self, tmp_path_factory, corpus):
        folder = tmp_path_factory.mktemp("round") / "corpus"
        write_jsonl(corpus, folder)
        assert load_corpus(CorpusConfig(path=str(folder))) == corpus

    def test_the_files(self, tmp_path):
        write_jsonl(Corpus([Example("né o", ((0, 2, 1),))], [], ["a", "b"]), tmp_path / "x" / "y")
        folder = tmp_path / "x" / "y"
        assert sorted(os.listdir(folder)) == ["labels.json", "test.jsonl", "train.jsonl"]
        assert (folder / "train.jsonl").read_bytes().decode() == (
            '{"text": "né o", "spans": [[0, 2, 1]]}\n'
        )
        assert (folder / "test.jsonl").read_bytes() == b""
        assert json.loads((folder / "labels.json").read_text()) == ["a", "b"]
        assert os.listdir(tmp_path / "x") == ["y"]

    def test_an_empty_folder_is_filled_a_full_one_left_alone(self, tmp_path):
        corpus = Corpus([Example("one")], [], [])
        (tmp_path / "empty").mkdir()
        write_jsonl(corpus, tmp_path / "empty")
        with pytest.raises(UserError, match="exists already"):
            write_jsonl(corpus, tmp_path / "empty")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            write_jsonl(corpus, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    def test_an_interruption_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupt(*_, **options):
            del options
            raise KeyboardInterrupt

        monkeypatch.setattr(corpus_lib.json, "dumps", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_jsonl(Corpus([Example("one")], [], []), tmp_path / "out")
        assert os.listdir(tmp_path) == []
