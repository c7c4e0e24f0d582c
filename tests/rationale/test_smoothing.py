"""What the gate takes from neighbours, against loops and enumeration in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.rationale import smoothing


def _logits(b, s, e, seed=0):
    return np.random.default_rng(seed).normal(size=(b, s, e)).astype(np.float32) * 2


def _where(lengths, s):
    return np.arange(s)[None] < np.array(lengths)[:, None]


def _transition(e, stay):
    if e == 1:
        return np.ones((1, 1))
    return np.where(np.eye(e, dtype=bool), stay, (1 - stay) / (e - 1))


def _markov(logits, where, stay):
    return smoothing.markov(jnp.asarray(logits), jnp.asarray(where), jnp.asarray(stay))


def _gaussian(logits, where, width):
    return smoothing.gaussian(jnp.asarray(logits), jnp.asarray(where), width)


def _forward_backward(evidence, stay):
    """[s e] posterior of one chain, in probabilities."""
    s, e = evidence.shape
    move = _transition(e, stay)
    ahead, behind = np.zeros((s, e)), np.zeros((s, e))
    ahead[0] = evidence[0] / e
    for i in range(1, s):
        for k in range(e):
            ahead[i, k] = evidence[i, k] * sum(ahead[i - 1, j] * move[j, k] for j in range(e))
    behind[-1] = 1
    for i in range(s - 2, -1, -1):
        for k in range(e):
            behind[i, k] = sum(move[k, j] * evidence[i + 1, j] * behind[i + 1, j] for j in range(e))
    joint = ahead * behind
    return joint / joint.sum(axis=1, keepdims=True)


def _enumerated(evidence, stay):
    """The same from the probability of every sequence of factors."""
    s, e = evidence.shape
    move, total = _transition(e, stay), np.zeros((s, e))
    for path in itertools.product(range(e), repeat=s):
        weight = 1 / e
        for i, k in enumerate(path):
            weight *= evidence[i, k] * (move[path[i - 1], k] if i else 1)
        for i, k in enumerate(path):
            total[i, k] += weight
    return total / total.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("stay", [0.5, 0.94])
def test_markov_is_the_forward_backward_posterior(stay):
    logits, where = _logits(3, 9, 4), _where([9, 5, 1], 9)
    got = np.exp(np.asarray(_markov(logits, where, stay)))
    for row, length in enumerate([9, 5, 1]):
        want = _forward_backward(np.exp(logits[row, :length].astype(np.float64)), stay)
        np.testing.assert_allclose(got[row, :length], want, atol=2e-6)


@pytest.mark.parametrize("e", [2, 3])
def test_markov_is_the_sum_over_all_paths(e):
    logits, stay = _logits(1, 5, e, seed=3), 0.8
    got = _markov(logits, np.ones((1, 5), bool), stay)
    want = _enumerated(np.exp(logits[0].astype(np.float64)), stay)
    np.testing.assert_allclose(np.exp(np.asarray(got)[0]), want, atol=2e-6)


def test_markov_that_forgets_is_a_softmax():
    logits = _logits(2, 6, 4)
    got = _markov(logits, np.ones((2, 6), bool), 0.25)
    np.testing.assert_allclose(got, jax.nn.log_softmax(logits), atol=2e-5)


def test_markov_lets_a_doubtful_token_follow_its_neighbours():
    logits = np.array([[[4, 0], [-0.2, 0], [4, 0]]], np.float32)
    got = _markov(logits, np.ones((1, 3), bool), 0.9)
    assert (np.asarray(got).argmax(axis=-1) == 0).all()


def test_markov_of_one_factor_is_certain():
    got = _markov(_logits(2, 4, 1), _where([4, 2], 4), 0.9)
    np.testing.assert_array_equal(got, np.zeros((2, 4, 1), np.float32))


def test_markov_stays_finite_on_long_and_sharp_chains():
    logits = _logits(1, 400, 3) * 50

    def total(x, stay):
        return jnp.sum(jnp.exp(smoothing.markov(x, jnp.ones((1, 400), bool), stay)) ** 2)

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(jnp.asarray(logits), jnp.asarray(0.99))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((value, grads)))


def test_markov_gradient_of_stay_is_the_difference_quotient():
    logits = _logits(1, 6, 3)

    def first(stay):
        return _markov(logits, np.ones((1, 6), bool), stay)[0, 2, 1]

    def exact(stay):
        return np.log(_forward_backward(np.exp(logits[0].astype(np.float64)), stay)[2, 1])

    want = (exact(0.7 + 1e-5) - exact(0.7 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(first)(jnp.asarray(0.7)), want, rtol=1e-3)


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_gaussian_is_the_weighted_mean(width):
    logits, lengths = _logits(2, 7, 3), [7, 4]
    got = np.asarray(_gaussian(logits, _where(lengths, 7), width))
    for b, length in enumerate(lengths):
        for i in range(length):
            weights = [np.exp(-((i - j) ** 2) / (2 * width**2)) for j in range(length)]
            want = sum(w * logits[b, j] for j, w in enumerate(weights)) / sum(weights)
            np.testing.assert_allclose(got[b, i], want, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "markov"])
def test_padding_is_invisible(name):
    def run(logits, where):
        if name == "gaussian":
            return np.asarray(_gaussian(logits, where, 1.5))
        return np.asarray(_markov(logits, where, 0.9))

    logits = _logits(1, 5, 3)
    plain = run(logits, np.ones((1, 5), bool))
    padded = np.full((1, 9, 3), np.nan, np.float32)
    padded[:, :5] = logits
    np.testing.assert_allclose(run(padded, _where([5], 9))[:, :5], plain, atol=1e-6)
