"""Spherical k-means: planted clusters, corners."""

import numpy as np
import pytest

from moe_jax.data import spherical_kmeans


def _planted(num=4, each=30, d=8, seed=0):
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(d, d)))[0][:num]
    owner = np.repeat(np.arange(num), each)
    length = rng.uniform(0.5, 3, size=(len(owner), 1))
    points = (directions[owner] + 0.05 * rng.normal(size=(len(owner), d))) * length
    order = rng.permutation(len(owner))
    return points[order].astype(np.float32), owner[order], directions


def test_kmeans_finds_planted_directions():
    points, owner, directions = _planted()
    centres = spherical_kmeans(points, 4, seed=0)
    nearest = (points @ centres.T).argmax(axis=1)
    assert len(set(zip(owner, nearest, strict=True))) == 4  # one centre for each cluster
    assert ((directions @ centres.T).max(axis=1) > 0.99).all()


@pytest.mark.parametrize("num_clusters", [1, 3, 7])
def test_centres_have_length_one(num_clusters):
    centres = spherical_kmeans(_planted()[0], num_clusters, seed=1, restarts=2)
    assert centres.shape == (num_clusters, 8)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)


def test_same_seed_same_centres():
    points = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    one = spherical_kmeans(points, 5, seed=3, restarts=1)
    np.testing.assert_array_equal(one, spherical_kmeans(points, 5, seed=3, restarts=1))
    assert not np.array_equal(one, spherical_kmeans(points, 5, seed=4, restarts=1))


def test_more_restarts_are_never_worse():
    points = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    x = points / np.linalg.norm(points, axis=1, keepdims=True)

    def served(restarts):
        centres = spherical_kmeans(points, 6, seed=5, restarts=restarts)
        return (x @ centres.T).max(axis=1).sum(dtype=np.float64)

    assert served(5) >= served(1) - 1e-4


def test_one_centre_is_the_mean_direction():
    points, *_ = _planted(num=2)
    x = points / np.linalg.norm(points, axis=1, keepdims=True)
    mean = x.mean(axis=0, dtype=np.float64)
    centres = spherical_kmeans(points, 1, seed=0)
    np.testing.assert_allclose(centres[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_fewer_points_than_clusters_give_finite_centres():
    points = np.array([[1, 0, 0], [1, 0, 0], [0, 2, 0]], np.float32)
    centres = spherical_kmeans(points, 4, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    assert ((centres @ np.eye(3)[:2].T).max(axis=0) > 0.999).all()


def test_the_rounds_of_a_subset_end_on_all_points():
    rng = np.random.default_rng(2)
    owner = rng.integers(0, 3, 6100)
    points = (np.eye(3)[owner] + 0.01 * rng.normal(size=(6100, 3))).astype(np.float32)
    centres = spherical_kmeans(points, 3, seed=0, restarts=2)
    x = points / np.linalg.norm(points, axis=1, keepdims=True)
    means = np.stack([x[owner == k].mean(axis=0, dtype=np.float64) for k in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(centres[(means @ centres.T).argmax(axis=1)], means, atol=1e-5)


@pytest.mark.parametrize(
    "points, changes, message",
    [
        (np.zeros((0, 2)), {}, "at least one point"),
        (np.array([[1.0, np.nan]]), {}, "only finite numbers"),
        (np.ones((2, 2)), {"num_clusters": 0}, "num_clusters=0 must be at least 1"),
        (np.ones((2, 2)), {"restarts": 0}, "restarts=0 must be at least 1"),
        (np.ones((2, 2)), {"iterations": -1}, "iterations=-1 must be at least 1"),
    ],
)
def test_bad_input(points, changes, message):
    with pytest.raises(ValueError, match=message):
        spherical_kmeans(points, **{"num_clusters": 1, "seed": 0, **changes})
