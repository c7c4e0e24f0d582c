"""A log gives back what was added, whatever a kill left of its file."""

import json
import math

import numpy as np
import pytest

from moe_jax.common import Log
from moe_jax.errors import UserError


def test_what_was_added_is_there_after_a_restart(tmp_path):
    file = tmp_path / "log.jsonl"
    log = Log(file)
    log.add({"key": "a", "x": np.arange(3.0), "deep": {"y": [math.nan, math.inf, -math.inf, 1]}})
    log.add({"key": "b", "text": "inf\nnull", "flag": np.bool_(True), "n": np.int64(7)})
    for records in (log.records, Log(file).records):
        assert list(records) == ["a", "b"]
        assert records["a"]["x"] == [0.0, 1.0, 2.0]
        nan, *rest = records["a"]["deep"]["y"]
        assert math.isnan(nan)
        assert rest == [math.inf, -math.inf, 1]
        assert records["b"] == {"key": "b", "text": "inf\nnull", "flag": True, "n": 7}


def test_lines_are_json_that_any_reader_takes(tmp_path):
    Log(tmp_path / "log.jsonl").add({"key": "a", "x": [math.nan, math.inf]})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"key": "a", "x": [None, {"inf": 1}]}


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_line_that_was_cut_off_anywhere_is_done_again(tmp_path, cut):
    file = tmp_path / "log.jsonl"
    log = Log(file)
    log.add({"key": "a", "x": 1})
    whole = len(file.read_bytes())
    log.add({"key": "b", "x": 22222222222222})
    file.write_bytes(file.read_bytes()[:-cut])
    again = Log(file)
    assert list(again.records) == (["a"] if len(file.read_bytes()) >= whole else [])
    again.add({"key": "c", "x": 3})
    last = Log(file).records
    assert last["c"] == {"key": "c", "x": 3}
    assert "b" not in last


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(UserError, match="line 2: not a record"):
        Log(file)


@pytest.mark.parametrize("record", [{"x": 1}, {"key": 3}, {"key": None}])
def test_a_record_without_a_name_is_not_written(tmp_path, record):
    log = Log(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match=r"key=.*: must be a text"):
        log.add(record)
    assert not (tmp_path / "log.jsonl").exists()


def test_the_later_record_of_a_key_counts(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for x in (1, 2):
        log.add({"key": "a", "x": x})
    assert log.records == Log(tmp_path / "log.jsonl").records == {"a": {"key": "a", "x": 2}}


@pytest.mark.parametrize("line", ["[" * 100_000, '{"key": 3}', '{"x": 1}', "\ufffd", "7" * 5000])
def test_lines_that_are_no_records(tmp_path, line):
    """At the end they are what a kill left, before it they are an error."""
    file = tmp_path / "log.jsonl"
    file.write_text(f'{{"key": "a"}}\n{line}\n', encoding="utf-8")
    assert list(Log(file).records) == ["a"]
    file.write_text(f'{{"key": "a"}}\n{line}\n{{"key": "b"}}\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2: not a record"):
        Log(file)


def test_separators_within_a_line_do_not_end_it(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"key": "a", "x": "1\u20282\u0085\r"}\n'.replace("\r", ""), encoding="utf-8")
    assert Log(file).records["a"]["x"] == "1\u20282\u0085"
