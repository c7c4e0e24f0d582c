"""Texts taken apart and changed: worked cases, and what must hold for all."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.errors import UserError
from moe_jax.misrouting.texts import (
    corrupt_step,
    corrupted,
    distractors,
    early,
    filler_ids,
    same_answer,
    split_generation,
    steps,
)

LINES = st.text(alphabet="ab 1\n\r\t.,", max_size=30)
ANSWERS = st.one_of(
    st.integers(-2000, 2000).map(str),
    st.integers(0, 10**7).map(lambda i: f"${i:,}."),
    st.decimals(-50, 50, places=1).map(str),
    st.sampled_from(["", "Yes", "yes.", " no  way", "$", ".", "1,00", "1e3"]),
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("7+5=12\n12-3=9\nAnswer:9", ("7+5=12\n12-3=9\n", "9", True)),
        ("a Answer: 1 Answer: 2\nmore", ("a ", "1 Answer: 2", True)),
        ("Answer:\n9", ("", "", True)),
        ("Answer: 9 \r\n", ("", "9", True)),
        ("no end\n", ("no end\n", "", False)),
        ("", ("", "", False)),
    ],
)
def test_a_generation_taken_apart(text, parts):
    assert split_generation(text, "Answer:") == parts


def test_a_delimiter_must_be_a_text():
    with pytest.raises(UserError, match="delimiter='' must be a text"):
        split_generation("a", "")


@given(LINES, st.text(alphabet="ab 1\n\r\t.,:", max_size=30))
def test_the_first_delimiter_counts(explanation, rest):
    found = split_generation(f"{explanation}##{rest}", "##")
    assert found.complete
    assert found.explanation == explanation
    assert found.answer == rest.split("\n")[0].strip()


def test_steps_and_prefixes():
    text = "\n7+5=12\n \n12-3=9\n\n"
    assert steps(text) == ["7+5=12\n", "12-3=9\n"]
    assert early(text) == ["", "\n7+5=12\n", text]
    assert steps("a\nb") == ["a\n", "b"]
    assert steps(" \n") == []
    assert early(" \n") == early("") == [""]


@given(LINES)
def test_steps_make_up_the_explanation(text):
    found, prefixes = steps(text), early(text)
    assert "".join(found) == "".join(x for x in re.split(r"(?<=\n)", text) if x.strip())
    assert len(prefixes) == len(found) + 1
    assert prefixes[0] == ""
    assert prefixes[-1] == (text if found else "")
    for j, (a, b) in enumerate(itertools.pairwise(prefixes)):
        assert b.startswith(a)
        assert steps(b) == found[: j + 1]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1,000", "1000", True),
        ("9.0", "9", True),
        ("$5", "5", True),
        ("-$5", "$-5.00", True),
        ("\N{MINUS SIGN}3", "-3", True),
        (" 9. ", "9", True),
        (".5", "0.50", True),
        ("-0", "0", True),
        ("007", "7", True),
        ("1,234,567.5", "1234567.50", True),
        ("1,23", "123", False),
        ("9", "-9", False),
        ("50%", "50", False),
        ("$$5", "5", False),
        ("$-$5", "-5", False),
        ("0." + "1" * 40, "0." + "1" * 39 + "2", False),
        ("The  Red\tone.", "the red ONE", True),
        ("red", "read", False),
        ("", "", True),
        ("", "0", False),
        ("$", "", False),
    ],
)
def test_same_answer(a, b, same):
    assert same_answer(a, b) is same
    assert same_answer(b, a) is same


@given(st.lists(ANSWERS, min_size=3, max_size=3))
def test_being_the_same_is_an_equivalence(answers):
    a, b, c = answers
    assert same_answer(a, a)
    assert same_answer(a, b) == same_answer(b, a)
    if same_answer(a, b) and same_answer(b, c):
        assert same_answer(a, c)
    assert same_answer(f"  {a.upper()} ", a)


@pytest.mark.parametrize(
    ("step", "want"),
    [
        ("this is more than that\n", "this is less than that\n"),
        ("Less is more or less.", "Less is more or more."),
        ("More is needed", "Less is needed"),
        ("It is not so\n", "It is so\n"),
        ("so it is not", "so it is"),
        ("It never rains, Always", "It never rains, Never"),
        ("It never rains", "It rains"),
        ("He can't see", "He can see"),
        ("It isn't so", "It is so"),
        ("It is so\n", "It is not so\n"),
        ("nothing here", None),
        ("not\n", None),
        ("", None),
    ],
)
def test_mistakes_in_words(step, want):
    assert corrupt_step(step, rng()) == want


@given(
    st.from_regex(r"[a-z+=. \n]{0,6}", fullmatch=True),
    st.from_regex(r"0|[1-9][0-9]{0,2}(,[0-9]{3})?(\.[0-9]{1,2})?|00[0-9]", fullmatch=True),
    st.from_regex(r"([a-z=+] ?)?[a-z=+\n]{0,6}", fullmatch=True),
    st.integers(0, 99),
)
def test_mistakes_in_numbers(before, number, after, seed):
    if before.endswith("."):
        before += " "
    step = f"12 {before} {number} {after}"
    wrong = corrupt_step(step, rng(seed))
    start, end = f"12 {before} ", f" {after}"
    assert wrong.startswith(start)
    assert wrong.endswith(end)
    other = wrong[len(start) : len(wrong) - len(end)]
    assert re.sub(r"\d", "0", other) == re.sub(r"\d", "0", number)
    assert float(other.replace(",", "")) != float(number.replace(",", ""))
    if re.match(r"\d\d", other):
        assert other[0] != "0"
    assert wrong == corrupt_step(step, rng(seed))


def test_every_other_number_comes():
    random = rng()
    assert {corrupt_step("x=5", random) for _ in range(300)} == {f"x={i}" for i in "012346789"}
    tens = {corrupt_step("x=15", random) for _ in range(3000)}
    assert tens == {f"x={i}" for i in range(10, 100) if i != 15}


def test_one_step_is_corrupted():
    text = "\n7+5=12\n\nnothing here\n12-3=9"
    for number, line in ((0, 1), (2, 4)):
        lines, wrong = text.split("\n"), corrupted(text, number, rng()).split("\n")
        assert [i for i in range(5) if lines[i] != wrong[i]] == [line]
        assert lines[line].split("=")[0] == wrong[line].split("=")[0]
    assert corrupted(text, 1, rng()) is None
    for number in (-1, 3):
        with pytest.raises(ValueError, match=f"number={number}: the explanation has steps 0 to 2"):
            corrupted(text, number, rng())


def test_filler():
    assert filler_ids([4, 5, 6], 9) == [9, 9, 9]
    assert filler_ids([], 9) == []


@pytest.mark.parametrize(
    ("answer", "right", "others", "number", "want"),
    [
        ("9", "9", [], 2, ["9", "10", "8", "11"]),
        ("12", "9", ["9.0"], 3, ["12", "9", "10", "8", "11"]),
        ("8.", "9", [], 1, ["8.", "9", "10"]),
        ("", "9", [], 0, ["9", "10"]),
        ("0", "0", [], 3, ["0", "1", "2", "10", "3"]),
        ("-1", "0", [], 2, ["-1", "0", "1", "2"]),
        ("0", "0", ["-7"], 2, ["0", "-7", "1", "-1"]),
        ("$1,000", "1000", ["blue", "1e3"], 3, None),
        ("$1,000", "$1,000", [], 2, ["$1,000", "$1,001", "$999", "$1,002"]),
        ("9.5", "9.5", [], 1, ["9.5", "10.5", "8.5"]),
        ("9" * 40, "9" * 40, [], 0, ["9" * 40, "1" + "0" * 40]),
        ("red", "Red.", ["red", "blue"], 0, ["red", "blue"]),
        ("I do not know", "red", ["blue", "Blue", "RED"], 1, ["I do not know", "red", "blue"]),
    ],
)
def test_distractors(answer, right, others, number, want):
    found = distractors(answer, right, others, number, rng())
    if want is None:
        assert found[0] == answer
        assert set(found[1:3]) == set(others)
        assert found[3:] == ["1001", "999"]
    else:
        assert found == want


def test_near_numbers_never_end():
    found = distractors("5", "5", [], 40, rng())
    assert found[:9] == ["5", "6", "4", "7", "3", "15", "8", "2", "9"]
    assert set(found) == {str(i) for i in range(42)}


@given(ANSWERS, st.integers(-30, 30).map(str), st.lists(ANSWERS), st.integers(0, 6))
def test_as_many_distinct_options_for_all(answer, right, others, number):
    found = distractors(answer, right, others, number, rng())
    assert len(found) == number + 2
    for i, a in enumerate(found):
        assert not any(same_answer(a, b) for b in found[:i])
    if not same_answer(answer, ""):
        assert found[0] == answer
    assert any(same_answer(right, a) for a in found[:2])
    assert not any(same_answer(a, "") for a in found)
    wrong = [o for o in others if not any(same_answer(o, x) for x in (answer, right, ""))]
    given_first = 2 if not same_answer(answer, right) and not same_answer(answer, "") else 1
    count = len({next(i for i, x in enumerate(wrong) if same_answer(x, o)) for o in wrong})
    drawn = found[given_first : given_first + count]
    assert all(any(same_answer(d, o) for o in wrong) for d in drawn)


def test_draws_from_all_others():
    random = rng()
    draws = [distractors("a", "b", list("cdef"), 1, random)[2] for _ in range(200)]
    counts = [draws.count(x) for x in "cdef"]
    assert sum(counts) == 200
    assert min(counts) > 25


@pytest.mark.parametrize(
    ("right", "number", "error", "message"),
    [
        ("red", 3, UserError, "3 wrong answers are needed beside 'red', .* give 2: fewer"),
        ("red", -1, ValueError, "number=-1 must be at least 0"),
        (" ", 1, ValueError, "right=' ' holds no answer"),
    ],
)
def test_distractors_that_cannot_be(right, number, error, message):
    with pytest.raises(error, match=message):
        distractors("green", right, ["blue", "red", "green", "Blue", "x"], number, rng())
