"""JSON in files: what users' editors and converters make, and one line for what is wrong."""

import json

import pytest

from moe_jax.common import files
from moe_jax.errors import UserError

DEEP = "[" * 100_000 + "]" * 100_000


def objects(text, *fields, **options):
    return [values for _, values in files.json_lines(text, "f", fields, **options)]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0c", "\x0b", "\x1c", "\r"])
@pytest.mark.parametrize("escaped", [True, False])
def test_only_line_feeds_end_a_line(character, escaped):
    rows = [{"a": f"x{character}y"}, {"a": character}]
    text = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    assert objects(text) == rows
    assert list(files.numbered_lines(f"x{character}y\nz\n", "f")) == [
        ("f, line 1", f"x{character}y"),
        ("f, line 2", "z"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_ends_and_byte_order_marks(end):
    data = f'\ufeff{{"a": 1}}\r\n\ufeff{{"a": 2}}{end}'.encode()
    found = list(files.json_lines(files.decode(data, "f"), "f", ["a"]))
    assert found == [("f, line 1", {"a": 1}), ("f, line 2", {"a": 2})]


def test_empty_lines_are_errors_or_passed_over():
    text = '{"a": 1}\n \t\r\n{"a": 2}\n\n'
    assert objects(text, skip_empty=True) == [{"a": 1}, {"a": 2}]
    with pytest.raises(UserError, match="f, line 2: empty line"):
        objects(text)
    assert objects("") == []


def test_numbers_that_json_lacks_are_left_to_the_reader():
    (values,) = objects('{"a": NaN, "b": -Infinity, "c": 1e400, "d": 5e-400}')
    assert values["a"] != values["a"]
    assert values["b"] == -values["c"] == float("-inf")
    assert values["d"] == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON (Expecting property name"),
        ("3 4", "not JSON (Extra data, column 3)"),
        ("[1]", "must be an object with a, b, not a list"),
        ('"x"', "must be an object with a, b, not a text"),
        ("null", "must be an object with a, b, not null"),
        ("1e400", "must be an object with a, b, not a number"),
        ("true", "must be an object with a, b, not true or false"),
        ('{"b": 1}', "has no 'a' (it has ['b'])"),
        (
            '{"a": 1, "a": 2, "b": 3}',
            "not JSON (an object has the name 'a' twice, with different values)",
        ),
        ('{"c": [{"\\u2028": 1, "\\u2028": 2}]}', r"an object has the name '\u2028' twice"),
        (f'{{"c": {"7" * 5000}}}', "not JSON (a whole number of more than 4,300 digits)"),
        (f'{{"c": -{"7" * 4301}}}', "not JSON (a whole number of more than 4,300 digits)"),
        (f'{{"c": {DEEP}}}', "not JSON (nested too deeply)"),
        ('{"c": ' * 100_000, "not JSON (nested too deeply)"),
        ('{"c": "tab\there"}', "not JSON (Invalid control character at"),
        ('{"c": "\\ud8"}', "not JSON (Invalid \\uXXXX escape"),
        ("\x00\x00", "not JSON (Expecting value, column 1)"),
    ],
)
def test_a_wrong_line_is_named(line, says):
    with pytest.raises(UserError) as caught:
        objects(f'{{"a": 1, "b": 2}}\n{line}\n', "a", "b")
    assert str(caught.value).startswith("f, line 2: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_not_utf8_are_named(mark):
    with pytest.raises(UserError, match=r"^f, line 3: not UTF-8 \(byte 0xe9\)"):
        files.decode(mark + b"a\nb\nc\xe9\n", "f")
    with pytest.raises(UserError, match=r"^f, line 1: not UTF-8 \(byte 0xff\)"):
        files.decode("text".encode("utf-16"), "f")
    with pytest.raises(UserError, match=r"^f, line 1: not UTF-8 \(byte 0xed\)"):
        files.decode(b"\xed\xa0\xbd", "f")


@pytest.mark.parametrize("text", ["\ud83d", "x\udc00", "\ud800\ud800"])
def test_half_a_surrogate_pair_is_named(text):
    (values,) = objects(json.dumps({"a": text}))
    with pytest.raises(UserError, match=r"^f, line 1: a holds \\ud[8c][03][0d], half"):
        files.check_text(values["a"], "a", "f, line 1")
    whole = json.loads(json.dumps("\U0001f4a1"))
    assert files.check_text(whole, "a", "f") == "\U0001f4a1"


def test_values_are_shown_in_short():
    deep = json.loads("[" * 800 + "]" * 800)
    for value in (deep, "x" * 10_000, 10**4000, list(range(10_000)), {"\ud83d": "\n"}):
        shown = files.shown(value)
        assert len(shown) < 100
        assert shown.isascii()
        assert "\n" not in shown


def test_a_whole_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + '{"a":\r\n "\u2028"}\n'.encode())
    assert files.read_object(file) == {"a": "\u2028"}
    for content, says in (
        ("[]", "must hold one JSON object, not a list"),
        ("", "can't be read as JSON: Expecting value, column 1"),
        ('{\n"a": 1,}', "can't be read as JSON: .*line 2, column [78]"),
        (DEEP, "can't be read as JSON: nested too deeply"),
        ("7" * 5000, "can't be read as JSON: a whole number"),
        ('{"a": 1, "a": 2}', "can't be read as JSON: an object has the name 'a' twice"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=f"a.json: {says}"):
            files.read_object(file)
    with pytest.raises(UserError, match=r"^it is made so$"):
        files.read_object(tmp_path / "none", missing="it is made so")
    with pytest.raises(UserError, match="none: can't be read: No such file"):
        files.read_object(tmp_path / "none")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        files.read_object(tmp_path)


@pytest.mark.parametrize("last", [b"", b'{"a": 2}', b'{"a"', b"\x00\x00", b"\xff\n", DEEP.encode()])
def test_our_own_files_are_read_up_to_where_they_were_cut_off(tmp_path, last):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"a": 1}\n[3]\n' + last)
    lines = files.log_lines(file)
    assert b"".join(line.raw for line in lines) == file.read_bytes()
    assert [line.values for line in lines] == [{"a": 1}, None] + [None] * bool(last)
