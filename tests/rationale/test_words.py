"""Word pieces to words, and the words that are typical of a factor."""

import math

import numpy as np
import pytest

from moe_jax.rationale import TextRationale
from moe_jax.rationale.words import typical_words, words


def from_words(pairs, num_factors):
    """A text with one token per word, each given to a factor."""
    text, offsets = "", []
    for word, _ in pairs:
        text += " " if text else ""
        offsets.append((len(text), len(text) + len(word)))
        text += word
    probs = np.eye(num_factors)[[k for _, k in pairs]]
    return TextRationale(text, np.array(offsets).reshape(-1, 2), probs)


class TestWords:
    def test_pieces_of_a_word_are_joined(self):
        text = "un-\tbreak able!"
        offsets = np.array([[0, 2], [2, 3], [4, 7], [7, 9], [10, 14], [14, 15]])
        probs = np.array([[1, 0], [0, 1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.4, 0.6]])
        got = words(TextRationale(text, offsets, probs))
        assert [text[a:b] for a, b in got.spans] == ["un-", "break", "able!"]
        np.testing.assert_allclose(got.probs, [[0.5, 0.5], [0.65, 0.35], [0.3, 0.7]])

    def test_words_without_tokens_and_tokens_without_words(self):
        # The middle word was not tokenised; one token is empty; one keeps the space before it.
        offsets = np.array([[0, 1], [1, 1], [3, 5]])
        got = words(TextRationale("a b c", offsets, np.eye(3)))
        np.testing.assert_array_equal(got.spans, [[0, 1], [4, 5]])
        np.testing.assert_array_equal(got.probs, np.eye(3)[[0, 2]])

    def test_leading_and_trailing_space(self):
        got = words(TextRationale("  ab ", np.array([[0, 2], [2, 4], [4, 5]]), np.eye(3)))
        np.testing.assert_array_equal(got.spans, [[2, 4]])
        np.testing.assert_allclose(got.probs, [[0.5, 0.5, 0]])

    @pytest.mark.parametrize("text", ["", "   "])
    def test_no_words(self, text):
        got = words(TextRationale(text, np.zeros((0, 2), int), np.zeros((0, 2))))
        assert got.spans.shape == (0, 2)
        assert got.probs.shape == (0, 2)


class TestTypicalWords:
    def test_topic_words_lead_and_function_words_do_not(self):
        rng = np.random.default_rng(0)
        topics = [["cheese", "milk", "rind"], ["lava", "crater", "ash"]]
        texts = []
        for _ in range(60):
            k = int(rng.integers(0, 2))
            topic = [(topics[k][rng.integers(3)], k) for _ in range(4)]
            # "the" is three times as frequent and leans to factor 0.
            texts.append(from_words(topic + [("The", int(rng.random() < 0.4))] * 12, 2))
        lists = typical_words(texts, num_factors=2)
        for found, expected in zip(lists, topics, strict=True):
            assert {word for word, _ in found[:3]} == set(expected)
        assert all(word != "the" for found in lists for word, _ in found[:3])

    def test_score_by_hand(self):
        # Counts: a = (6, 1), b = (2, 7); prior .5 of the total: 3.5 and 4.5 added.
        text = from_words([("a", 0)] * 6 + [("a", 1)] + [("b", 0)] * 2 + [("b", 1)] * 7, 2)
        lists = typical_words([text], num_factors=2, prior=0.5, z=1.0)
        delta = math.log((9.5 / 6.5) / (4.5 / 11.5))
        assert [word for word, _ in lists[0]] == ["a"]
        assert lists[0][0][1] == pytest.approx(delta - math.sqrt(1 / 9.5 + 1 / 4.5))
        assert [word for word, _ in lists[1]] == ["b"]
        assert lists[1][0][1] == pytest.approx(delta - math.sqrt(1 / 6.5 + 1 / 11.5))

    def test_case_punctuation_and_rare_words(self):
        pairs = [('"Paris,', 0), ("paris", 0), ("PARIS!", 0), ("--", 0), ("once", 0)]
        text = from_words(pairs * 3 + [("C++", 1)] * 9 + [("twice", 1)] * 2, 2)
        lists = typical_words([text], num_factors=2, z=0.0)
        assert [word for word, _ in lists[0]] == ["paris", "once"]
        assert [word for word, _ in lists[1]] == ["c++"]
        rare = typical_words([text], num_factors=2, z=0.0, min_count=4)
        assert [word for word, _ in rare[0]] == ["paris"]

    def test_number_of_words_and_order(self):
        pairs = [(f"w{i}", 0) for i in range(9) for _ in range(3 + i)] + [("x", 1)] * 20
        lists = typical_words([from_words(pairs, 2)], num_factors=2, num_words=4)
        assert len(lists[0]) == 4
        scores = [score for _, score in lists[0]]
        assert scores == sorted(scores, reverse=True)
        assert [word for word, _ in lists[0]] == ["w8", "w7", "w6", "w5"]  # more evidence first

    def test_dead_factor_one_factor_and_no_text(self):
        text = from_words([("a", 0)] * 4 + [("b", 2)] * 6, 3)
        assert typical_words([text], num_factors=3, z=0.0)[1] == []
        alone = from_words([("a", 0)] * 4 + [("b", 0)] * 6 + [("c", 0)], 1)
        assert typical_words([alone], num_factors=1) == [[("b", 0.0), ("a", 0.0)]]
        assert typical_words([], num_factors=2) == [[], []]
        only = from_words([("a", 0)] * 40 + [("a", 1)] * 40, 2)
        assert all(
            math.isfinite(s) for part in typical_words([only], num_factors=2) for _, s in part
        )
