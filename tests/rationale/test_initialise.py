"""The start of the gate's weights of words: counted words."""

import numpy as np

from moe_jax.rationale.initialise import word_evidence


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
