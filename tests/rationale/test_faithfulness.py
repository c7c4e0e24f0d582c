"""Comprehensiveness and sufficiency on models whose answer is known."""

import math

import numpy as np
import pytest

from moe_jax.rationale import TextRationale
from moe_jax.rationale.faithfulness import faithfulness


def text(probs):
    """A text of one-letter tokens."""
    size = len(probs)
    offsets = np.stack([np.arange(size) * 2, np.arange(size) * 2 + 1], axis=1)
    return TextRationale(" ".join("a" * size), offsets, np.asarray(probs, float))


def counting(weights):
    """Cosine = sum of the kept tokens' weights, one weight array per text; counts its calls."""

    def score(masks):
        score.calls += 1
        assert len(masks) == len(weights)
        assert all(m.any() or not m.size for m in masks)
        assert all(
            m.dtype == bool and m.shape == w.shape for m, w in zip(masks, weights, strict=True)
        )
        return np.array([w[m].sum() for w, m in zip(weights, masks, strict=True)])

    score.calls = 0
    return score


def test_by_hand_one_text():
    # Factor 0 took tokens 0..2 of 10 (weights .2 each), factor 1 the rest (weights .4/7 each).
    probs = np.full((10, 2), 0.5)
    probs[:3] = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]
    probs[3:] = [0.2, 0.8]
    weights = np.array([0.2] * 3 + [0.4 / 7] * 7)
    got = faithfulness([text(probs)], counting([weights]))
    # Factor 1 (7 tokens): removal costs .4, alone it lacks .6; factor 0: .6 and .4.
    assert got["comprehensiveness_compat"] == pytest.approx((0.4 + 0.6) / 2)
    assert got["sufficiency_compat"] == pytest.approx((0.6 + 0.4) / 2)
    # Top tokens at 1, 5, 10, 20, 50% of 10: 1, 1, 1, 2, 5.
    first = [0.2, 0.2, 0.2, 0.4, 0.6 + 2 * 0.4 / 7]
    second = [n * 0.4 / 7 for n in (1, 1, 1, 2, 5)]
    both = (np.array(first) + np.array(second)) / 2
    for percent, value in zip((1, 5, 10, 20, 50), both, strict=True):
        assert got[f"comprehensiveness_at_{percent}"] == pytest.approx(value)
        assert got[f"sufficiency_at_{percent}"] == pytest.approx(1 - value)
    assert got["comprehensiveness_aopc_compat"] == pytest.approx(both.mean())
    assert got["sufficiency_aopc_compat"] == pytest.approx(1 - both.mean())


def test_corrected_is_the_difference_and_zero_for_a_model_that_sees_no_difference():
    rng = np.random.default_rng(0)
    texts = [text(rng.dirichlet(np.ones(3), 20)) for _ in range(5)]
    got = faithfulness(texts, counting([np.full(20, 0.05)] * 5))
    for base in ("comprehensiveness", "sufficiency"):
        for part in (base, f"{base}_aopc"):
            difference = got[f"{part}_compat"] - got[f"{part}_random"]
            assert got[f"{part}_corrected"] == pytest.approx(difference)
            assert got[f"{part}_corrected"] == pytest.approx(0, abs=1e-12)


def test_tokens_that_matter_beat_random_ones():
    rng = np.random.default_rng(1)
    probs, weights = [], []
    for _ in range(20):
        chosen = rng.permutation(30) < 6
        probs.append(np.where(chosen[:, None], [0.9, 0.1], [0.55, 0.45]))
        weights.append(np.where(chosen, 1 / 6, 0.0))
    got = faithfulness([text(p) for p in probs], counting(weights), max_factors=1)
    assert got["comprehensiveness_at_20"] == pytest.approx(1.0)
    assert got["sufficiency_at_20"] == pytest.approx(0.0)
    assert got["comprehensiveness_aopc_corrected"] > 0.2
    assert got["sufficiency_aopc_corrected"] < -0.2
    # All tokens belong to factor 0: without them nothing is left, and nothing has cosine 0.
    assert got["comprehensiveness_compat"] == pytest.approx(1.0)
    assert got["sufficiency_compat"] == pytest.approx(0.0)


def test_number_of_calls_and_seed():
    rng = np.random.default_rng(2)
    texts = [text(rng.dirichlet(np.ones(5), 15)) for _ in range(4)]
    weights = [rng.random(15) for _ in texts]
    score = counting(weights)
    first = faithfulness(texts, score, seed=3)
    assert score.calls == 1 + 4 * 3 * 6
    assert faithfulness(texts, score, seed=3) == first
    assert faithfulness(texts, score, seed=4) != first


def test_corners():
    # One token, one factor, and a text without tokens.
    got = faithfulness([text(np.ones((1, 1)))], counting([np.array([0.8])]))
    assert got["comprehensiveness_compat"] == pytest.approx(0.8)
    assert got["sufficiency_compat"] == pytest.approx(0.0)
    empty = text(np.zeros((0, 1)))
    both = faithfulness([empty, text(np.ones((1, 1)))], counting([np.zeros(0), np.array([0.8])]))
    assert both == got
    assert all(math.isfinite(v) for v in got.values())
    assert faithfulness([], counting([])) == {}
    assert faithfulness([empty], counting([np.zeros(0)])) == {}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_factors": 0}, "max_factors=0 must be at least 1"),
        ({"thresholds": ()}, "thresholds="),
        ({"thresholds": (0.0, 0.5)}, "must be one or more numbers in"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        faithfulness([text(np.ones((2, 1)))], counting([np.ones(2)]), **options)


@pytest.mark.parametrize(
    "answer, message",
    [(np.zeros(2), r"score gave shape \(2,\) for 1 texts"), (np.array([np.nan]), "not finite")],
)
def test_bad_answers(answer, message):
    with pytest.raises(ValueError, match=message):
        faithfulness([text(np.ones((2, 1)))], lambda masks: answer)
