"""Sentences out of docstrings."""

import pytest

from moe_jax.data.prose import is_closed, sentences

GOOD = "The quick brown fox jumps over the lazy dog."


def test_sentences_of_a_paragraph_in_order():
    text = f"""{GOOD} Too short here. Another sentence that
    is long enough follows the first one here.
    """
    assert sentences(text) == [
        GOOD,
        "Another sentence that is long enough follows the first one here.",
    ]


def test_min_words():
    assert sentences(GOOD, min_words=9) == [GOOD]
    assert sentences(GOOD, min_words=10) == []


@pytest.mark.parametrize(
    "marked, plain",
    [
        ("``lazy``", "lazy"),
        ("`lazy`", "lazy"),
        (":ref:`lazy <the-target>`", "lazy"),
        (":class:`~zoo.lazy`", "lazy"),
        (":py:func:`lazy`", "lazy"),
        ("`lazy <target>`_", "lazy"),
        ("*lazy*", "lazy"),
        ("**lazy**", "lazy"),
        ("lazy [1]_", "lazy"),
        ("“lazy”", '"lazy"'),
    ],
)
def test_markup_is_taken_off(marked, plain):
    assert sentences(GOOD.replace("lazy", marked)) == [GOOD.replace("lazy", plain)]


@pytest.mark.parametrize(
    "bad",
    [
        GOOD[:-1],  # no stop
        GOOD.replace("The", "the"),
        GOOD.replace("fox", "fox = 3"),
        GOOD.replace("fox", "the_fox"),
        GOOD.replace("fox", "zoo.fox"),
        GOOD.replace("fox", "fox()"),
        GOOD.replace("fox", "quickFox"),
        GOOD.replace("fox", "(fox"),
        GOOD.replace("fox", '"fox'),
        GOOD.replace("fox", "https://example.org/fox"),
        GOOD.replace("fox", "x by y"),  # a formula in words
        GOOD.replace("fox", "fox 1234"),
        GOOD.replace("quick", "quick- ly"),
        GOOD[:-1] + ", as was shown in [1]_.",
        GOOD[:-1] + "\n(see [Knuth]_).",
        "This function is deprecated, use the other one in new programs.",
    ],
)
def test_what_is_not_a_clean_sentence_is_left_out(bad):
    assert sentences(bad) == []


def test_an_abbreviation_does_not_end_a_sentence():
    text = "This was shown by Smith et al. A long time ago in a large study."
    assert sentences(text) == [text]


@pytest.mark.parametrize(
    "block",
    [
        f"    {GOOD}",  # a literal block
        f"- {GOOD}",
        f"* {GOOD}",
        f"1. {GOOD}",
        f":param x: {GOOD}",
        f">>> {GOOD}",
        f".. note:: {GOOD}",
        f"{GOOD}\n{'-' * len(GOOD)}",  # a heading
        f"| {GOOD} |",
        f"Parameters\n----------\nx : int\n    {GOOD}",
        f"Examples\n--------\n{GOOD}",
        f"References\n==========\n{GOOD}",
        f"Args:\n  x: {GOOD}",
        f"Returns:\n  {GOOD}",
    ],
)
def test_blocks_that_are_not_running_text(block):
    assert sentences(f"Summary.\n\n{block}\n\nEnd.\n") == []


def test_prose_goes_on_after_a_table():
    text = f"Parameters\n----------\nx : int\n    A number.\n\nNotes\n-----\n{GOOD}\n"
    assert sentences(text) == [GOOD]


def test_headings_of_chapters_are_dropped_and_their_text_kept():
    assert sentences(f"Exceptions\n**********\n\n{GOOD}\n") == [GOOD]
    assert sentences(f"==========\nExceptions\n==========\n{GOOD}\n") == [GOOD]


def test_nothing():
    assert sentences("") == []


def test_is_closed():
    assert is_closed('a (b) "c"')
    assert not is_closed("a (b")
    assert not is_closed('a "b')
