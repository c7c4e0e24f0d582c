"""Stability measures against SciPy, textbook loops and values worked by hand."""

import functools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax

from moe_jax.misrouting.stability import (
    above_floor,
    consistency,
    first_divergence,
    flips,
    js_divergence,
    levenshtein,
    levenshtein_similarity,
    perplexity_ratio,
    repetition,
    rouge_l,
    routing_drift,
    spread,
    top1_agrees,
)

TEXT = arrays(np.int64, st.integers(0, 9), elements=st.integers(0, 3))


def ids(*values):
    return np.array(values, np.int64)


def logp(tokens, seed, dtype=np.float64):
    z = np.random.default_rng(seed).normal(0, 3, (tokens, 11))
    return log_softmax(z, axis=1).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_divergence_against_scipy(dtype):
    p, q = logp(150, 0, dtype), logp(150, 1, dtype)
    p[3, :4], q[3, 2:7] = -np.inf, -np.inf
    p[3] -= np.log(np.exp(p[3]).sum())
    q[3] -= np.log(np.exp(q[3]).sum())
    want = jensenshannon(np.exp(p), np.exp(q), base=2, axis=1) ** 2
    np.testing.assert_allclose(
        js_divergence(p, q), want, atol=1e-6 if dtype == np.float32 else 1e-12
    )


def test_divergence_by_hand():
    with np.errstate(divide="ignore"):
        p = np.log([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
        q = np.log([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    half = 0.75 * np.log2(1 / 0.75) + 0.25 * 2 - 0.5  # H(3/4, 1/4) - (0 + 1) / 2
    np.testing.assert_allclose(js_divergence(p, q), [1, 0, half, 0], atol=1e-12)
    np.testing.assert_allclose(js_divergence(q, p), [1, 0, half, 0], atol=1e-12)
    assert js_divergence(p[:0], q[:0]).shape == (0,)
    # Sums that are off by a little (bfloat16) don't count as a difference.
    np.testing.assert_allclose(js_divergence(p + 0.01, q - 0.02), [1, 0, half, 0], atol=1e-12)


def test_spread_and_agreement():
    got = spread(np.arange(101.0))
    assert got == (50, 95)
    assert np.isnan(spread(np.zeros(0))).all()
    assert spread(np.array([0.25])) == (0.25, 0.25)
    a = np.array([[0.0, 1.0, 1.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    b = np.array([[0.0, 2.0, 1.0], [1.0, 1.5, 0.0], [-np.inf, 0.0, 1.0]])
    assert top1_agrees(a, b).tolist() == [True, False, False]


def test_flips_by_hand():
    right = ids(0, 0, 0, 0, 0, 0, 0, 0)
    base = ids(0, 0, 0, 1, 1, 1, 1, -1)
    changed = ids(0, 0, 2, 0, 2, 1, 1, -1)
    got = flips(base, changed, right)
    assert got == (2 / 8, 1 / 8, 1 / 8, 1 / 8, 3 / 8)
    assert got.flipped == 3 / 8


@given(st.integers(0, 999))
def test_flips_sum_to_one(seed):
    base, changed, right = np.random.default_rng(seed).integers(0, 3, (3, 13))
    got = flips(base, changed, right)
    np.testing.assert_allclose(sum(got), 1)
    np.testing.assert_allclose(got.flipped, np.mean(base != changed))
    np.testing.assert_allclose(
        got.wrong_right - got.right_wrong, np.mean(changed == right) - np.mean(base == right)
    )


@pytest.mark.parametrize(
    "base, changed, want",
    [
        (ids(1, 2, 3, 4), ids(1, 2, 9, 4), 0.5),
        (
            ids(1, 2, 3, 4),
            ids(
                1,
            ),
            0.25,
        ),
        (ids(1, 2), ids(1, 2, 3), 1),
        (ids(1, 2), ids(), 0),
        (ids(5), ids(6), 0),
        (ids(), ids(1), np.nan),
    ],
)
def test_first_divergence(base, changed, want):
    np.testing.assert_equal(first_divergence(base, changed), want)


@given(TEXT, TEXT)
def test_texts_against_recursion(a, b):
    @functools.cache
    def distance(i, j):
        if i == 0 or j == 0:
            return i + j
        swap = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, swap)

    @functools.cache
    def common(i, j):
        if i == 0 or j == 0:
            return 0
        if a[i - 1] == b[j - 1]:
            return common(i - 1, j - 1) + 1
        return max(common(i - 1, j), common(i, j - 1))

    want = distance(len(a), len(b))
    assert levenshtein(a, b) == want
    longest = max(len(a), len(b))
    assert levenshtein_similarity(a, b) == (1 - want / longest if longest else 1)
    shared = common(len(a), len(b))
    if shared:
        precision, recall = shared / len(b), shared / len(a)
        want_f = 2 * precision * recall / (precision + recall)
    else:
        want_f = float(not longest)
    np.testing.assert_allclose(rouge_l(a, b), want_f)


def test_texts_by_hand():
    kitten, sitting = (np.frombuffer(w, np.uint8).astype(int) for w in (b"kitten", b"sitting"))
    assert levenshtein(kitten, sitting) == 3
    np.testing.assert_allclose(levenshtein_similarity(kitten, sitting), 4 / 7)
    np.testing.assert_allclose(rouge_l(kitten, sitting), 8 / 13)  # i, t, t, n


def test_consistency_by_hand():
    got = consistency(np.array([[1, 1, 2, 2], [7, 7, 7, 7], [0, 1, 2, 3], [0, 0, 0, 1]]))
    np.testing.assert_allclose(got.entropy[:3], [1, 0, 2], atol=1e-12)
    np.testing.assert_allclose(got.entropy[3], 0.75 * np.log2(4 / 3) + 0.5)
    np.testing.assert_allclose(got.share, [0.5, 1, 0.25, 0.75])
    one = consistency(np.array([[3]]))
    assert (one.entropy[0], one.share[0]) == (0, 1)


def test_perplexity_ratio():
    base, changed = np.log([0.5, 0.5]), np.log([0.25, 0.25])
    np.testing.assert_allclose(perplexity_ratio(base, changed), 2)
    np.testing.assert_allclose(perplexity_ratio(base, base), 1)
    never = np.array([-np.inf, -1.0])
    assert perplexity_ratio(base, never) == np.inf
    assert perplexity_ratio(never, base) == 0
    assert np.isnan(perplexity_ratio(never, never))
    assert np.isnan(perplexity_ratio(base[:0], base[:0]))
    assert perplexity_ratio(base, np.full(2, -1e4)) == np.inf


def test_repetition():
    assert repetition(ids(1, 2, 3)) == 0
    assert repetition(ids(1, 2, 3, 4)) == 0
    np.testing.assert_allclose(repetition(np.full(9, 5)), 1 - 1 / 6)
    np.testing.assert_allclose(repetition(ids(1, 2, 1, 2, 1, 2, 1)), 1 - 2 / 4)
    np.testing.assert_allclose(repetition(ids(1, 2, 1, 2), n=2), 1 - 2 / 3)
    assert repetition(ids()) == 0


@given(st.integers(0, 99))
def test_drift_against_sets(seed):
    rng, experts = np.random.default_rng(seed), 6
    base, changed = (np.argsort(rng.random((8, 3, experts + 1)), axis=-1)[..., :k] for k in (2, 3))
    where = rng.random(8) < 0.7
    where[0] = True
    got = routing_drift(base, changed, experts, where=where)
    for layer in range(3):
        scores = []
        for t in np.flatnonzero(where):
            a, b = set(base[t, layer]) - {experts}, set(changed[t, layer]) - {experts}
            scores.append(len(a & b) / len(a | b) if a | b else 1)
        np.testing.assert_allclose(got[layer], 1 - np.mean(scores), atol=1e-12)
    np.testing.assert_allclose(routing_drift(base, base[..., ::-1], experts), 0, atol=1e-12)


def test_drift_corners():
    none = np.full((2, 1, 2), 4)
    some = np.array([[[0, 1]], [[2, 3]]])
    assert routing_drift(none, none, 4) == [0]
    assert routing_drift(none, some, 4) == [1]
    assert np.isnan(routing_drift(some, some, 4, where=np.zeros(2, bool))).all()


def test_floor():
    got = above_floor(np.array([0.5, 0.1]), np.array([[0.1, 0.2], [0.3, 0.0]]))
    np.testing.assert_allclose(got.excess, [0.3, 0.0], atol=1e-12)
    assert got.beyond.tolist() == [True, False]
    single = above_floor(np.array(0.5), np.array([0.5]))
    assert single.excess == 0
    assert not single.beyond


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: js_divergence(logp(2, 0) + 1, logp(2, 0)), "base has rows that sum to 2.72"),
        (lambda: js_divergence(logp(2, 0), logp(2, 0) * np.nan), "changed has rows"),
        (lambda: js_divergence(np.full((1, 3), -np.inf), np.zeros((1, 3))), "base has rows"),
        (lambda: flips(ids(), ids(), ids()), "right holds no prompt"),
        (lambda: consistency(np.zeros((2, 0), int)), "no samples"),
        (lambda: repetition(ids(1), n=0), "n=0"),
        (lambda: routing_drift(np.full((1, 1, 1), 5), np.zeros((1, 1, 1), int), 4), "base holds 5"),
        (
            lambda: routing_drift(np.zeros((1, 1, 1), int), np.full((1, 1, 1), -1), 4),
            "changed holds -1",
        ),
        (lambda: above_floor(np.ones(2), np.ones((0, 2))), "reruns holds no run"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
