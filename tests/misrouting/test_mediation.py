"""Mediation by routing: identities, planted ways, and the partial correlation by its formula."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from moe_jax.common import bootstrap_interval, bootstrap_weights
from moe_jax.misrouting.mediation import (
    EFFECTS,
    faithfulness_against_performance,
    pareto_front,
    partial_spearman,
    routing_mediation,
)


def planted(n, through, past, both, seed=0, noise=0.05):
    rng = np.random.default_rng(seed)
    y = 0.5 + rng.normal(0, 0.1, n)
    extra = rng.normal(0, noise, (3, n))
    return y, y + through + extra[0], y + past + extra[1], y + through + past + both + extra[2]


def test_effects_by_hand():
    y = [np.array(v) for v in ([0.8, 0.5], [0.6, 0.5], [0.7, 0.1], [0.2, 0.3])]
    got = routing_mediation(*y, seed=0)
    assert EFFECTS == ("nie", "nde", "int", "te")
    np.testing.assert_allclose(
        got.effect, [[-0.2, -0.1, -0.3, -0.6], [0, -0.4, 0.2, -0.2]], atol=1e-12
    )
    np.testing.assert_allclose(got.mean.mean, [-0.1, -0.25, -0.05, -0.4], atol=1e-12)


@given(st.integers(0, 999))
def test_the_parts_sum_to_the_total(seed):
    y = np.random.default_rng(seed).random((4, 5))
    got = routing_mediation(*y, seed=0, samples=50)
    np.testing.assert_allclose(got.effect[:, :3].sum(1), got.effect[:, 3], atol=1e-12)
    np.testing.assert_allclose(got.mean.mean[:3].sum(), got.mean.mean[3], atol=1e-12)


@pytest.mark.parametrize(
    "through, past, share", [(-0.2, 0.0, 1), (0.0, -0.2, 0), (-0.1, -0.3, 0.25), (0.1, -0.3, -0.5)]
)
def test_planted_ways_are_found(through, past, share):
    got = routing_mediation(*planted(200, through, past, 0.0), seed=1)
    for j, want in enumerate((through, past, 0.0, through + past)):
        assert got.mean.low[j] - 0.01 <= want <= got.mean.high[j] + 0.01
    assert got.share.low - 0.02 <= share <= got.share.high + 0.02
    assert got.share.high - got.share.low < 0.3


def test_share_is_of_the_same_draws():
    y = planted(30, -0.2, -0.1, 0.05)
    got = routing_mediation(*y, seed=4, samples=400)
    drawn = bootstrap_weights(30, seed=4, samples=400) @ got.effect
    np.testing.assert_allclose(
        [got.share.low, got.share.high], np.quantile(drawn[:, 0] / drawn[:, 3], [0.025, 0.975])
    )
    np.testing.assert_allclose(got.share.mean, got.effect[:, 0].mean() / got.effect[:, 3].mean())
    alone = bootstrap_interval(got.effect[:, 1].copy(), seed=4, samples=400)
    np.testing.assert_allclose([got.mean.low[1], got.mean.high[1]], [alone.low, alone.high])


def test_no_share_without_a_total():
    # Two ways that cancel: both are seen, their share isn't.
    got = routing_mediation(*planted(100, 0.2, -0.2, 0.0, noise=0.1), seed=0)
    assert got.mean.low[3] < 0 < got.mean.high[3]
    assert got.mean.low[0] > 0
    assert np.isnan(got.share).all()
    y = np.full(8, 0.5)
    assert np.isnan(routing_mediation(y, y, y, y, seed=0).share).all()
    one = routing_mediation(*planted(1, -0.3, 0.0, 0.0), seed=0)
    assert np.isnan(one.mean.low).all()
    assert np.isnan(one.share).all()


@given(st.integers(0, 999), st.booleans())
def test_partial_correlation_is_the_formula(seed, ties):
    x, y, z = np.random.default_rng(seed).normal(size=(3, 15))
    y, x = y + z, x - 0.5 * z
    if ties:
        x, y, z = np.round(x), np.round(y), np.round(z)
    r = stats.spearmanr(np.stack([x, y, z], axis=1)).statistic
    want = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    np.testing.assert_allclose(partial_spearman(x, y, z[:, None]), want, atol=1e-9)


def test_partial_correlation_takes_out_two_covariates():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(400, 2))
    x, y = (z.sum(1) + 0.5 * rng.normal(size=400) for _ in range(2))
    assert stats.spearmanr(x, y).statistic > 0.8
    assert partial_spearman(x, y, z[:, :1]) > 0.5
    # Ranks of a sum aren't the sum of ranks: most is taken out, not all.
    assert abs(partial_spearman(x, y, z)) < 0.4
    ranks = [stats.rankdata(v) for v in (x, y, *z.T)]
    inverse = np.linalg.inv(np.corrcoef(ranks))
    want = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    np.testing.assert_allclose(partial_spearman(x, y, z), want, atol=1e-9)


def test_partial_correlation_corners():
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    want = stats.spearmanr(x, y).statistic
    np.testing.assert_allclose(partial_spearman(x, y, np.ones((9, 1))), want, atol=1e-12)
    np.testing.assert_allclose(partial_spearman(x, y, np.zeros((9, 0))), want, atol=1e-12)
    assert np.isnan(partial_spearman(x, y, np.exp(x)[:, None]))
    assert np.isnan(partial_spearman(np.ones(9), y, x[:, None]))
    assert np.isnan(partial_spearman(x[:3], y[:3], np.ones((3, 1))))
    assert np.isnan(partial_spearman(x[:1], y[:1], np.ones((1, 1))))
    big = np.random.default_rng(1).normal(size=3_000)
    assert np.isnan(partial_spearman(big, -big, big[:, None]))


def test_faithfulness_that_only_follows_the_margin():
    rng = np.random.default_rng(0)
    dose = np.tile([0.5, 1.0, 2.0], 60)
    moved = -dose + 0.3 * rng.normal(size=180)
    f = 0.2 * moved + 0.02 * rng.normal(size=180)
    same, prompt = rng.random(180) < 0.6, np.repeat(np.arange(60), 3)
    acc = np.where(same, 0.0, -1.0)
    got = faithfulness_against_performance(
        f, acc, same, dose, moved[:, None], seed=3, prompt=prompt
    )
    assert stats.spearmanr(f, dose).statistic < -0.7
    assert abs(got.partial) < 0.2
    np.testing.assert_allclose(got.partial, partial_spearman(f, dose, moved[:, None]))
    for part, rows, value in (
        (got.faithfulness, slice(None), f),
        (got.performance, slice(None), acc),
        (got.unchanged, same, f),
    ):
        want = bootstrap_interval(value[rows], seed=3, prompt=prompt[rows])
        np.testing.assert_allclose(part, want)
    assert got.rows_unchanged == same.sum()
    nobody = np.zeros(180, bool)
    changed = faithfulness_against_performance(f, acc, nobody, dose, moved[:, None], seed=3)
    assert np.isnan(changed.unchanged).all()
    assert changed.rows_unchanged == 0
    np.testing.assert_allclose(changed.faithfulness, bootstrap_interval(f, seed=3))


def test_front_by_hand():
    p = np.array([0.9, 0.5, 0.7, 0.5, 0.9, 0.1])
    f = np.array([0.1, 0.8, 0.5, 0.9, 0.1, 0.9])
    assert pareto_front(p, f).tolist() == [3, 2, 0, 4]
    assert pareto_front(p[:1], f[:1]).tolist() == [0]
    assert pareto_front(p[:0], f[:0]).tolist() == []
    assert pareto_front(np.ones(3), np.ones(3)).tolist() == [0, 1, 2]
    assert pareto_front(np.array([-np.inf, 0.0]), np.array([1.0, 0.0])).tolist() == [0, 1]


@given(st.integers(0, 999))
def test_front_against_its_definition(seed):
    p, f = np.random.default_rng(seed).integers(0, 5, (2, 12)) / 4
    want = {
        i
        for i in range(12)
        if not any(
            p[j] >= p[i] and f[j] >= f[i] and (p[j], f[j]) != (p[i], f[i]) for j in range(12)
        )
    }
    got = pareto_front(p, f)
    assert set(got.tolist()) == want
    assert len(got) == len(want)
    assert (np.diff(p[got]) >= 0).all()
    assert (np.diff(f[got]) <= 0).all()


Y = np.array([0.1, np.nan])


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: routing_mediation(np.ones(2), np.ones(2), Y, np.ones(2), seed=0),
            "y_01 must hold",
        ),
        (lambda: routing_mediation(*np.ones((4, 0)), seed=0), "y_00 must hold"),
        (lambda: partial_spearman(Y, np.ones(2), np.ones((2, 1))), "x holds values"),
        (lambda: partial_spearman(np.ones(2), np.ones(2), Y[:, None]), "given holds values"),
        (lambda: pareto_front(Y, np.ones(2)), "must not hold NaN"),
        (
            lambda: faithfulness_against_performance(
                np.ones(2), Y, np.ones(2, bool), np.ones(2), np.ones((2, 1)), seed=0
            ),
            "value holds 1 of 2",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
