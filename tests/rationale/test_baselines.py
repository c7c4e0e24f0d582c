"""The baselines on states whose groups are known, their determinism and their corners."""

import numpy as np
import pytest

from moe_jax.rationale import baselines, metrics


def blobs(rng, size, centres, noise):
    """Tokens around given directions, with lengths that say nothing."""
    gold = rng.integers(0, len(centres), size)
    states = centres[gold] + noise * rng.normal(size=(size, centres.shape[1]))
    return (states * rng.uniform(0.2, 5, (size, 1))).astype(np.float32), gold


@pytest.fixture(scope="module")
def easy():
    """Training and test tokens of four well separated directions."""
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:4]
    return [blobs(rng, size, centres, 0.08) for size in (600, 200)]


@pytest.mark.parametrize("method", [baselines.k_means, baselines.nmf])
class TestFitted:
    def test_finds_directions_whatever_their_length(self, easy, method):
        (train, gold), (test, test_gold) = easy
        groups = method(train, test, 4, seed=0)
        size = {"num_factors": 4, "num_labels": 4}
        mapping = metrics.hungarian_map(metrics.contingency(groups.train, gold, **size))
        assert metrics.score_labels(mapping[groups.test], test_gold, 4).macro_f1 > 0.98

    def test_deterministic_in_seed_and_does_not_look_at_test(self, easy, method):
        (train, _), (test, _) = easy
        first = method(train, test, 5, seed=3)
        again = method(train, test[:7], 5, seed=3)
        np.testing.assert_array_equal(first.train, again.train)
        np.testing.assert_array_equal(first.test[:7], again.test)

    def test_more_tokens_than_are_fitted_on(self, easy, method, monkeypatch):
        (train, _), (test, _) = easy
        monkeypatch.setattr(baselines, "KMEANS_TOKENS", 50)
        monkeypatch.setattr(baselines, "NMF_TOKENS", 50)
        monkeypatch.setattr(baselines, "_CHUNK", 64)
        groups = method(train, test, 4, seed=1)
        assert groups.train.shape == (600,)
        assert groups.test.shape == (200,)
        monkeypatch.setattr(baselines, "_CHUNK", 10_000)
        np.testing.assert_array_equal(groups.train, method(train, test, 4, seed=1).train)

    @pytest.mark.parametrize("size, num_groups", [(1, 3), (2, 5), (6, 1)])
    def test_fewer_tokens_than_groups(self, method, size, num_groups):
        states = np.random.default_rng(0).normal(size=(size, 3)).astype(np.float32)
        groups = method(states, states[:0], num_groups, seed=0)
        assert groups.train.shape == (size,)
        assert groups.test.shape == (0,)
        assert set(groups.train.tolist()) <= set(range(num_groups))

    def test_equal_and_zero_states(self, method):
        for states in (np.ones((20, 3), np.float32), np.zeros((20, 3), np.float32)):
            groups = method(states, states, 3, seed=0)
            assert len(set(groups.train.tolist())) == 1
            np.testing.assert_array_equal(groups.train, groups.test)

    @pytest.mark.parametrize(
        "train, test, num_groups, message",
        [
            (np.zeros((0, 2)), np.zeros((1, 2)), 2, "train_td has no tokens"),
            (np.ones((3, 2)), np.ones((1, 4)), 2, "train_td has width 2 but test_td has 4"),
            (np.full((3, 2), np.nan), np.ones((1, 2)), 2, "holds NaN or Inf"),
            (np.ones((3, 2)), np.full((1, 2), np.inf), 2, "holds NaN or Inf"),
            (np.ones((3, 2)), np.ones((1, 2)), 0, "num_groups=0 must be at least 1"),
        ],
    )
    def test_bad_input(self, method, train, test, num_groups, message):
        with pytest.raises(ValueError, match=message):
            method(train, test, num_groups, seed=0)


def test_k_means_assigns_to_the_nearest_centre(easy):
    (train, _), (test, _) = easy
    groups = baselines.k_means(train, test, 4, seed=0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    centres = np.stack([unit[0][groups.train == k].mean(axis=0) for k in range(4)])
    distance = ((unit[1][:, None] - centres[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(groups.test, distance.argmin(axis=1))


def test_majority():
    groups = baselines.majority(3, 2)
    assert groups.train.tolist() == [0, 0, 0]
    assert groups.test.tolist() == [0, 0]


def test_random_keeps_the_usage_and_knows_nothing():
    rng = np.random.default_rng(0)
    train, test = rng.choice(4, 4000, p=[0.5, 0.3, 0.2, 0]), rng.integers(0, 4, 1000)
    groups = baselines.usage_matched_random(train, test, seed=2)
    np.testing.assert_array_equal(np.bincount(groups.train), np.bincount(train))
    np.testing.assert_array_equal(np.bincount(groups.test), np.bincount(test))
    counts = metrics.contingency(groups.train, train, num_factors=4, num_labels=4)
    assert abs(metrics.adjusted_mutual_information(counts)) < 0.01
    again = baselines.usage_matched_random(train, test, seed=2)
    np.testing.assert_array_equal(groups.train, again.train)
    assert (baselines.usage_matched_random(train, test, seed=3).train != groups.train).any()
