"""Matched random sets and the opposite of a set: counted, in groups found in another way."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from moe_jax.misrouting import least_like, matched_controls


def decile(usage):
    """By counting those used less: another way than ranks."""
    return np.array([10 * np.sum(usage < u) // len(usage) for u in usage])


@given(st.integers(0, 999), st.sampled_from([20, 50]))
@settings(max_examples=20, deadline=None)
def test_controls_match_layer_count_and_decile(seed, number):
    rng = np.random.default_rng(seed)
    usage, target = rng.random((4, 64)), np.zeros((4, 64), bool)
    for layer in (0, 2, 3):
        target[layer, rng.choice(64, 3, replace=False)] = True
    controls = matched_controls(target, usage, seed=seed, number=number)
    assert controls.shape == (number, 4, 64)
    assert not (controls & target).any()
    for layer in range(4):
        own = np.sort(decile(usage[layer])[target[layer]])
        for one in controls:
            np.testing.assert_array_equal(np.sort(decile(usage[layer])[one[layer]]), own)
    assert len({one.tobytes() for one in controls}) == number
    again = matched_controls(target, usage, seed=seed, number=number)
    np.testing.assert_array_equal(controls, again)


@pytest.mark.parametrize("members, possible", [(25, 24), (7, 6), (2, 1)])
def test_controls_are_distinct_where_possible(members, possible):
    """One group of `members` with one target: each other member is drawn, as evenly as can be."""
    usage = np.zeros((1, members))
    controls = matched_controls(np.arange(members)[None] == 3 % members, usage, seed=0)
    times = controls.sum(axis=(0, 1))
    others = np.delete(times, 3 % members)
    assert times[3 % members] == 0
    assert np.count_nonzero(others) == min(possible, 20)
    assert others.max() - others.min() <= 1


def test_controls_are_uniform():
    usage = np.arange(10.0)[None].repeat(20, axis=1)
    target = np.arange(200)[None] == 105
    counts = np.zeros(200)
    for seed in range(100):
        counts += matched_controls(target, usage, seed=seed, bins=2).sum(axis=(0, 1))
    assert not counts[:100].any()
    assert counts[105] == 0
    pool = np.delete(counts[100:], 5)
    assert stats.chisquare(pool).pvalue > 1e-3


def test_least_like():
    score = np.array([[0.9, -0.5, 0.8, 0.1, -0.7], [0.0, 0.0, 1.0, 0.0, 0.0]])
    target = score > 0.7
    got = least_like(target, score)
    assert got.tolist() == [[False, True, False, False, True], [True] + [False] * 4]
    with pytest.raises(ValueError, match="layer 0 has 2 experts outside the target, needed: 3"):
        least_like(np.array([[True] * 3 + [False] * 2]), score[:1])


FEW, USED = np.arange(8)[None] == 0, np.arange(8.0)[None]


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: matched_controls(FEW, USED, seed=0),
            r"layer 0: 0 experts .* used as much as 1",
        ),
        (
            lambda: matched_controls(FEW, USED, seed=0, number=19),
            "number=19 must be at least 20",
        ),
        (lambda: matched_controls(FEW, USED, seed=0, bins=0), "bins=0 must be at least 1"),
        (lambda: matched_controls(FEW & False, USED, seed=0), "target is empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
