"""Where the gate starts: k-means on the states, then what each word says about the factors."""

import numpy as np
from jaxtyping import Float, Int

_ROUGH = 6000
_PSEUDO_COUNT = 2.0  # a word seen n times weighs n / (n + 2) against the factors' own shares


def spherical_kmeans(
    states: Float[np.ndarray, "t d"],
    num_factors: int,
    *,
    seed: int,
    restarts: int = 8,
    iterations: int = 50,
) -> Float[np.ndarray, "e d"]:
    """Centres c_k of length 1 that maximise sum_t max_k c_k . x_t, the best of several starts.

    The starts are k-means++ draws (Arthur and Vassilvitskii 2007) on 1 - cosine. A centre that no
    state chooses moves to the state that is served worst.

    Args:
      states: [t d], brought to length 1 here; at least one.
      num_factors: K; with fewer distinct states than that some centres coincide.
      seed: of the draws.
      restarts: starts, of which the one with the largest sum is kept. Poor optima are common and
        the best one is found again and again, so it pays to have several.
      iterations: at most so many rounds each, on at most 6,000 of the states and then on all.
    """
    x = states.astype(np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    rng = np.random.default_rng(seed)
    best, best_sum = None, -np.inf
    for _ in range(restarts):
        # Most rounds are spent far from the optimum, where some of the states will do.
        some = x if len(x) <= _ROUGH else x[np.sort(rng.permutation(len(x))[:_ROUGH])]
        centres = _settled(some, _plus_plus(some, num_factors, rng), iterations)
        if len(some) < len(x):
            centres = _settled(x, centres, iterations)
        total = float((x @ centres.T).max(axis=1).sum(dtype=np.float64))
        if total > best_sum:
            best, best_sum = centres, total
    assert best is not None
    return best


def _settled(x: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Lloyd's rounds until nothing changes."""
    previous = None
    for _ in range(iterations):
        similarity = x @ centres.T
        nearest = similarity.argmax(axis=1)
        if previous is not None and np.array_equal(nearest, previous):
            break
        previous = nearest
        centres = _means(x, nearest, similarity.max(axis=1), len(centres))
    return centres


def word_evidence(
    ids: Int[np.ndarray, " t"], probs: Float[np.ndarray, "t e"], vocab_size: int
) -> Float[np.ndarray, "v e"]:
    r"""What seeing word v says for factor k: log p(k|v) - log p(k), from soft assignments.

    p(k|v) = (sum_{t: id_t = v} pi_tk + c p(k)) / (n_v + c) with c = 2 and p(k) the mean of pi:
    a word that was never seen says nothing (0).

    Args:
      ids: word (piece) of each token.
      probs: pi, the probability of each factor for each token; rows sum to 1.
      vocab_size: V.
    """
    prior = np.maximum(probs.mean(axis=0, dtype=np.float64), 1e-6)
    counts = np.stack(
        [np.bincount(ids, weights=column, minlength=vocab_size) for column in probs.T], axis=1
    )
    smoothed = counts + _PSEUDO_COUNT * prior
    posterior = smoothed / (counts.sum(axis=1, keepdims=True) + _PSEUDO_COUNT)
    return (np.log(posterior) - np.log(prior)).astype(np.float32)


def _plus_plus(x: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    centres = [x[rng.integers(len(x))]]
    distance = np.full(len(x), np.inf)
    for _ in range(num - 1):
        distance = np.minimum(distance, np.maximum(1 - x @ centres[-1], 0))
        total = distance.sum(dtype=np.float64)
        if total <= 0:
            centres.append(x[rng.integers(len(x))])
            continue
        cumulative = np.cumsum(distance, dtype=np.float64)
        place = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        centres.append(x[min(int(place), len(x) - 1)])
    return np.stack(centres)


def _means(x: np.ndarray, nearest: np.ndarray, served: np.ndarray, num: int) -> np.ndarray:
    one_hot = np.zeros((len(x), num), np.float32)
    one_hot[np.arange(len(x)), nearest] = 1
    sums = one_hot.T @ x
    for k, empty in enumerate(one_hot.sum(axis=0) == 0):
        if empty:
            worst = int(served.argmin())
            sums[k], served[worst] = x[worst], np.inf
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
