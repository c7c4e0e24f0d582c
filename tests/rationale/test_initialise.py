"""Where the gate starts: planted clusters, counted words."""

import numpy as np
import pytest

from moe_jax.rationale.initialise import spherical_kmeans, word_evidence


def _planted(num=4, each=30, d=8, seed=0):
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(d, d)))[0][:num]
    owner = np.repeat(np.arange(num), each)
    length = rng.uniform(0.5, 3, size=(len(owner), 1))
    states = (directions[owner] + 0.05 * rng.normal(size=(len(owner), d))) * length
    order = rng.permutation(len(owner))
    return states[order].astype(np.float32), owner[order], directions


def test_kmeans_finds_planted_directions():
    states, owner, directions = _planted()
    centres = spherical_kmeans(states, 4, seed=0)
    nearest = (states @ centres.T).argmax(axis=1)
    assert len(set(zip(owner, nearest, strict=True))) == 4  # one centre for each cluster
    assert ((directions @ centres.T).max(axis=1) > 0.99).all()


@pytest.mark.parametrize("num_factors", [1, 3, 7])
def test_centres_have_length_one(num_factors):
    centres = spherical_kmeans(_planted()[0], num_factors, seed=1, restarts=2)
    assert centres.shape == (num_factors, 8)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)


def test_same_seed_same_centres():
    states = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    one = spherical_kmeans(states, 5, seed=3, restarts=1)
    np.testing.assert_array_equal(one, spherical_kmeans(states, 5, seed=3, restarts=1))
    assert not np.array_equal(one, spherical_kmeans(states, 5, seed=4, restarts=1))


def test_more_restarts_are_never_worse():
    states = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    x = states / np.linalg.norm(states, axis=1, keepdims=True)

    def served(restarts):
        centres = spherical_kmeans(states, 6, seed=5, restarts=restarts)
        return (x @ centres.T).max(axis=1).sum(dtype=np.float64)

    assert served(5) >= served(1) - 1e-4


def test_one_centre_is_the_mean_direction():
    states, *_ = _planted(num=2)
    x = states / np.linalg.norm(states, axis=1, keepdims=True)
    mean = x.mean(axis=0, dtype=np.float64)
    centres = spherical_kmeans(states, 1, seed=0)
    np.testing.assert_allclose(centres[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_fewer_states_than_factors_give_finite_centres():
    states = np.array([[1, 0, 0], [1, 0, 0], [0, 2, 0]], np.float32)
    centres = spherical_kmeans(states, 4, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    assert ((centres @ np.eye(3)[:2].T).max(axis=0) > 0.999).all()


def test_word_evidence_is_the_smoothed_log_ratio():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, 40)
    probs = rng.dirichlet(np.ones(3), 40).astype(np.float32)
    got = word_evidence(ids, probs, 8)
    assert got.shape == (8, 3)
    assert got.dtype == np.float32
    prior = [float(np.mean(probs[:, k], dtype=np.float64)) for k in range(3)]
    for v in range(8):
        seen = [t for t in range(40) if ids[t] == v]
        for k in range(3):
            mass = sum(float(probs[t, k]) for t in seen)
            posterior = (mass + 2 * prior[k]) / (len(seen) + 2)
            want = np.log(posterior) - np.log(prior[k])
            np.testing.assert_allclose(got[v, k], want, atol=1e-5)


def test_a_word_never_seen_says_nothing():
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    got = word_evidence(np.array([0, 2]), probs, 4)
    np.testing.assert_array_equal(got[[1, 3]], 0)
    assert got[0, 0] > 0 > got[0, 1]


def test_a_factor_without_tokens_has_finite_evidence():
    probs = np.array([[1, 0], [1, 0]], np.float32)
    assert np.isfinite(word_evidence(np.array([0, 1]), probs, 3)).all()
