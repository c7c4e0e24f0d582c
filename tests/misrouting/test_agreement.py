"""Agreement of experts: all permutations, a planted agreement, and none."""

import itertools

import numpy as np
import pytest
from scipy import stats

from moe_jax.misrouting.agreement import expert_agreement, usage_strata

X = np.array([0.1, np.nan])


def test_strata_by_hand():
    layer = np.array([0, 0, 0, 0, 3, 3])
    use = np.array([0.1, 0.4, 0.2, 0.3, 0.9, 0.9])
    got = usage_strata(layer, use, bins=2)
    assert got.tolist() == [0, 1, 0, 1, 2, 2]
    assert len(set(usage_strata(layer, use, bins=1))) == 2
    # Quantiles are of the layer: the scale of another has no effect.
    low = usage_strata(np.repeat([0, 1], 4), np.array([1, 2, 3, 4, 2.5, 2.6, 2.7, 9]), bins=2)
    assert low.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    ten = usage_strata(np.zeros(100, int), np.random.default_rng(0).random(100))
    assert np.bincount(ten).tolist() == [10] * 10


@pytest.mark.parametrize("stratum", [np.zeros(6, int), np.array([5, 5, 2, 2, 2, 7])])
def test_agreement_against_all_permutations(stratum):
    rng = np.random.default_rng(1)
    a = rng.normal(size=6).round(1)
    b = (a + rng.normal(size=6)).round(1)
    orders = [
        list(p) for p in itertools.permutations(range(6)) if (stratum[list(p)] == stratum).all()
    ]
    got = expert_agreement(a, b, stratum, seed=0, permutations=20_000)
    np.testing.assert_allclose(got.spearman, stats.spearmanr(a, b).statistic)
    shares = a / np.abs(a).sum(), b / np.abs(b).sum()
    norms = [np.linalg.norm(x) for x in shares]
    np.testing.assert_allclose(got.cosine, shares[0] @ shares[1] / norms[0] / norms[1])
    rank = np.mean([stats.spearmanr(a, b[o]).statistic >= got.spearman - 1e-9 for o in orders])
    cosine = np.mean([a @ b[o] >= a @ b - 1e-9 for o in orders])
    for p, want in ((got.p_spearman, rank), (got.p_cosine, cosine)):
        assert abs(p - want) < 4 * np.sqrt(want * (1 - want) / 20_000) + 1e-4
    assert got.free == (6 if stratum[0] == 0 else 5)


def test_agreement_of_the_planted_and_of_none():
    rng, stratum = np.random.default_rng(2), np.repeat([0, 1, 2], 10)
    a = rng.exponential(size=30)
    planted = expert_agreement(a, a * 2 + 0.01 * rng.normal(size=30), stratum, seed=0)
    assert planted.p_spearman == planted.p_cosine == 1e-4
    # What is explained by the strata alone isn't agreement of experts.
    level = stratum * 5.0
    apart = expert_agreement(level + a, level + rng.exponential(size=30), stratum, seed=0)
    assert apart.spearman > 0.7
    assert apart.p_spearman > 0.01
    hits = sum(
        expert_agreement(*rng.normal(size=(2, 30)), stratum, seed=s, permutations=199).p_spearman
        <= 0.05
        for s in range(200)
    )
    low, high = stats.binom.ppf([0.001, 0.999], 200, 0.05)
    assert low <= hits <= high


def test_agreement_corners():
    a = np.arange(4.0)
    single = expert_agreement(a, a, np.arange(4), seed=0, permutations=99)
    assert (single.p_spearman, single.p_cosine, single.free) == (1, 1, 0)
    flat = expert_agreement(a, np.ones(4), np.zeros(4, int), seed=0, permutations=99)
    assert np.isnan([flat.spearman, flat.p_spearman]).all()
    assert flat.p_cosine == 1
    empty = expert_agreement(a, np.zeros(4), np.zeros(4, int), seed=0, permutations=99)
    assert np.isnan(empty[:4]).all()
    nobody = expert_agreement(a[:0], a[:0], np.zeros(0, int), seed=0, permutations=9)
    assert np.isnan(nobody[:4]).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: usage_strata(np.zeros(2, int), np.zeros(2), bins=0), "bins=0"),
        (lambda: expert_agreement(X, np.ones(2), np.zeros(2, int), seed=0), "finite effects"),
        (
            lambda: expert_agreement(
                np.ones(2), np.ones(2), np.zeros(2, int), seed=0, permutations=0
            ),
            "permutations=0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
