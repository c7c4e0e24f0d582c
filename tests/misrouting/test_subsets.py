"""Which tokens are counted: by hand, against loops over characters, and what bad flags say."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from moe_jax.errors import UserError
from moe_jax.misrouting import TokenSubset
from moe_jax.misrouting.subsets import (
    KINDS,
    PromptTokens,
    after_delimiter,
    char_span,
    generated_tokens,
    last_tokens,
    real_tokens,
    token_span,
)

BOS, PAD = 1, 0


def cut(text, ends, *, bos=True, left=0, right=0, **more):
    """A prompt whose tokens end at these characters, with a special token and padding about it."""
    starts = [0, *ends[:-1]]
    offsets = [(0, 0)] * (left + bos) + list(zip(starts, ends, strict=True)) + [(0, 0)] * right
    ids = [PAD] * left + [BOS] * bos + list(range(10, 10 + len(ends))) + [PAD] * right
    present = np.array([False] * left + [True] * (bos + len(ends)) + [False] * right)
    return PromptTokens(np.array(ids), text, np.array(offsets), present=present, **more)


def picked(flag, prompt, **more):
    mask = TokenSubset.parse(flag).mask(prompt, special={BOS, PAD}, **more)
    assert mask.dtype == bool
    return np.flatnonzero(mask).tolist()


TEXT = "Answer: is it? Answer: 42."
#       Ans|wer|: is| it?| An|swer|:| 42|.
ENDS = [3, 6, 10, 14, 17, 21, 22, 25, 26]


def test_real_tokens():
    ids = np.array([PAD, BOS, 7, 8, BOS, PAD])
    assert real_tokens(ids).all()
    assert real_tokens(ids, special=[BOS]).tolist() == [True, False, True, True, False, True]
    present = np.array([False, True, True, True, True, True])
    got = real_tokens(ids, special=(BOS,), present=present)
    assert got.tolist() == [False, False, True, True, False, True]


def test_after_a_delimiter_that_tokens_split():
    prompt = cut(TEXT, ENDS)
    assert picked("after:Answer:", prompt) == [8, 9]
    # The first one ends within ": is", which is then the delimiter's.
    assert picked("after-first:Answer:", prompt) == [4, 5, 6, 7, 8, 9]
    assert picked("after:swer", prompt) == [7, 8, 9]
    assert picked("after:Answer: ", prompt) == [9]


@given(st.text("ab:", min_size=1, max_size=12), st.data())
def test_after_against_characters(text, data):
    """However it is cut: the tokens of which all characters lie after the delimiter."""
    inner = data.draw(st.sets(st.integers(1, len(text))))
    ends = sorted(inner | {len(text)})
    delimiter = data.draw(st.sampled_from(["a", "ab", "b:a"]))
    which = data.draw(st.sampled_from(["first", "last"]))
    places = [i for i in range(len(text)) if text[i : i + len(delimiter)] == delimiter]
    prompt = cut(text, ends, bos=False)
    beyond = (places[0 if which == "first" else -1] + len(delimiter)) if places else len(text)
    want = [
        all(c >= beyond for c in range(a, b)) for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    if any(want):
        got = after_delimiter(text, prompt.offsets, delimiter, which=which)
        assert got.tolist() == want
    else:
        with pytest.raises(UserError, match="no token follows" if places else "has no"):
            after_delimiter(text, prompt.offsets, delimiter, which=which)


@pytest.mark.parametrize("left, right", [(0, 0), (3, 0), (0, 2), (2, 4)])
def test_padding_moves_nothing(left, right):
    prompt = cut(TEXT, ENDS, left=left, right=right, prompt_length=8)
    for flag, want in (
        ("all", range(1, 10)),
        ("generated", [8, 9]),
        ("last:3", [7, 8, 9]),
        ("last:9", range(1, 10)),
        ("span:0:3", [1, 2]),
        ("span:3:10", range(3, 10)),
        ("chars:21:23", [7, 8]),
        ("after:Answer:", [8, 9]),
    ):
        assert picked(flag, prompt) == [left + i for i in want], flag


def test_special_tokens_within_the_answer_do_not_count():
    prompt = cut(TEXT, ENDS, prompt_length=2)
    prompt.ids[-1] = BOS
    assert picked("generated", prompt) == list(range(2, 9))
    assert picked("last:2", prompt) == [7, 8]
    assert picked("span:7:10", prompt) == [7, 8]


def test_without_padding_masks():
    assert generated_tokens(5, 3).tolist() == [False] * 3 + [True] * 2
    assert generated_tokens(2, 0).all()
    assert token_span(5, 1, 3).tolist() == [False, True, True, False, False]
    assert last_tokens(np.array([True, True, False, True]), 2).tolist() == [
        False,
        True,
        False,
        True,
    ]


def test_characters_against_a_loop():
    prompt = cut(TEXT, ENDS)
    for start in range(len(TEXT)):
        for end in range(start + 1, len(TEXT) + 1):
            want = [bool(set(range(a, b)) & set(range(start, end))) for a, b in prompt.offsets]
            assert char_span(prompt.offsets, start, end).tolist() == want


@given(st.sampled_from(KINDS), st.text(min_size=1), st.integers(0, 99), st.integers(1, 9))
def test_flags_there_and_back(kind, text, start, size):
    own = {"last": (size,), "span": (start, start + size), "chars": (start, start + size)}
    subset = TokenSubset(
        kind=kind,
        delimiter=text if kind.startswith("after") else "",
        numbers=own.get(kind, ()),
    )
    assert TokenSubset.parse(str(subset)) == subset


def test_flag_by_hand():
    assert TokenSubset.parse("after:Answer:") == TokenSubset(kind="after", delimiter="Answer:")
    assert TokenSubset.parse("span:3:20").numbers == (3, 20)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("", "'' is unknown: use all, after:TEXT"),
        ("generatd", "did you mean generated"),
        ("lst:3", "did you mean last"),
        ("All", "'All' is unknown"),
        ("all:3", "'all' takes nothing after it"),
        ("generated:", "'generated' takes nothing after it"),
        ("after", "names no text to look for: use after:TEXT"),
        ("after-first:", "names no text to look for: use after-first:TEXT"),
        ("last", "must be last:M"),
        ("last:0", "M at least 1"),
        ("last:-3", "must be last:M"),
        ("last:²", "must be last:M"),
        ("last:3:4", "must be last:M"),
        ("span:3", "must be span:FROM:TO"),
        ("span:4:4", "0 <= FROM < TO"),
        ("chars:a:b", "must be chars:FROM:TO"),
    ],
)
def test_bad_flags(flag, message):
    with pytest.raises(UserError, match=message):
        TokenSubset.parse(flag)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("after:Result:", "prompt 7: the text has no 'Result:'$"),
        ("after:ANSWER:", "prompt 7: the text has no 'ANSWER:' .it is with other capitals"),
        ("after:42.", "prompt 7: no token follows the last '42.'"),
        ("generated", "prompt 7: no token was generated: the prompt has 10 tokens"),
        ("last:10", "prompt 7: the last 10 tokens are wanted, it has 9"),
        ("span:3:11", "prompt 7: tokens 3..10 are wanted, it has 10"),
        ("span:0:1", "prompt 7: tokens='span:0:1' picks no token but padding or special"),
        ("chars:26:30", "prompt 7: no token holds a character of 26..29"),
    ],
)
def test_what_a_prompt_lacks(flag, message):
    prompt = cut(TEXT, ENDS, left=2, prompt_length=10)
    with pytest.raises(UserError, match=message):
        picked(flag, prompt, number=7)


def test_only_special_tokens():
    with pytest.raises(UserError, match="prompt 3: tokens='all' picks no token"):
        picked("all", PromptTokens(np.array([BOS, BOS])), number=3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: picked("generated", PromptTokens(np.array([5]))), "need prompt_length"),
        (lambda: picked("after:x", PromptTokens(np.array([5]), "x")), "need the prompt's text"),
        (lambda: picked("chars:0:1", PromptTokens(np.array([5]))), "need the prompt's text"),
        (lambda: token_span(3, 2, 2), "start=2, end=2"),
        (lambda: char_span(np.zeros((1, 2), int), -1, 2), "start=-1, end=2"),
        (lambda: last_tokens(np.ones(3, bool), 0), "m=0 must be at least 1"),
        (lambda: generated_tokens(3, -1), "prompt_length=-1"),
        (lambda: after_delimiter("a", np.zeros((1, 2), int), ""), "delimiter is empty"),
        (
            lambda: after_delimiter("a", np.zeros((1, 2), int), "a", which="best"),
            "which='best' must be 'last' or 'first'",
        ),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()
