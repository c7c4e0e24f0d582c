"""Trend scores and their tests: by enumeration, against SciPy, and their error rates."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from moe_jax.misrouting import bootstrap, jonckheere, trend
from moe_jax.misrouting.trend import coefficients, halves, level_weights

LEVEL = np.repeat([0, 1, 2], [4, 3, 5])


def rates(n, m, seed=0, ties=False):
    values = np.random.default_rng(seed).random((n, m))
    return np.round(values, 1) if ties else values


def test_weights_by_hand():
    np.testing.assert_allclose(level_weights(np.array([0, 1])), [-1, 1])
    np.testing.assert_allclose(level_weights(LEVEL), [-1, 0, 1])
    np.testing.assert_allclose(level_weights(np.arange(4)), [-0.75, -0.25, 0.25, 0.75])


def test_the_score_is_a_weighted_sum_of_level_means():
    u, w = rates(12, 6), np.array([-0.5, -0.5, 1.0])
    means = np.stack([u[d == LEVEL].mean(0) for d in range(3)])
    got = trend(u, LEVEL, weights=w, seed=0, permutations=9)
    np.testing.assert_allclose(got.score, w @ means)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("stratum", [None, np.array([0, 0, 1, 0, 1, 1, 0])])
def test_against_all_permutations(ties, stratum):
    """The moments over all of them give z; p within what drawing 20,000 allows."""
    level, u = np.array([0, 0, 1, 1, 1, 2, 2]), rates(7, 5, ties=ties)
    u[:, 3] = 0.25
    c = coefficients(level, level_weights(level))
    groups = np.zeros(7, int) if stratum is None else stratum
    orders = [p for p in itertools.permutations(range(7)) if (groups[list(p)] == groups).all()]
    scores = np.array([c[list(order)] @ u for order in orders])
    seen, mean, sd = c @ u, scores.mean(0), scores.std(0)
    got = trend(u, level, stratum=stratum, seed=1, permutations=20_000)
    varies = np.arange(5) != 3
    np.testing.assert_allclose(
        got.z[varies], (seen - mean)[varies] / sd[varies], rtol=1e-6, atol=1e-9
    )
    assert got.z[3] == 0
    assert got.p[3] == 1
    z = np.divide(scores - mean, sd, out=np.zeros_like(scores), where=sd > 1e-12)
    exact = (np.abs(z) >= np.abs(got.z) - 1e-6).mean(0)
    largest = np.abs(z).max(1)
    family = (largest[:, None] >= np.abs(got.z) - 1e-6).mean(0)
    for name, want in (("p", exact), ("p_family", family)):
        error = np.abs(getattr(got, name) - want)
        assert (error < 4 * np.sqrt(want * (1 - want) / 20_000) + 1e-4).all(), name
    np.testing.assert_allclose(got.q, stats.false_discovery_control(got.p))


def test_the_largest_p_is_reached_by_the_smallest_effect():
    got = trend(rates(30, 40), np.arange(30) % 3, seed=0, permutations=999)
    assert (got.p_family >= got.p).all()
    assert (got.q >= got.p).all()
    order = np.argsort(-np.abs(got.z))
    assert (np.diff(got.p_family[order]) >= 0).all()


def test_error_rates_under_the_null():
    """200 studies without any effect, prompts alike within themselves, at the level of 5%."""
    rng, level = np.random.default_rng(3), np.repeat([0, 1, 2], 10)
    alone = family = 0
    for study in range(200):
        # Beta-binomial usage: tokens of a prompt are correlated, as real ones are.
        u = rng.binomial(60, rng.beta(2, 18, (30, 20))) / 60
        got = trend(u, level, seed=study, permutations=299)
        alone += int(got.p[0] <= 0.05)
        family += int(got.p_family.min() <= 0.05)
    low, high = stats.binom.ppf([0.001, 0.999], 200, 0.05)
    assert low <= alone <= high
    assert low <= family <= high


def test_a_planted_expert_is_found():
    rng, level = np.random.default_rng(4), np.repeat([0, 1, 2], 15)
    u = rng.binomial(60, rng.beta(2, 18, (45, 50))) / 60
    u[:, 17] += 0.08 * level
    got = trend(u, level, seed=0, permutations=1_999)
    assert np.argmax(np.abs(got.z)) == 17
    assert got.p_family[17] == 1 / 2_000
    assert (np.delete(got.p_family, 17) > 0.05).all()
    ranks = jonckheere(u, level)
    assert np.argmax(np.abs(ranks.z)) == 17
    drawn = bootstrap(u, level, seed=0, top=3)
    assert drawn.inclusion[17] > 0.99
    assert drawn.low[17] > 0


def test_strata_take_out_what_differs_between_them():
    """Usage that follows the length, and length that follows the level: no trend within a length."""
    rng = np.random.default_rng(5)
    stratum = np.repeat([0, 1], 40)
    level = (rng.random(80) < np.where(stratum == 1, 0.8, 0.2)).astype(int)
    u = stratum[:, None] * 0.3 + rng.normal(size=(80, 4)) * 0.05
    assert (trend(u, level, seed=0, permutations=999).p < 0.01).all()
    within = trend(u, level, stratum=stratum, seed=0, permutations=999)
    assert (within.p > 0.01).all()
    assert np.abs(jonckheere(u, level, stratum=stratum).z).max() < 3 < jonckheere(u, level).z.min()


@pytest.mark.parametrize("ties", [False, True])
def test_jonckheere_against_pairs_and_kendall(ties):
    u = rates(12, 4, ties=ties)
    got = jonckheere(u, LEVEL)
    for m in range(4):
        j = sum(
            (u[a, m] < u[b, m]) + 0.5 * (u[a, m] == u[b, m])
            for a, b in itertools.product(range(12), repeat=2)
            if LEVEL[a] < LEVEL[b]
        )
        mean = (144 - 16 - 9 - 25) / 4
        assert got.somers_d[m] == pytest.approx((j - mean) / mean)
        assert got.p[m] == pytest.approx(
            stats.kendalltau(LEVEL, u[:, m], method="asymptotic").pvalue
        )


def test_variance_of_jonckheere_against_all_orders():
    level, u = np.array([0, 0, 1, 1, 1, 2, 2]), rates(7, 1, seed=2, ties=True)
    got = jonckheere(u, level)
    mean = (49 - 4 - 9 - 4) / 4
    labels = sorted(set(itertools.permutations(level.tolist())))
    assert len(labels) == 210
    all_j = [jonckheere(u, np.array(order)).somers_d[0] * mean for order in labels]
    assert np.mean(all_j) == pytest.approx(0, abs=1e-9)
    assert got.z[0] == pytest.approx(got.somers_d[0] * mean / np.std(all_j))


def test_usage_that_never_varies_has_no_trend():
    got = jonckheere(np.ones((12, 2)), LEVEL)
    assert (got.z == 0).all()
    assert (got.p == 1).all()
    assert (got.somers_d == 0).all()


def test_intervals_against_a_loop():
    u, w = rates(12, 3), np.array([-1.0, 0.0, 1.0])
    got = bootstrap(u, LEVEL, seed=0, top=1, weights=w, samples=20_000)
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(20_000):
        means = [
            u[rng.choice(np.flatnonzero(d == LEVEL), (d == LEVEL).sum())].mean(0) for d in (0, 2)
        ]
        scores.append(means[1] - means[0])
    low, high = np.quantile(scores, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(got.low, low, atol=0.015)
    np.testing.assert_allclose(got.high, high, atol=0.015)
    assert got.inclusion.sum() == pytest.approx(1)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 9))
@settings(max_examples=50)
def test_halves(levels, seed):
    level = np.array(levels)
    stratum = np.arange(len(level)) % 2
    first = halves(level, seed=seed, stratum=stratum)
    for s, d in itertools.product((0, 1), (0, 1, 2)):
        here = (level == d) & (stratum == s)
        assert abs(int(first[here].sum()) - int((~first)[here].sum())) <= 1
    assert (halves(level, seed=seed, stratum=stratum) == first).all()


@pytest.mark.parametrize(
    "level, weights, message",
    [
        (np.zeros(5, int), None, "one level"),
        (np.array([0, 0, 2, 2, 2]), None, "level 1 has no prompt"),
        (np.array([0, 0, 1, 1, 1]), np.array([1.0, 1.0]), "add up to 2"),
        (np.array([0, 0, 1, 1, 1]), np.array([1.0, 0.0, -1.0]), "3 weights for 2 levels"),
    ],
)
def test_bad_levels(level, weights, message):
    with pytest.raises(ValueError, match=message):
        trend(rates(5, 2), level, weights=weights, seed=0)


def test_no_permutations():
    with pytest.raises(ValueError, match="permutations=0"):
        trend(rates(12, 2), LEVEL, seed=0, permutations=0)
