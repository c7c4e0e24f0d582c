"""What the model must beat: four ways to put tokens into groups that know less than it does.

Each is fitted on the training tokens, without labels except for the majority, and gives one group
per token; maps from groups to labels are then learned as for the model. The same seed on the same
machine gives the same groups.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Tokens that are looked at when a baseline is fitted (drawn at random); all tokens are assigned.
KMEANS_TOKENS = 10_000
NMF_TOKENS = 10_000
_CHUNK = 8_192


class Groups(NamedTuple):
    """The group of each training and each test token."""

    train: Int[np.ndarray, " t"]
    test: Int[np.ndarray, " u"]


def majority(num_train: int, num_test: int) -> Groups:
    """Put every token into one group, which the maps then give the most frequent label."""
    return Groups(np.zeros(num_train, np.int64), np.zeros(num_test, np.int64))


def usage_matched_random(
    train: Int[np.ndarray, " t"], test: Int[np.ndarray, " u"], *, seed: int
) -> Groups:
    """Deal the model's own assignments out to the tokens at random: same usage, no knowledge.

    Args:
      train: [t] the model's factor of each training token.
      test: [u] the same for the test tokens.
      seed: seed of the two permutations.
    """
    rng = np.random.default_rng(seed)
    return Groups(rng.permutation(train), rng.permutation(test))


def _normalised(states_td: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "t d"]:
    """Rows of unit length in float32; zero rows stay zero."""
    states = states_td.astype(np.float32)
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    return states / np.maximum(norms, np.finfo(np.float32).tiny)


def _drawn(states_td: Float[np.ndarray, "t d"], most: int, seed: int) -> np.ndarray:
    """At most `most` rows, drawn without replacement, in their order."""
    if len(states_td) <= most:
        return states_td
    rows = np.random.default_rng(seed).choice(len(states_td), most, replace=False)
    return states_td[np.sort(rows)]


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """Keep fits repeatable, and quiet about fewer distinct points than groups.

    Threads add up their partial sums in the order in which they finish; with two of them the
    order can't change the sum.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=2), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _check(train: np.ndarray, test: np.ndarray, num_groups: int) -> None:
    """Raise ValueError where a fit would fail with a less clear message."""
    if num_groups < 1:
        raise ValueError(f"num_groups={num_groups} must be at least 1")
    if not len(train):
        raise ValueError("train_td has no tokens to fit on")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_td has width {train.shape[1]} but test_td has {test.shape[1]}")
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ValueError("train_td or test_td holds NaN or Inf")


def k_means(
    train_td: Float[np.ndarray, "t d"],
    test_td: Float[np.ndarray, "u width"],
    num_groups: int,
    *,
    seed: int,
    restarts: int = 4,
) -> Groups:
    """k-means on token states of unit length: argmin_k |x - c_k|^2.

    Centres: the best of `restarts` runs of Lloyd's algorithm (k-means++ starts) on at most
    10,000 training tokens.

    Args:
      train_td: [t, d] states of the training tokens.
      test_td: [u, d] states of the test tokens.
      num_groups: number of groups (fewer are used when there are fewer tokens).
      seed: seed of the sample and the starts.
      restarts: number of runs.

    Raises:
      ValueError: no training tokens, widths that differ, NaN or Inf, num_groups < 1.
    """
    from sklearn.cluster import KMeans  # a second, which showing a finished run needn't wait for

    _check(train_td, test_td, num_groups)
    points = _normalised(_drawn(train_td, KMEANS_TOKENS, seed))
    with _reproducible():
        size = min(num_groups, len(points))
        model = KMeans(size, n_init=restarts, max_iter=100, random_state=seed)
        centres = model.fit(points).cluster_centers_.astype(np.float32)
    half = (centres**2).sum(axis=1)[None] / 2

    def assign(states_td: np.ndarray) -> np.ndarray:
        chunks = [states_td[i : i + _CHUNK] for i in range(0, len(states_td), _CHUNK)]
        near = [(_normalised(c) @ centres.T - half).argmax(axis=1) for c in chunks]
        return np.concatenate([np.zeros(0, np.int64), *near])

    return Groups(assign(train_td), assign(test_td))


def nmf(
    train_td: Float[np.ndarray, "t d"],
    test_td: Float[np.ndarray, "u width"],
    num_groups: int,
    *,
    seed: int,
    sweeps: int = 30,
) -> Groups:
    """Non-negative factorisation of token states: X ~ W H, group = argmax_k W_ik.

    States have signs, so x (of unit length, minus the training mean) is written as
    [max(x, 0), max(-x, 0)], 2d numbers >= 0. H is fitted on at most 10,000 training tokens; the
    rows of H are brought to unit length, so that the W_ik of different k can be compared; W of
    every token comes from `sweeps` rounds of coordinate descent with H held.

    Args:
      train_td: [t, d] states of the training tokens.
      test_td: [u, d] states of the test tokens.
      num_groups: number of parts (fewer are used when there are fewer tokens or numbers).
      seed: seed of the sample and the start.
      sweeps: rounds of coordinate descent.

    Raises:
      ValueError: no training tokens, widths that differ, NaN or Inf, num_groups < 1.
    """
    from sklearn.decomposition import NMF

    _check(train_td, test_td, num_groups)
    sample = _normalised(_drawn(train_td, NMF_TOKENS, seed))
    mean = sample.mean(axis=0, keepdims=True)

    def split(states_td: np.ndarray) -> np.ndarray:
        x = _normalised(states_td) - mean
        return np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=1)

    points = split(sample)
    num_parts = min(num_groups, *points.shape)
    with _reproducible():
        model = NMF(num_parts, init="nndsvda", random_state=seed, max_iter=100, tol=1e-3)
        parts = model.fit(points).components_.astype(np.float32)
    parts = parts / np.maximum(np.linalg.norm(parts, axis=1, keepdims=True), 1e-12)
    gram = parts @ parts.T

    def assign(states_td: np.ndarray) -> np.ndarray:
        chosen = [np.zeros(0, np.int64)]
        for i in range(0, len(states_td), _CHUNK):
            target = split(states_td[i : i + _CHUNK]) @ parts.T
            weight = np.zeros_like(target)
            for _ in range(sweeps):
                for k in range(num_parts):
                    gap = target[:, k] - weight @ gram[:, k] + weight[:, k] * gram[k, k]
                    weight[:, k] = np.maximum(gap, 0) / max(float(gram[k, k]), 1e-12)
            chosen.append(weight.argmax(axis=1))
        return np.concatenate(chosen)

    return Groups(assign(train_td), assign(test_td))
