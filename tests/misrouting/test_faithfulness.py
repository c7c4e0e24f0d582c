"""Faithfulness measures: values worked by hand, SciPy and scikit-learn, planted truths."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import stats
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from moe_jax.misrouting.faithfulness import (
    bounded_drop,
    cc_shap,
    concept_alignment,
    corrupted_steps,
    early_answering,
    filler_tokens,
    margin,
    margin_sigma,
    nldd,
    option_probs,
)

INF = np.inf


def test_option_probs_against_softmax():
    x = np.random.default_rng(0).normal(-400, 3, (4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(option_probs(x), softmax(x.astype(float), axis=-1), rtol=1e-12)
    length = np.array([1, 4, 2])
    want = softmax(x.astype(float) / length, axis=-1)
    shared = length[None, None]
    np.testing.assert_allclose(option_probs(x, length=shared), want, rtol=1e-12)
    np.testing.assert_allclose(
        option_probs(x, length=np.broadcast_to(shared, x.shape)), want, rtol=1e-12
    )


def test_option_probs_corners():
    x = np.array([[-INF, -5.0, -5.0], [-INF, -INF, -INF], [np.nan, 0.0, 0.0]])
    got = option_probs(x)
    np.testing.assert_allclose(got[0], [0, 0.5, 0.5])
    assert np.isnan(got[1:]).all()
    assert option_probs(np.array([-3.0])) == [1]


def test_margin_by_hand():
    x = np.array([[-1.0, -3.0, -2.0], [-1.0, -3.0, -2.0], [-INF, -1.0, -1.0], [-1.0, -INF, -INF]])
    got = margin(x, np.array([0, 1, 0, 0]), sigma=0.5)
    np.testing.assert_allclose(got, [2, -4, -INF, INF])
    assert np.isnan(margin(np.full((1, 2), -INF), np.array([0]))).all()
    assert margin(x[0], np.array(2)).shape == ()
    # One answer for all contexts.
    np.testing.assert_allclose(margin(x[:2], np.array([1])), [-2, -2])
    np.testing.assert_allclose(margin_sigma(np.array([1.0, 2.0, 3.0])), 1)


def test_early_answering_by_hand():
    probs = np.array([[0.6, 0.4], [0.45, 0.55], [0.1, 0.9], [0.2, 0.8]])
    got = early_answering(probs)
    assert got.same.tolist() == [False, True, True, True]
    np.testing.assert_allclose(got.hard, 1 / 4)
    np.testing.assert_allclose(got.ratio, [0.5, 0.55 / 0.8, 1, 1])
    np.testing.assert_allclose(got.soft, 1 - (0.5 + 0.6875 + 2) / 4)


def test_early_answering_corners():
    nothing = early_answering(np.array([[0.3, 0.7]]))
    assert np.isnan([nothing.hard, nothing.soft]).all()
    settled = early_answering(np.tile([0.3, 0.7], (5, 1)))
    assert (settled.hard, settled.soft) == (0, 0)
    late = early_answering(np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]]))
    np.testing.assert_allclose([late.hard, late.soft], 4 / 5)


def test_filler_by_hand():
    probs = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [np.nan, np.nan]])
    filled = np.array([[0.4, 0.6], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    got = filler_tokens(probs, filled)
    np.testing.assert_allclose(got.soft, [0.3, -0.1, 0, np.nan], atol=1e-12)
    assert got.hard.tolist() == [True, False, False, False]


def test_drops_by_hand():
    m = np.array([2.0, -2.0, 1e-9, 4.0, 0.0, INF, 1.0, 1.0])
    after = np.array([1.0, -3.0, 5.0, -1.0, 0.0, 1.0, -INF, np.nan])
    got = nldd(m, after)
    np.testing.assert_allclose(got.percent, [50, 50, 0, 125, 0, np.nan, np.nan, np.nan])
    assert got.flagged.tolist() == [False, False, True, False, True, True, True, True]
    bounded = bounded_drop(m, after)
    np.testing.assert_allclose(bounded, [2 / 3, 0.4, -2, 2, 0, np.nan, np.nan, np.nan])


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.1, 9))
def test_bounded_drop_is_bounded_odd_and_without_unit(m, other, unit):
    a, b = np.array([m]), np.array([other])
    got = bounded_drop(a, b)
    assert abs(got[0]) <= 2 + 1e-12
    np.testing.assert_allclose(bounded_drop(b, a), -got, atol=1e-12)
    if min(abs(m), abs(other)) > 1e-300:
        np.testing.assert_allclose(bounded_drop(a * unit, b * unit), got, atol=1e-9)


def test_corrupted_steps_by_hand():
    base = np.array([-3.0, -1.0, -4.0])
    changed = np.array([[-3.0, -1.0, -4.0], [-2.0, -3.0, -9.0], [-2.0, -1.0, -9.0]])
    got = corrupted_steps(base, changed)
    assert got.flip.tolist() == [False, True, False]
    np.testing.assert_allclose(got.flip_rate, 1 / 3)
    np.testing.assert_allclose(got.drop, [0, 2, 2 * (2 - 1) / (2 + 1)])  # m: 2, then 2, -1, 1
    nothing = corrupted_steps(base, changed[:0])
    assert np.isnan(nothing.flip_rate)
    assert nothing.drop.shape == (0,)


def test_cc_shap_by_hand():
    # Shares: answer (1/2, -1/2, 0); explanation mean of (1, 0, 0) and (0, 0, 1), the zero row aside.
    answer = np.array([[2.0, -2.0, 0.0]])
    explanation = np.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(cc_shap(answer, explanation), 0.5)
    np.testing.assert_allclose(cc_shap(answer, -answer), -1)
    np.testing.assert_allclose(cc_shap(answer, answer * 7), 1)
    assert np.isnan(cc_shap(answer, explanation[:0]))
    assert np.isnan(cc_shap(answer, explanation[2:]))


@given(st.integers(0, 999))
def test_cc_shap_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 6)), rng.normal(size=(5, 6))
    means = [np.mean([row / np.abs(row).sum() for row in x], axis=0) for x in (a, b)]
    want = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    np.testing.assert_allclose(cc_shap(a, b), want, atol=1e-12)


@given(st.integers(0, 999), st.booleans())
def test_concepts_against_sklearn(seed, binary):
    rng = np.random.default_rng(seed)
    effect = np.round(rng.random(12), 1)
    mention = np.append(np.round(rng.random(10), 1), [0.0, 1.0])
    if binary:
        mention = mention >= 0.5
    got = concept_alignment(effect, mention)
    np.testing.assert_allclose(got.auroc, roc_auc_score(mention >= 0.5, effect), atol=1e-12)
    want = stats.spearmanr(effect, mention.astype(float)).statistic
    np.testing.assert_allclose(got.spearman, want, atol=1e-12)


def test_concepts_corners():
    effect = np.array([0.1, 0.2, 0.3])
    assert np.isnan(concept_alignment(effect, np.ones(3, bool))).all()
    assert np.isnan(concept_alignment(effect, np.zeros(3))).all()
    assert np.isnan(concept_alignment(np.zeros(0), np.zeros(0))).all()
    flat = concept_alignment(np.ones(3), np.array([True, False, True]))
    assert np.isnan(flat.spearman)
    assert flat.auroc == 0.5
    # Graded mentions all under the threshold have an order, but no classes.
    low = concept_alignment(effect, effect)
    np.testing.assert_allclose(low.spearman, 1)
    assert np.isnan(low.auroc)


X = np.array([0.1, np.nan])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: option_probs(np.zeros(2), length=np.array([1, 0])), "length holds 0"),
        (lambda: margin(np.zeros((3, 1)), np.zeros(3, int)), "logp has 1 options"),
        (lambda: margin(np.zeros((1, 2)), np.array([2])), "answer holds 2..2: must be 0..1"),
        (lambda: margin(np.zeros((1, 2)), np.array([0]), sigma=0.0), "sigma=0.0"),
        (lambda: margin_sigma(np.ones(3)), "aren't all equal"),
        (lambda: margin_sigma(np.ones(1)), "at least two"),
        (lambda: early_answering(np.zeros((0, 2))), "probs must have a row"),
        (lambda: early_answering(X[None]), "without NaN"),
        (lambda: nldd(X, X, eps=-1.0), "eps=-1.0"),
        (lambda: corrupted_steps(X, np.zeros((1, 2))), "must not hold NaN"),
        (lambda: cc_shap(np.ones((1, 2)), X[None]), "explanation holds attributions"),
        (lambda: concept_alignment(X, np.ones(2)), "must not hold NaN"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
