"""Spherical k-means: clusters of embeddings by cosine.

scikit-learn's `KMeans` minimises Euclidean distances to means of any length, which on points of
length 1 is another objective: its centres are not those of this file.
"""

import numpy as np
from jaxtyping import Float

# Points of the first rounds of each start.
_SUBSET = 6000


def spherical_kmeans(
    points: Float[np.ndarray, "points d"],
    num_clusters: int,
    *,
    seed: int,
    restarts: int = 8,
    iterations: int = 50,
) -> Float[np.ndarray, "clusters d"]:
    r"""Centres c_k of length 1 that maximise sum_i max_k c_k . x_i, the best of several starts.

    The starts are k-means++ draws (Arthur and Vassilvitskii 2007) on 1 - cosine; then Lloyd's
    rounds: c_k is the mean of the points nearest to it, brought to length 1 (Dhillon and Modha
    2001). A centre that no point is nearest to moves to the point with the smallest similarity to
    its own centre.

    Args:
      points: brought to length 1 here; at least one.
      num_clusters: K; with fewer distinct points than that some centres coincide.
      seed: of the draws.
      restarts: starts, of which the one with the largest sum is kept. Poor optima are common and
        the best one is found again and again, so it pays to have several.
      iterations: at most so many rounds each, on at most 6,000 of the points and then on all.

    Raises:
      ValueError: no point, one that isn't finite, num_clusters, restarts or iterations < 1.
    """
    if not len(points) or not np.isfinite(points).all():
        raise ValueError("points must hold at least one point, and only finite numbers")
    for name, value in (
        ("num_clusters", num_clusters),
        ("restarts", restarts),
        ("iterations", iterations),
    ):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    x = points.astype(np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    rng = np.random.default_rng(seed)
    best, best_sum = x[:0], -np.inf
    for _ in range(restarts):
        # Most rounds are spent far from the optimum, where a subset of the points will do.
        subset = x if len(x) <= _SUBSET else x[np.sort(rng.permutation(len(x))[:_SUBSET])]
        centres = _lloyd(subset, _plus_plus(subset, num_clusters, rng), iterations)
        if len(subset) < len(x):
            centres = _lloyd(x, centres, iterations)
        total = float((x @ centres.T).max(axis=1).sum(dtype=np.float64))
        if total > best_sum:
            best, best_sum = centres, total
    return best


def _plus_plus(x: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Points drawn as centres, each with a chance in proportion to 1 - cosine to the nearest."""
    centres = [x[rng.integers(len(x))]]
    distance = np.full(len(x), np.inf)
    for _ in range(num_clusters - 1):
        distance = np.minimum(distance, np.maximum(1 - x @ centres[-1], 0))
        total = distance.sum(dtype=np.float64)
        if total <= 0:
            centres.append(x[rng.integers(len(x))])
            continue
        cumulative = np.cumsum(distance, dtype=np.float64)
        index = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        centres.append(x[min(int(index), len(x) - 1)])
    return np.stack(centres)


def _lloyd(x: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Rounds of assignment and means, until no point changes its cluster."""
    previous = None
    for _ in range(iterations):
        similarity = x @ centres.T
        nearest = similarity.argmax(axis=1)
        if previous is not None and np.array_equal(nearest, previous):
            break
        previous = nearest
        centres = _mean_directions(x, nearest, similarity.max(axis=1), len(centres))
    return centres


def _mean_directions(
    x: np.ndarray, nearest: np.ndarray, similarity: np.ndarray, num_clusters: int
) -> np.ndarray:
    """The normalised mean of each cluster; an empty one takes the point of least similarity."""
    one_hot = np.zeros((len(x), num_clusters), np.float32)
    one_hot[np.arange(len(x)), nearest] = 1
    sums = one_hot.T @ x
    for k, empty in enumerate(one_hot.sum(axis=0) == 0):
        if empty:
            farthest = int(similarity.argmin())
            sums[k], similarity[farthest] = x[farthest], np.inf
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
