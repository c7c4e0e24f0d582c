"""Diagnosticity: by hand, and what few pairs prove."""

import numpy as np
import pytest
from scipy import stats

from moe_jax.misrouting.diagnosticity import Diagnosticity, diagnosticity, tells_apart

INF = np.inf
X = np.array([0.1, np.nan])


def test_diagnosticity_by_hand():
    f = np.array([1.0, 2.0, 3.0, 3.0, INF])
    u = np.array([0.0, 2.0, 4.0, 1.0, 5.0])
    got = diagnosticity(f, u, seed=0)
    np.testing.assert_allclose(got.value, (1 + 0.5 + 0 + 1 + 1) / 5)
    np.testing.assert_allclose(got.p, stats.binomtest(1, 4).pvalue)
    assert got.low <= got.value <= got.high
    swapped = diagnosticity(u, f, seed=0)
    np.testing.assert_allclose([swapped.low, swapped.high], [1 - got.high, 1 - got.low])


def test_what_tells_apart():
    rng = np.random.default_rng(0)
    f = rng.normal(size=40)
    assert tells_apart(diagnosticity(f + 2, rng.normal(size=40), seed=0))
    assert tells_apart(diagnosticity(f - 2, rng.normal(size=40), seed=0))
    assert not tells_apart(diagnosticity(f, rng.normal(size=40), seed=0))
    assert not tells_apart(diagnosticity(f, f, seed=0))
    # All pairs one way: the interval is [1, 1], yet five pairs prove nothing at 5%, and six do.
    for n, want in ((1, False), (2, False), (5, False), (6, True)):
        assert tells_apart(diagnosticity(np.ones(n), np.zeros(n), seed=0)) == want
    assert np.isnan(diagnosticity(np.ones(1), np.zeros(1), seed=0).low)
    assert not tells_apart(Diagnosticity(0.7, 0.5, 0.9, 0.01, 0.05))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: diagnosticity(X, np.ones(2), seed=0), "without NaN"),
        (lambda: diagnosticity(X[:0], X[:0], seed=0), "at least one pair"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
