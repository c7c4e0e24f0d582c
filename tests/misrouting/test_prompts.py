import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, read_prompts, write_prompts
from moe_jax.misrouting.prompts import levels, strata

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    st.lists(
        st.builds(
            Prompt,
            _TEXT.filter(bool),
            st.floats(allow_nan=False, allow_infinity=False),
            _TEXT,
            _TEXT,
            _TEXT,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_written_prompts_are_read_back(tmp_path_factory, prompts):
    file = tmp_path_factory.mktemp("p") / "p.jsonl"
    write_prompts(prompts, file)
    assert read_prompts(file) == prompts


def test_reads_numbers_as_answers_and_passes_over_empty_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "2+3=", "difficulty": 1, "answer": 5}\n\n')
    assert read_prompts(file) == [Prompt("2+3=", 1.0, "5")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: must be an object with prompt, difficulty, answer"),
        ('{"prompt": "a", "answer": "b"}', "line 2: has no 'difficulty'"),
        ('{"prompt": "a", "difficulty": "hard", "answer": "b"}', "difficulty='hard'"),
        ('{"prompt": "a", "difficulty": true, "answer": "b"}', "difficulty=True"),
        ('{"prompt": "a", "difficulty": NaN, "answer": "b"}', "difficulty=nan"),
        ('{"prompt": 3, "difficulty": 1, "answer": "b"}', "prompt=3 must be a text"),
        ('{"prompt": "a", "difficulty": 1, "answer": null}', "answer=None"),
        ('{"prompt": "a", "difficulty": 1, "answer": "b", "group": 7}', "group=7"),
        ('{"prompt": "", "difficulty": 1, "answer": "b"}', "prompt is empty"),
        (f'{{"prompt": "a", "difficulty": 1{"0" * 400}, "answer": "b"}}', "it is too large"),
        (
            '{"prompt": "a", "difficulty": -1e400, "answer": "b"}',
            "difficulty=-inf must be a number",
        ),
        (
            f'{{"prompt": "a", "difficulty": {"[" * 900 + "]" * 900}, "answer": "b"}}',
            "difficulty=[",
        ),
        ('{"prompt": "a", "difficulty": 1, "answer": Infinity}', "answer=inf must be a text or a"),
        ('{"prompt": "a\\ud83d", "difficulty": 1, "answer": "b"}', "prompt holds \\ud83d, half"),
        ('{"prompt": "a", "difficulty": 1, "answer": "\\udca1"}', "answer holds \\udca1, half"),
        (
            '{"prompt": "a", "difficulty": 1, "answer": "", "group": "\\ud800"}',
            "group holds \\ud800, half of a surrogate pair and no character",
        ),
        (
            '{"prompt": "a", "difficulty": 1, "answer": "", "explanation": "\\udfff"}',
            "explanation holds \\udfff",
        ),
        (
            '{"prompt": "a", "difficulty": 1, "answer": "b", "answer": "c"}',
            "the name 'answer' twice",
        ),
        (f'{{"prompt": "a", "difficulty": 1, "answer": "b", "id": {"7" * 5000}}}', "4,300 digits"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, says):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a", "difficulty": 1, "answer": "b"}) + "\n" + line)
    with pytest.raises(UserError, match=r"p\.jsonl, line 2") as caught:
        read_prompts(file)
    assert says in str(caught.value)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl: can't be read"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.jsonl")


def _of(*difficulty: float) -> list[Prompt]:
    return [Prompt("x", d, "y") for d in difficulty]


def test_levels_are_the_ranks_of_the_difficulties():
    got = levels(_of(7, 0.5, 7, 2, 0.5, 2))
    np.testing.assert_array_equal(got.level, [2, 0, 2, 1, 0, 1])
    assert got.difficulty == (0.5, 2.0, 7.0)


def test_too_few_prompts_of_a_level_are_named():
    with pytest.raises(UserError, match=r"difficulty 3 has 1 prompt\(s\), must have at least 2"):
        levels(_of(1, 1, 3))
    assert levels(_of(1, 1, 3), at_least=1).difficulty == (1.0, 3.0)
    with pytest.raises(UserError, match="all 2 prompts have difficulty 1: a trend needs 2 levels"):
        levels(_of(1, 1))
    with pytest.raises(UserError, match="there is no prompt"):
        levels([])


def test_groups_become_strata():
    prompts = [Prompt("x", 1, "y", group) for group in ("b", "a", "b", "")]
    np.testing.assert_array_equal(strata(prompts), [2, 1, 2, 0])


def test_files_of_other_editors(tmp_path, monkeypatch):
    """A byte order mark, carriage returns, and separators within texts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = '{"prompt": "a\u2028b\u0085", "difficulty": 1, "answer": 2, "n": NaN}\r\n\u2028\r\n'
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() * 2)
    assert read_prompts("~/p.jsonl") == [Prompt("a\u2028b\u0085", 1.0, "2")] * 2
    with pytest.raises(UserError, match=r"prompts=s3://a/p\.jsonl: must be a file"):
        read_prompts("s3://a/p.jsonl")
