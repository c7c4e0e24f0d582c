"""Coloured words as HTML: the text stays the text, whatever it holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.reports import Key, Span, legend_html, text_html, visible
from tests.reports.reading import HOSTILE, Page


def chopped(text, rng, num_factors=3):
    """Random spans over a text, with gaps."""
    cuts = np.unique(rng.integers(0, len(text) + 1, 8)) if text else np.zeros(0, int)
    return [
        Span(
            int(a),
            int(b),
            rng.dirichlet(np.ones(num_factors)).tolist(),
            None if rng.random() < 0.3 else 1,
        )
        for a, b in zip(cuts[::2], cuts[1::2], strict=False)
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_visible_text_is_the_text(name):
    text = HOSTILE[name]
    page = Page(text_html(text, chopped(text, np.random.default_rng(0))))
    assert page.text(style="text") == [visible(text)]
    assert {tag for tag, _ in page.tags} == {"p", "span"}
    assert all(
        set(a) <= {"class", "dir", "tabindex", "data-f", "data-p", "data-g"} for _, a in page.tags
    )


@given(st.text(st.characters(codec=None), max_size=60), st.integers(0, 10))
def test_the_visible_text_is_the_text_whatever_it_is(text, seed):
    page = Page(text_html(text, chopped(text, np.random.default_rng(seed))))
    assert page.text(style="text") == [visible(text)]


def test_a_word_carries_its_factor_probabilities_and_gold_colour():
    spans = [
        Span(0, 2, [0.0004, 0.1, 0.8996], 4),
        Span(3, 5, [0.05, 0.05, 0.9], 4),
        Span(6, 7, [1.0, 0, 0]),
    ]
    page = Page(text_html("ab cd e!", spans))
    words = [a for _, a in page.tags if (a.get("class") or "").startswith("w ")]
    assert [w["data-p"] for w in words] == ["0 100 900", "50 50 900", "1000 0 0"]
    assert [w["data-f"] for w in words] == ["2", "2", "0"]
    assert [w.get("data-g") for w in words] == ["4", "4", None]
    assert [w["class"].split() for w in words] == [
        ["w", "f2", "a9", "ff", "g4", "gf"],
        ["w", "f2", "a9", "g4"],
        ["w", "f0", "a10", "ff"],
    ]
    gaps = [a["class"].split() for _, a in page.tags if (a.get("class") or "").startswith("s")]
    assert gaps == [["s", "f2", "a9", "g4"], ["s"]]


def test_a_text_without_words():
    assert Page(text_html(" ... ", [])).text(style="text") == [" ... "]


@pytest.mark.parametrize(
    "spans", [[(0, 3), (2, 4)], [(3, 4), (0, 1)], [(0, 9)], [(2, 2)], [(-1, 2)]], ids=str
)
def test_spans_that_do_not_fit_are_refused(spans):
    with pytest.raises(ValueError, match=r"spans\[\d\] covers characters"):
        text_html("abcdef", [Span(a, b, [1.0]) for a, b in spans])


def test_the_legend_names_every_colour():
    keys = [
        Key(0, "<b>cheese</b>", "10%"),
        Key(1, "\u202egals\n"),
        Key(2, "popes", is_factor=False),
    ]
    page = Page(legend_html(keys))
    assert page.text(style="name") == ["<b>cheese</b>", "[U+202E]gals␊", "popes"]
    buttons = [a for tag, a in page.tags if tag == "button"]
    assert [(b.get("data-factor"), b.get("data-label")) for b in buttons] == [
        ("0", None),
        ("1", None),
        (None, "2"),
    ]
