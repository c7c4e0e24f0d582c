"""Names of factors, colours of labels, words as they are shown."""

import numpy as np
import pytest

from moe_jax.rationale import TextRationale
from moe_jax.rationale.display import display_spans, factor_names, keys_of, label_colours, names_of
from moe_jax.reports.tokens import check_spans
from tests.rationale import fakes
from tests.reports.reading import HOSTILE


def test_a_factor_goes_by_its_label_or_its_words_or_its_number():
    words = [[("x", 1.0)], [("lava", 2.0), ("ash", 1.0), ("crater", 0.5)], []]
    mapping = np.array([1, -1, -1])
    assert factor_names(3, ["a", "b"], mapping, words) == ["b", "lava / ash", "factor 2"]
    assert factor_names(2) == ["factor 0", "factor 1"]


@pytest.mark.parametrize("num_factors, num_labels", [(4, 4), (3, 6), (6, 3)])
def test_labels_and_factors_never_share_a_colour_by_chance(num_factors, num_labels):
    assessment = fakes.assessment(num_factors=num_factors, num_labels=num_labels, num_samples=1)
    colours = label_colours(assessment.mapping, num_labels, num_factors)
    assert len(set(colours)) == num_labels
    for label, colour in enumerate(colours):
        if colour < num_factors:
            assert assessment.mapping[colour] == label
        else:
            assert label not in assessment.mapping
    keys = keys_of(assessment)
    assert [key.name for key in keys[:num_factors]] == names_of(assessment)
    assert len(keys) == num_factors + max(0, num_labels - num_factors)
    assert [key.is_factor for key in keys] == [key.colour < num_factors for key in keys]


def test_pieces_are_joined_to_words_by_their_mean():
    text = TextRationale(
        "unhappy cats",
        np.array([[0, 2], [2, 7], [8, 12]]),
        np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]], np.float32),
        np.array([1, 0, -1]),
    )
    first, second = display_spans(text, colours=[5, 3])
    assert (first.start, first.end, first.factor, first.gold) == (0, 7, 0, 3)
    assert first.probs == pytest.approx([0.6, 0.4])
    assert (second.start, second.end, second.factor, second.gold) == (8, 12, 1, None)
    assert [s.gold for s in display_spans(text)] == [None, None]


def test_a_word_of_many_pieces_is_shown_piece_by_piece():
    text = HOSTILE["chinese"]
    offsets = np.array([(i, i + 1) for i in range(len(text))])
    probs = np.eye(2, dtype=np.float32)[np.arange(len(text)) % 2]
    spans = display_spans(TextRationale(text, offsets, probs, np.zeros(len(text), np.int64)), [7])
    assert [(s.start, s.end) for s in spans] == [tuple(o) for o in offsets]
    assert {s.gold for s in spans} == {7}


@pytest.mark.parametrize("name", HOSTILE)
def test_spans_are_in_order_whatever_the_text(name):
    text = fakes.text_rationale(HOSTILE[name], num_factors=4)
    check_spans(text.text, display_spans(text))


def test_tokens_that_share_characters_or_cover_none():
    # Byte-level tokenizers give the pieces of one emoji the same characters.
    text = "😀" * 9 + " b"
    offsets = [(i, i + 1) for i in range(9) for _ in range(3)] + [(5, 5), (10, 11)]
    probs = np.full((len(offsets), 2), 0.5, np.float32)
    spans = display_spans(TextRationale(text, np.array(offsets), probs))
    check_spans(text, spans)
    assert [(s.start, s.end) for s in spans] == [(i, i + 1) for i in range(9)] + [(10, 11)]


def test_a_text_without_tokens():
    nothing = TextRationale("  ", np.zeros((0, 2), np.int64), np.zeros((0, 3), np.float32))
    assert display_spans(nothing, [1, 2]) == []
