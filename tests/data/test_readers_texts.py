"""Texts of files and standard input: every form, and one clear line for every fault."""

import io

import pytest

from moe_jax.data import parse_texts, read_texts
from moe_jax.errors import UserError


@pytest.mark.parametrize(
    "data, texts",
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one", ["one"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        ("é\x0cform\u2028sep\n".encode(), ["é\x0cform\u2028sep"]),
    ],
)
def test_one_text_a_line(data, texts):
    assert parse_texts(data, "x") == texts


def test_jsonl_lines_hold_texts():
    data = b'{"text": "a\\nb", "spans": []}\n{"text": "c"}\n'
    assert parse_texts(data, "x", kind="jsonl") == ["a\nb", "c"]


@pytest.mark.parametrize(
    "data, kind, said",
    [
        (b"", "txt", "x: there is no text in it; give one text a line"),
        (b"\n\n  \n", "txt", "x: there is no text in it; give one text a line"),
        (b"a\n\nb\n", "txt", "x, line 2: no text; give one text a line, without empty lines"),
        (b"a\n \t\n", "txt", "x, line 2: no text; give one text a line, without empty lines"),
        (b"ok\ncaf\xe9\n", "txt", "x, line 2: not UTF-8 (byte 0xe9); save it as UTF-8"),
        (b"{\n", "jsonl", "x, line 1: not JSON"),
        (b'{"text": "a"}\n"b"\n', "jsonl", "x, line 2: must be an object with text, not a text"),
        (b'{"text": 3}\n', "jsonl", "x, line 1: text=3 must be a text"),
        (b'{"text": " "}\n', "jsonl", "x, line 1: no text"),
        (
            b'{"text": "\\ud800"}\n',
            "jsonl",
            r"x, line 1: text holds \ud800, half of a surrogate pair",
        ),
        (b"text\n", "csv", "x: there is no text below the header"),
        (b"a,b\n1,2\n", "csv", "x, line 1: has no column 'text' (it has ['a', 'b'])"),
        (b"text,text\na,b\n", "csv", "x, line 1: has the column 'text' twice"),
        (b"n,text\n1,a\n2\n", "csv", "x, line 3: has 1 fields, the header has 2"),
        (b"text\na\n\nb\n", "csv", "x, line 3: empty line; each line must hold one row"),
        (b'n,text\n1,"a\nb"\n2," "\n', "csv", "x, line 4: no text"),
        (b'text\na\n"b\nc\n', "csv", "x, line 3: not CSV (unexpected end of data)"),
        (b'text\n"a"b\n', "csv", "x, line 2: not CSV ("),
        (b"text\na\rb\n", "csv", "x, line 2: not CSV ("),
        (b"[" * 100_000, "jsonl", "x, line 1: not JSON"),
    ],
)
def test_bad_input_is_one_clear_line(data, kind, said):
    with pytest.raises(UserError) as caught:
        parse_texts(data, "x", kind=kind)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_csv_has_a_header_and_fields_in_quotes():
    data = '\ufeffn,text\r\n1,"a, ""b""\nc"\r\n2,é\u2028d\r\n'.encode()
    assert parse_texts(data, "x", kind="csv") == ['a, "b"\nc', "é\u2028d"]
    assert parse_texts(data, "x", kind="csv", field="n") == ["1", "2"]


def test_another_field_of_jsonl():
    data = b'{"question": "a", "text": "b"}\n'
    assert parse_texts(data, "x", kind="jsonl", field="question") == ["a"]
    with pytest.raises(UserError, match=r"^x, line 1: has no 'answer' "):
        parse_texts(data, "x", kind="jsonl", field="answer")


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("á\nb\n".encode())))
    assert read_texts("-", name="--input") == ["á", "b"]
    with pytest.raises(UserError, match=r"^standard input: there is no text in it"):
        read_texts("-", name="--input")


def test_files_are_read_by_their_ending(tmp_path):
    (tmp_path / "a.txt").write_text('{"text": "x"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "a.CSV").write_text("text\nx\n")
    assert read_texts(tmp_path / "a.CSV", name="--input") == ["x"]
    assert read_texts(str(tmp_path / "a.txt"), name="--input") == ['{"text": "x"}']
    assert read_texts(tmp_path / "a.jsonl", name="--input") == ["x"]
    with pytest.raises(UserError, match=r"--input=.*no\.txt: no such file"):
        read_texts(tmp_path / "no.txt", name="--input")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_texts(tmp_path, name="--input")
