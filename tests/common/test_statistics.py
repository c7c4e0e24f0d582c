"""Paired tests and intervals: against SciPy, by enumeration, and their error rates."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy import stats

from moe_jax.common import (
    bootstrap_interval,
    bootstrap_weights,
    cliffs_delta,
    empirical_p,
    holm,
    mcnemar,
    sign_flip,
    spearman,
    tost,
)


def normal(n, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 1, n)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_test_of_a_fair_coin(lost, gained):
    before = np.repeat([True, False, True, False], [lost, gained, 3, 2])
    after = np.repeat([False, True, True, False], [lost, gained, 3, 2])
    got = mcnemar(before, after)
    assert (got.lost, got.gained) == (lost, gained)
    coins, low = lost + gained, min(lost, gained)
    want = min(1.0, 2 * sum(math.comb(coins, i) for i in range(low + 1)) / 2**coins)
    np.testing.assert_allclose(got.p, want, rtol=1e-12)


def test_mcnemar_by_hand():
    got = mcnemar(np.array([True, True, True, False]), np.array([False, False, False, False]))
    assert got == (3, 0, 0.25)


@pytest.mark.parametrize("seed", range(4))
def test_all_signs(seed):
    d = np.round(normal(9, seed, 0.5), 1)
    means = [np.mean(d * s) for s in itertools.product([-1, 1], repeat=9)]
    got = sign_flip(d, seed=0)
    assert got.exact
    np.testing.assert_allclose(got.mean, d.mean())
    np.testing.assert_allclose(got.p, np.mean(np.abs(means) >= abs(d.mean()) - 1e-12))


@pytest.mark.parametrize("seed", range(3))
def test_all_signs_as_scipy_tries_them(seed):
    d = normal(10, seed, 0.5)
    test = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    np.testing.assert_allclose(sign_flip(d, seed=0).p, test.pvalue, rtol=1e-12)


def test_random_signs_agree_with_all():
    d = normal(12, 3, 0.4)
    exact, drawn = sign_flip(d, seed=0), sign_flip(d, seed=0, exact_up_to=0, flips=20_000)
    assert not drawn.exact
    assert abs(exact.p - drawn.p) < 4 * np.sqrt(exact.p / 20_000)
    assert drawn == sign_flip(d, seed=0, exact_up_to=0, flips=20_000)
    assert drawn.p != sign_flip(d, seed=1, exact_up_to=0, flips=20_000).p


def test_signs_corners():
    assert sign_flip(np.array([3.0]), seed=0).p == 1
    assert sign_flip(np.zeros(5), seed=0) == (0, 1, True)
    assert sign_flip(np.zeros(50), seed=0) == (0, 1, False)
    # All of one sign: only the two extremes reach it, ties included.
    assert sign_flip(np.full(8, 0.1), seed=0).p == 2 / 256
    assert sign_flip(np.full(40, 0.1, np.float32), seed=0, flips=99).p == 1 / 100


def test_interval_against_drawing_rows():
    x = normal((7, 3), 1)
    got = bootstrap_interval(x, seed=5, samples=500)
    counts = np.rint(bootstrap_weights(7, seed=5, samples=500) * 7).astype(int)
    assert (counts.sum(1) == 7).all()
    means = [np.repeat(x, row, axis=0).mean(0) for row in counts]
    np.testing.assert_allclose(got.mean, x.mean(0))
    np.testing.assert_allclose([got.low, got.high], np.quantile(means, [0.025, 0.975], axis=0))
    one = bootstrap_interval(x[:, 1], seed=5, samples=500)
    assert one.low.shape == ()
    np.testing.assert_allclose(one, [got.mean[1], got.low[1], got.high[1]])


def test_a_prompt_brings_its_rows():
    x, prompt = normal(6, 2), np.array([9, 4, 9, 9, 4, -1])
    got = bootstrap_interval(x, seed=5, prompt=prompt, samples=300)
    rows = [x[prompt == p] for p in (-1, 4, 9)]
    counts = np.rint(bootstrap_weights(3, seed=5, samples=300) * 3).astype(int)
    means = [
        np.concatenate([np.tile(r, c) for r, c in zip(rows, n, strict=True)]).mean() for n in counts
    ]
    np.testing.assert_allclose([got.low, got.high], np.quantile(means, [0.025, 0.975]))
    # Copies of each prompt are no more evidence.
    once = bootstrap_interval(x, seed=5)
    thrice = bootstrap_interval(np.tile(x, 3), seed=5, prompt=np.tile(np.arange(6), 3))
    np.testing.assert_allclose(once, thrice)


def test_interval_corners_and_coverage():
    alone = bootstrap_interval(np.array([2.0]), seed=0)
    assert alone.mean == 2
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)
    same = bootstrap_interval(np.array([1.0, 2.0]), seed=0, prompt=np.array([3, 3]))
    assert same.mean == 1.5
    assert np.isnan(same.low)
    np.testing.assert_allclose(bootstrap_interval(np.full(9, 0.1), seed=0), 0.1)
    held = 0
    for seed in range(300):
        got = bootstrap_interval(normal(60, seed), seed=seed, samples=400)
        held += int(got.low <= 0 <= got.high)
    assert 0.89 <= held / 300 <= 0.985


@pytest.mark.parametrize(
    "side, at_top, at_middle",
    [("greater", 3 / 6, 4 / 6), ("less", 1, 4 / 6), ("two-sided", 1, 1)],
)
def test_empirical_p_by_hand(side, at_top, at_middle):
    random = np.array([0.1, 0.2, 0.3, 0.3, 0.0])
    np.testing.assert_allclose(empirical_p(np.array(0.3), random, side=side), at_top)
    np.testing.assert_allclose(empirical_p(np.array(0.2), random, side=side), at_middle)


def test_empirical_p_of_many_and_ties_by_rounding():
    random = np.tile([[0.1 + 0.2, 1.0]], (19, 1))
    np.testing.assert_allclose(empirical_p(np.array([0.3, 2.0]), random), [1, 1 / 20])
    np.testing.assert_allclose(
        empirical_p(np.array([0.3, 2.0]), random, side="two-sided"), [1, 2 / 20]
    )


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.9])), 1)
    assert holm(np.zeros(0)).shape == (0,)


@given(arrays(float, st.integers(1, 6), elements=st.floats(0, 1)))
def test_holm_rejects_step_by_step(p):
    adjusted, order = holm(p), np.argsort(p, kind="stable")
    assert (adjusted >= p).all()
    for alpha in (0.05, 0.3):
        rejected = set()
        for i, j in enumerate(order):
            if (len(p) - i) * p[j] > alpha:
                break
            rejected.add(int(j))
        assert rejected == set(np.flatnonzero(adjusted <= alpha))


@pytest.mark.parametrize("mean, margin", [(0.1, 0.5), (-0.3, 0.4), (2.0, 0.5)])
def test_tost_is_two_t_tests(mean, margin):
    d = normal(25, 4, mean)
    got = tost(d, margin)
    upper = stats.ttest_1samp(d, margin, alternative="less").pvalue
    lower = stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    np.testing.assert_allclose(got.p, max(upper, lower))
    ends = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    np.testing.assert_allclose([got.low, got.high], ends)
    assert got.preserved == (-margin < ends.low and ends.high < margin)


def test_tost_with_a_bound_by_hand():
    d = np.array([0.0, 1.0, -1.0, 1.0, 0, 0])
    got = tost(d, 0.9, bound=1.0)
    # Two more prompts: weights 1/2 at -1 and at 1, 1 at 0.
    centre, squares = 1 / 8, 3 + 1
    error = np.sqrt((squares - 8 * centre**2) / 7 / 8)
    np.testing.assert_allclose(got.mean, 1 / 6)
    np.testing.assert_allclose(got.p, stats.t.sf((0.9 - centre) / error, 7))
    np.testing.assert_allclose((got.low + got.high) / 2, centre)


def test_tost_without_a_change():
    for n in (1, 20, 500):
        plain = tost(np.zeros(n), 0.05)
        assert np.isnan(plain.p)
        assert not plain.preserved
    assert np.isnan(tost(np.full(7, 0.1), 0.5).p)
    assert not tost(np.zeros(1), 0.05, bound=1.0).preserved
    assert not tost(np.zeros(20), 0.05, bound=1.0).preserved
    assert tost(np.zeros(500), 0.05, bound=1.0).preserved


def test_tost_keeps_its_level_at_the_margin():
    rng, said = np.random.default_rng(0), 0
    for _ in range(1_000):
        d = rng.choice([-1.0, 0.0, 1.0], 100, p=[0.2, 0.7, 0.1])  # the mean is -0.1
        said += tost(d, 0.1, bound=1.0).preserved
    assert said <= stats.binom.ppf(0.999, 1_000, 0.05)
    assert said > 10


def test_cliffs_delta_by_hand():
    assert cliffs_delta(np.array([1.0, 2.0]), np.array([1.0, 0.0, 5.0])) == (1 - 1 + 2 - 1) / 6
    assert cliffs_delta(np.ones(3), np.ones(2)) == 0
    assert cliffs_delta(np.array([np.inf]), np.array([-np.inf])) == 1


@settings(max_examples=40)
@given(st.integers(0, 999))
def test_cliffs_delta_and_spearman_by_their_formulas(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, (2, rng.integers(2, 13))) / 5
    some = rng.integers(1, len(a) + 1)
    pairs = np.sign(a[:some, None] - b)
    np.testing.assert_allclose(cliffs_delta(a[:some], b), pairs.mean(), atol=1e-12)
    if np.ptp(a) and np.ptp(b):
        ranks = [
            np.sum(x < x[:, None], axis=1) + np.sum(x == x[:, None], axis=1) / 2 for x in (a, b)
        ]
        np.testing.assert_allclose(spearman(a, b), np.corrcoef(*ranks)[0, 1], atol=1e-12)


def test_spearman_corners():
    for x, y in ((np.ones(4), np.arange(4.0)), (np.arange(4.0), np.ones(4))):
        assert np.isnan(spearman(x, y))
    assert np.isnan(spearman(np.ones(1), np.ones(1)))
    assert np.isnan(spearman(np.zeros(0), np.zeros(0)))
    np.testing.assert_allclose(spearman(np.arange(5.0), np.exp(-np.arange(5.0))), -1)


BAD = np.array([1.0, np.nan, -np.inf])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sign_flip(BAD, seed=0), "difference holds 2 of 3 values"),
        (lambda: sign_flip(np.zeros(0), seed=0), "difference has no row"),
        (lambda: sign_flip(np.ones(3), seed=0, flips=0), "flips=0"),
        (lambda: sign_flip(np.ones(3), seed=0, exact_up_to=30), "exact_up_to=30"),
        (lambda: bootstrap_interval(BAD, seed=0), "value holds 2"),
        (lambda: bootstrap_interval(np.zeros((0, 2)), seed=0), "value has no row"),
        (lambda: bootstrap_interval(np.ones(2), seed=0, confidence=1.0), "confidence=1.0"),
        (lambda: empirical_p(np.array(1.0), np.ones(3), side="up"), "side='up' is none of"),
        (lambda: empirical_p(np.array(1.0), np.zeros(0)), "random has no row"),
        (lambda: empirical_p(np.array(np.nan), np.ones(3)), "observed holds 1 of 1"),
        (lambda: holm(np.array([0.1, np.nan])), "must be from 0 to 1"),
        (lambda: holm(np.array([0.1, 1.1])), "must be from 0 to 1"),
        (lambda: tost(np.ones(3), 0.0), "margin=0.0"),
        (lambda: tost(np.ones(3), 0.1, alpha=0.5), "alpha=0.5"),
        (lambda: tost(np.ones(3), 0.1, bound=0.5), "bound=0.5"),
        (lambda: tost(BAD, 0.1), "difference holds 2"),
        (lambda: cliffs_delta(np.zeros(0), np.ones(1)), "a holds nothing"),
        (lambda: cliffs_delta(np.ones(1), BAD), "b holds nothing, or NaN"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
