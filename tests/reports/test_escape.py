"""Control characters are shown, nothing else is touched."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.reports import one_line, visible


@pytest.mark.parametrize(
    "text, seen",
    [
        ("plain text", "plain text"),
        ("", ""),
        ("a\tb\nc", "a\tb\nc"),
        ("nul\x00", "nul␀"),
        ("\x1b[31m", "␛[31m"),
        ("\r\n", "␍\n"),
        ("\x7f\x85", "␡[U+0085]"),
        ("\u202eabc\u2069", "[U+202E]abc[U+2069]"),
        ("\ud83d", "[U+D83D]"),
        ("\u2028", "[U+2028]"),
        ("👨‍👩‍👧 café שלום", "👨‍👩‍👧 café שלום"),
    ],
)
def test_visible(text, seen):
    assert visible(text) == seen


def test_one_line_spells_out_breaks():
    assert one_line("a\tb\nc") == "a␉b␊c"


@given(st.text(st.characters(codec=None), max_size=40))
def test_nothing_dangerous_is_left(text):
    seen = visible(text)
    left = set(seen) - {"\n", "\t"}
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in left)
    assert not left & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    )
    seen.encode("utf-8")
    assert visible(seen) == seen


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs", "M"]), max_size=40))
def test_ordinary_text_is_left_alone(text):
    assert visible(text) == text == one_line(text)
