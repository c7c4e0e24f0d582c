"""The user's files: every form that is read, and one clear line for every fault."""

import json
import os

import pytest

from moe_jax.data import CorpusConfig, Example, load_corpus
from moe_jax.errors import UserError


def load(path, **fields):
    return load_corpus(CorpusConfig(path=str(path), **fields))


def texts(path, **fields):
    """All texts of a corpus, sorted."""
    corpus = load(path, **fields)
    return sorted(example.text for example in corpus.train + corpus.test)


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


class TestFiles:
    def test_txt_is_one_text_a_line(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes("first \r\nsecönd\r\n\u2028third".encode())
        assert texts(path) == sorted(["first", "secönd", "third"])
        assert load(path).labels == []

    def test_a_byte_order_mark_is_not_text(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_bytes(b"\xef\xbb\xbffirst\nsecond\n")
        assert texts(path) == ["first", "second"]

    def test_md_is_one_text_a_paragraph(self, tmp_path):
        path = tmp_path / "a.md"
        path.write_text(
            "# Title\n\nOne two\nthree.\n\n```py\ncode\n\nmore\n```\n## Two\nFour.\n\n\n"
        )
        assert texts(path) == ["Four.", "One two three."]

    def test_jsonl_with_label_names(self, tmp_path):
        path = write(
            tmp_path / "a.jsonl",
            {"text": "red sea", "spans": [[4, 7, "water"], [0, 3, "colour"]], "src": 1},
            {"text": "plain", "spans": None},
            {"text": "bare"},
        )
        corpus = load(path, test_fraction=0.0)
        assert corpus.labels == ["colour", "water"]
        assert corpus.train == [
            Example("red sea", ((0, 3, 0), (4, 7, 1))),
            Example("plain"),
            Example("bare"),
        ]

    def test_jsonl_with_label_indices(self, tmp_path):
        path = write(tmp_path / "a.jsonl", {"text": "ab", "spans": [[0, 1, 2]]}, {"text": "cd"})
        assert load(path).labels == ["0", "1", "2"]

    def test_labels_json_beside_the_file(self, tmp_path):
        path = write(tmp_path / "a.jsonl", {"text": "ab", "spans": [[0, 1, "y"], [1, 2, 0]]})
        (tmp_path / "labels.json").write_text('["x", "y", "z"]')
        corpus = load(path, test_fraction=0.0)
        assert corpus.labels == ["x", "y", "z"]
        assert corpus.train[0].spans == ((0, 1, 1), (1, 2, 0))

    def test_spans_count_characters(self, tmp_path):
        path = write(tmp_path / "a.jsonl", {"text": "𝛼é", "spans": [[1, 2, 0]]})
        assert load(path, test_fraction=0.0).train[0].spans == ((1, 2, 0),)


class TestFolders:
    def test_a_given_split_is_kept(self, tmp_path):
        write(tmp_path / "train.jsonl", {"text": "a b", "spans": [[0, 1, 1]]}, {"text": "c"})
        write(tmp_path / "test.jsonl", {"text": "d"})
        (tmp_path / "labels.json").write_text('["k", "l"]')
        (tmp_path / "notes.txt").write_text("not part of it\n")
        corpus = load(tmp_path)
        assert corpus.train == [Example("a b", ((0, 1, 1),)), Example("c")]
        assert corpus.test == [Example("d")]
        assert corpus.labels == ["k", "l"]

    def test_names_of_both_parts_share_indices(self, tmp_path):
        write(tmp_path / "train.jsonl", {"text": "a", "spans": [[0, 1, "z"]]})
        write(tmp_path / "test.jsonl", {"text": "b", "spans": [[0, 1, "m"]]})
        corpus = load(tmp_path)
        assert corpus.labels == ["m", "z"]
        assert [corpus.train[0].spans, corpus.test[0].spans] == [((0, 1, 1),), ((0, 1, 0),)]

    def test_every_text_file_below_sorted_and_hidden_ones_left_out(self, tmp_path):
        (tmp_path / "b").mkdir()
        (tmp_path / ".git").mkdir()
        (tmp_path / "b" / "x.txt").write_text("from b\n")
        (tmp_path / "a.md").write_text("from a\n")
        write(tmp_path / "c.jsonl", {"text": "from c"})
        (tmp_path / ".git" / "x.txt").write_text("hidden folder\n")
        (tmp_path / ".x.txt").write_text("hidden file\n")
        (tmp_path / "x.py").write_text("other suffix\n")
        corpus = load(tmp_path, test_fraction=0.0)
        assert [example.text for example in corpus.train] == ["from a", "from b", "from c"]


class TestHoldOut:
    def test_the_fraction_and_determinism(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("".join(f"text {i}\n" for i in range(50)))
        corpus = load(path, test_fraction=0.3)
        assert len(corpus.test) == 15
        assert len(corpus.train) == 35
        assert corpus == load(path, test_fraction=0.3)
        assert corpus.test != load(path, test_fraction=0.3, seed=1).test

    def test_order_and_file_name_do_not_matter(self, tmp_path):
        lines = [f"text {i}\n" for i in range(20)]
        (tmp_path / "a.txt").write_text("".join(lines))
        (tmp_path / "b.txt").write_text("".join(reversed(lines)))
        assert load(tmp_path / "b.txt").test == load(tmp_path / "a.txt").test[::-1]

    def test_equal_texts_stay_together(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("".join(f"text {i % 10}\n" for i in range(40)))
        corpus = load(path)
        assert not set(corpus.train) & set(corpus.test)
        assert len(corpus.test) == 8
        assert len(corpus.train) == 32

    def test_both_sides_have_a_text(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("one\ntwo\n")
        for fraction in (0.01, 0.99):
            corpus = load(path, test_fraction=fraction)
            assert [len(corpus.train), len(corpus.test)] == [1, 1]

    def test_num_train_and_num_test_take_the_first(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("".join(f"text {i}\n" for i in range(20)))
        whole, part = load(path), load(path, num_train=3, num_test=0)
        assert part.train == whole.train[:3]
        assert part.test == []

    def test_more_than_there_is_is_an_error(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("one\ntwo\n")
        with pytest.raises(UserError, match=r"^num_train=9 is more than the 1 training"):
            load(path, num_train=9)
        with pytest.raises(UserError, match=r"^num_test=9 is more than the 1 test"):
            load(path, num_test=9)


LINES = [
    ("a.txt", b"one\n\ntwo\n", "a.txt, line 2: empty line"),
    ("a.txt", b"one\ntwo\n  \n", "a.txt, line 3: empty line"),
    ("a.txt", b"one\n\xff\xfe\n", "a.txt, line 2: not UTF-8 (byte 0xff)"),
    ("a.txt", b"", "a.txt: no text in it"),
    ("a.txt", b"only\n", "only one distinct text"),
    ("a.txt", b"same\nsame\n", "only one distinct text"),
    ("a.md", b"# Title\n\n", "a.md: no text in it"),
    ("a.csv", b"one\n", "has suffix '.csv'; supported are .jsonl, .txt, .md"),
    ("a.jsonl", b"", "a.jsonl: no text in it"),
    ("a.jsonl", b'{"text": "a"}\n\n', "a.jsonl, line 2: empty line"),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl, line 1: not JSON"),
    ("a.jsonl", b'["a"]\n', "a.jsonl, line 1: must be an object with text, not a list"),
    ("a.jsonl", b'{"txt": "a"}\n', "a.jsonl, line 1: has no 'text' (it has ['txt'])"),
    ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: text=3 must be a text"),
    ("a.jsonl", b'{"text": " "}\n', "a.jsonl, line 1: text=' ' must not be blank"),
    (
        "a.jsonl",
        b'{"text": "\\ud800"}\n',
        r"a.jsonl, line 1: text holds \ud800, half of a surrogate pair",
    ),
]
SPANS = [
    ("3", '"spans" must be a list'),
    ("[[0, 1]]", "span [0, 1] must be [start, end, label]"),
    ("[0]", "span 0 must be [start, end, label]"),
    ("[[0.0, 1, 0]]", "must be two whole numbers and a label"),
    ("[[0, 1, null]]", "must be two whole numbers and a label"),
    ("[[false, true, 0]]", "must be two whole numbers and a label"),
    ("[[2, 1, 0]]", "span [2, 1, 0] must start before it ends"),
    ("[[1, 1, 0]]", "must start before it ends"),
    ("[[0, 5, 0]]", "span [0, 5, 0] is out of range; the text has 4 characters"),
    ("[[-1, 2, 0]]", "is out of range"),
    ("[[2, 4, 0], [0, 3, 1]]", "spans [0, 3, 1] and [2, 4, 0] overlap"),
    ("[[0, 1, -1]]", "label -1 is negative"),
    ('[[0, 1, "\\udfff"]]', r"the label of a span holds \udfff, half of a surrogate pair"),
    (f"[[0, 1, 1{'0' * 400}]]", "is above 9999; use names instead"),
    (f"[[0, {'9' * 4000}, 0]]", "is out of range; the text has 4 characters"),
    ("[[0, 1e400, 0]]", "must be two whole numbers and a label"),
    (f"{'[' * 900}{']' * 900}", "[[[... must be [start, end, label]"),
    ("[[0, 1, 1000000]]", "label 1000000 is above 9999; use names instead"),
    ('[[0, 1, 1], [1, 2, "x"]]', "label 1 is a number where others are names"),
]
LABELS = [
    ("{", "labels.json: not JSON"),
    ('{"a": 1}', "labels.json: must be a list of names"),
    ('["a", 2]', "labels.json: must be a list of names"),
    ('["a", "a"]', "labels.json: names a label twice"),
    ('["a", "\\ud800"]', r"labels.json: a name holds \ud800, half of a surrogate pair"),
    ("[" * 100_000, "labels.json: not JSON (nested too deeply)"),
    (f"[{'7' * 5000}]", "labels.json: not JSON (a whole number of more than 4,300 digits)"),
    ('["a"]', "train.jsonl, line 2: label 1 is out of range; labels.json has 1 labels"),
]


def error_of(path, **fields):
    with pytest.raises(UserError) as caught:
        load(path, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestBadInput:
    @pytest.mark.parametrize("name, content, expected", LINES)
    def test_files(self, tmp_path, name, content, expected):
        (tmp_path / name).write_bytes(content)
        message = error_of(tmp_path / name)
        assert expected in message
        assert str(tmp_path / name) in message

    @pytest.mark.parametrize("spans, expected", SPANS)
    def test_spans(self, tmp_path, spans, expected):
        (tmp_path / "a.jsonl").write_text(
            f'{{"text": "one"}}\n{{"text": "four", "spans": {spans}}}\n'
        )
        message = error_of(tmp_path / "a.jsonl")
        assert message.startswith(f"{tmp_path / 'a.jsonl'}, line 2: ")
        assert expected in message

    @pytest.mark.parametrize("labels, expected", LABELS)
    def test_labels(self, tmp_path, labels, expected):
        write(tmp_path / "train.jsonl", {"text": "a"}, {"text": "b", "spans": [[0, 1, 1]]})
        write(tmp_path / "test.jsonl", {"text": "c"})
        (tmp_path / "labels.json").write_text(labels)
        assert expected in error_of(tmp_path)

    def test_a_name_that_is_not_in_labels_json(self, tmp_path):
        path = write(tmp_path / "a.jsonl", {"text": "b", "spans": [[0, 1, "z"]]})
        (tmp_path / "labels.json").write_text('["a"]')
        assert f"{path}, line 1: label 'z' is not in labels.json" in error_of(path)

    def test_no_such_file(self, tmp_path):
        expected = f"{tmp_path / 'none.txt'}: no such file or folder"
        assert error_of(tmp_path / "none.txt") == expected

    def test_a_folder_without_texts(self, tmp_path):
        (tmp_path / "x.py").write_text("pass\n")
        assert "no .jsonl, .txt, .md file in it or below it" in error_of(tmp_path)

    def test_a_split_without_test_file_or_training_texts(self, tmp_path):
        write(tmp_path / "train.jsonl")
        assert "has train.jsonl but no test.jsonl" in error_of(tmp_path)
        write(tmp_path / "test.jsonl", {"text": "a"})
        assert "train.jsonl: no text in it" in error_of(tmp_path)

    def test_a_fault_deep_in_a_folder_names_its_file(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "a.txt").write_text("fine\n")
        (tmp_path / "sub" / "b.txt").write_bytes(b"fine\n\xc3\n")
        assert error_of(tmp_path).startswith(f"{tmp_path / 'sub' / 'b.txt'}, line 2: not UTF-8")

    def test_a_file_that_cannot_be_read(self, tmp_path):
        (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
        (tmp_path / "a.txt").write_text("fine\n")
        assert "loop.txt: can't be read" in error_of(tmp_path)
        assert os.path.lexists(tmp_path / "loop.txt")

    def test_a_path_elsewhere(self):
        for name in ("gs://bucket/a.txt", "~nobody-here/a.txt"):
            with pytest.raises(UserError, match=r"^corpus\.path="):
                CorpusConfig(path=name).validate("corpus")


def test_jsonl_of_other_editors(tmp_path, monkeypatch):
    """A byte order mark, carriage returns, and separators within texts; a path below the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = ['{"text": "a\u2028b\x85c"}', '{"text": "d", "spans": [[0, 1, "l\u2029"]], "n": NaN}']
    data = b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "labels.json").write_bytes(b'\xef\xbb\xbf["l\xe2\x80\xa9"]\r\n')
    corpus = load("~/a.jsonl", test_fraction=0.0)
    assert corpus == ([Example("a\u2028b\x85c"), Example("d", ((0, 1, 0),))], [], ["l\u2029"])
