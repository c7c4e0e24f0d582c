r"""Which experts are used more, or less, by harder prompts: trend scores and their significance.

The unit is the prompt: tokens of one prompt are alike, and a test that counts them as independent
finds effects where there are none. Letters: n prompts, m columns (experts of all layers), d levels,
b permutations.

With levels d(i), level weights w (sum 0) and n_d prompts at level d, the score of a column is

    s = sum_d w_d mean_{i in d} u_i = sum_i c_i u_i,     c_i = w_{d(i)} / n_{d(i)}

so b permutations of the labels are one product of b permuted copies of c with u.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

_ROWS = 2048  # permutations at once


class Trend(NamedTuple):
    """Scores of every column, and what labels permuted within strata say about them.

    Attributes:
      score: s, a difference of mean usage (hard minus easy), as the weights' scale makes it.
      z: (s - E s) / sd s under permutation, in closed form; 0 where usage doesn't vary.
      p: two-sided, of each column alone: (1 + #{|z*| >= |z|}) / (b + 1).
      p_family: the same against the largest |z*| of all columns (Westfall and Young's max-T): the
        chance of any false finding is at most the level at which it is read.
      q: Benjamini and Hochberg's, from p.
    """

    score: Float[np.ndarray, " m"]
    z: Float[np.ndarray, " m"]
    p: Float[np.ndarray, " m"]
    p_family: Float[np.ndarray, " m"]
    q: Float[np.ndarray, " m"]


class Jonckheere(NamedTuple):
    """Jonckheere and Terpstra's test of an ordered trend, by ranks.

    Attributes:
      somers_d: (J - E J) / E J, from -1 to 1.
      z: (J - E J) / sd J, ties counted in the variance.
      p: two-sided, normal.
    """

    somers_d: Float[np.ndarray, " m"]
    z: Float[np.ndarray, " m"]
    p: Float[np.ndarray, " m"]


class Bootstrap(NamedTuple):
    """Scores over resampled prompts.

    Attributes:
      low: end of the percentile interval of the score.
      high: its other end.
      inclusion: how often the column is among the `top` by |score|.
    """

    low: Float[np.ndarray, " m"]
    high: Float[np.ndarray, " m"]
    inclusion: Float[np.ndarray, " m"]


def level_weights(level: Int[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
    """Weights that rise evenly with the level, of sum 0 and sum |w| = 2.

    With two levels: -1 and 1, so the score is the difference of means.

    Raises:
      ValueError: a level below the highest has no prompt, or there is one level only.
    """
    levels = np.arange(_num_levels(level), dtype=np.float64)
    weights = levels - levels.mean()
    return 2 * weights / np.abs(weights).sum()


def coefficients(
    level: Int[np.ndarray, " n"], weights: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " n"]:
    """c_i = w_{d(i)} / n_{d(i)}.

    Raises:
      ValueError: the weights' sum isn't 0, or their number isn't that of the levels.
    """
    if len(weights) != _num_levels(level):
        raise ValueError(f"{len(weights)} weights for {_num_levels(level)} levels")
    if abs(weights.sum()) > 1e-9 * np.abs(weights).sum():
        raise ValueError(f"the weights of the levels add up to {weights.sum():.3g}; must be 0")
    return (weights / np.bincount(level))[level]


def trend(
    rate: Float[np.ndarray, "n m"],
    level: Int[np.ndarray, " n"],
    *,
    seed: int,
    weights: Float[np.ndarray, " d"] | None = None,
    stratum: Int[np.ndarray, " n"] | None = None,
    permutations: int = 9_999,
) -> Trend:
    """Scores and permutation tests of all columns.

    Args:
      rate: usage of each prompt.
      level: difficulty of each prompt, 0 (easiest) and up, each at least once.
      seed: of the permutations.
      weights: of the levels, of sum 0; None: `level_weights`.
      stratum: labels are permuted within strata only (data set, length), which takes what differs
        between strata out of the test; None: one stratum.
      permutations: b.

    Raises:
      ValueError: as `level_weights` and `coefficients`; fewer than one permutation.
    """
    if permutations < 1:
        raise ValueError(f"permutations={permutations} must be at least 1")
    c = coefficients(level, level_weights(level) if weights is None else weights)
    stratum = np.zeros(len(level), int) if stratum is None else stratum
    groups = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    expected, variance = _moments(c, rate, groups)
    score = c @ rate
    scale = np.sqrt(variance)
    varies = scale > 1e-12 * np.maximum(np.abs(rate).max(axis=0), 1e-300)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=varies)
    z = (score - expected) * inverse
    # Centred and scaled before the product: each entry of it is a z.
    standard = ((rate - rate.mean(axis=0)) * inverse).astype(np.float32)
    shift = ((expected - c.sum() * rate.mean(axis=0)) * inverse).astype(np.float32)
    beyond, family = _exceed(c, standard, shift, np.abs(z), groups, permutations, seed)
    p = (1 + beyond) / (permutations + 1)
    p_family = (1 + family) / (permutations + 1)
    return Trend(score, z, p, p_family, stats.false_discovery_control(p))


def jonckheere(
    rate: Float[np.ndarray, "n m"],
    level: Int[np.ndarray, " n"],
    *,
    stratum: Int[np.ndarray, " n"] | None = None,
) -> Jonckheere:
    """J = sum over pairs of levels a < b of #{u_i < u_j} + #{u_i = u_j} / 2, i in a, j in b.

    With strata, J, its mean and its variance are summed over them. The variance counts ties
    (Lehmann 1975; formula in `_jonckheere_variance`).

    Args:
      rate: usage of each prompt.
      level: difficulty of each prompt.
      stratum: only pairs within a stratum are compared; None: one stratum.
    """
    stratum = np.zeros(len(level), int) if stratum is None else stratum
    columns = rate.shape[1]
    j, mean, variance = np.zeros(columns), 0.0, np.zeros(columns)
    for s in np.unique(stratum):
        here = stratum == s
        u, d = rate[here], level[here]
        counts = np.bincount(d)
        mean += (len(d) ** 2 - np.sum(counts.astype(float) ** 2)) / 4
        for m in range(columns):
            j[m] += _concordance(u[:, m], d)
            variance[m] += _jonckheere_variance(u[:, m], counts)
    scale = np.sqrt(variance)
    z = np.divide(j - mean, scale, out=np.zeros(columns), where=scale > 0)
    return Jonckheere((j - mean) / mean, z, 2 * stats.norm.sf(np.abs(z)))


def bootstrap(
    rate: Float[np.ndarray, "n m"],
    level: Int[np.ndarray, " n"],
    *,
    seed: int,
    top: int,
    weights: Float[np.ndarray, " d"] | None = None,
    samples: int = 2_000,
    confidence: float = 0.95,
) -> Bootstrap:
    """Scores over prompts drawn with replacement within each level.

    Args:
      rate: usage of each prompt.
      level: difficulty of each prompt.
      seed: of the draws.
      top: how many columns a ranking would select.
      weights: of the levels; None: `level_weights`.
      samples: draws.
      confidence: of the interval.

    Raises:
      ValueError: as `level_weights` and `coefficients`.
    """
    c = coefficients(level, level_weights(level) if weights is None else weights)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((samples, len(level)))
    for d in range(_num_levels(level)):
        here = np.flatnonzero(level == d)
        drawn[:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), samples)
    scores = (drawn * c) @ rate
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores, [tail, 1 - tail], axis=0)
    best = np.argsort(-np.abs(scores), axis=1, kind="stable")[:, :top]
    inclusion = np.bincount(best.ravel(), minlength=rate.shape[1]) / samples
    return Bootstrap(low, high, inclusion)


def halves(
    level: Int[np.ndarray, " n"], *, seed: int, stratum: Int[np.ndarray, " n"] | None = None
) -> Bool[np.ndarray, " n"]:
    """A random half of the prompts of each level (and stratum): to select on, and test on the rest.

    Where a group is odd, which half gets the one more is drawn too.
    """
    rng = np.random.default_rng(seed)
    stratum = np.zeros(len(level), int) if stratum is None else stratum
    first = np.zeros(len(level), bool)
    for s in np.unique(stratum):
        for d in np.unique(level):
            here = rng.permutation(np.flatnonzero((stratum == s) & (level == d)))
            first[here[: (len(here) + int(rng.integers(2))) // 2]] = True
    return first


def _num_levels(level: Int[np.ndarray, " n"]) -> int:
    counts = np.bincount(level)
    if len(counts) < 2:
        raise ValueError("all prompts have one level: there is no trend to look for")
    if not counts.all():
        raise ValueError(f"level {np.flatnonzero(counts == 0)[0]} has no prompt")
    return len(counts)


def _moments(
    c: Float[np.ndarray, " n"], rate: Float[np.ndarray, "n m"], groups: list[np.ndarray]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Mean and variance of sum_i c_i u_i when c is permuted within the groups.

    E = sum_g n_g mean(c) mean(u); Var = sum_g SS(c) SS(u) / (n_g - 1), SS about the group's mean.
    """
    mean, variance = np.zeros(rate.shape[1]), np.zeros(rate.shape[1])
    for here in groups:
        u, size = rate[here], len(here)
        mean += size * c[here].mean() * u.mean(axis=0)
        if size > 1:
            spread = np.sum((c[here] - c[here].mean()) ** 2)
            variance += spread * np.sum((u - u.mean(axis=0)) ** 2, axis=0) / (size - 1)
    return mean, variance


def _exceed(
    c: Float[np.ndarray, " n"],
    standard: Float[np.ndarray, "n m"],
    shift: Float[np.ndarray, " m"],
    seen: Float[np.ndarray, " m"],
    groups: list[np.ndarray],
    permutations: int,
    seed: int,
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """How many permutations reach |z|: of the column, and of the largest of all columns."""
    rng = np.random.default_rng(seed)
    # Permutations that change nothing must count as reaching it, in spite of float32.
    bar = (seen - 1e-4 * np.maximum(seen, 1)).astype(np.float32)
    beyond, largest = np.zeros(len(seen), np.int64), []
    for start in range(0, permutations, _ROWS):
        rows = min(_ROWS, permutations - start)
        permuted = np.empty((rows, len(c)), np.float32)
        for here in groups:
            block = np.broadcast_to(c[here].astype(np.float32), (rows, len(here)))
            permuted[:, here] = rng.permuted(block, axis=1)
        size = np.abs(permuted @ standard - shift)
        beyond += np.count_nonzero(size >= bar, axis=0)
        largest.append(size.max(axis=1, initial=0))
    ordered = np.sort(np.concatenate(largest))
    return beyond, permutations - np.searchsorted(ordered, bar, side="left")


def _concordance(u: Float[np.ndarray, " n"], d: Int[np.ndarray, " n"]) -> float:
    """J of one column: the sum, over levels, of ranks against all lower levels."""
    total = 0.0
    for b in range(1, d.max() + 1):
        upper, lower = u[d == b], np.sort(u[d < b])
        below = np.searchsorted(lower, upper, side="left")
        upto = np.searchsorted(lower, upper, side="right")
        total += np.sum(below + upto) / 2
    return float(total)


def _jonckheere_variance(u: Float[np.ndarray, " n"], counts: Int[np.ndarray, " d"]) -> float:
    """Var J with groups of sizes n_d and ties of sizes t:

    [N(N-1)(2N+5) - sum n(n-1)(2n+5) - sum t(t-1)(2t+5)] / 72
      + sum n(n-1)(n-2) sum t(t-1)(t-2) / [36 N(N-1)(N-2)] + sum n(n-1) sum t(t-1) / [8 N(N-1)]
    """
    total = float(len(u))
    n, t = counts.astype(float), np.unique(u, return_counts=True)[1].astype(float)

    def five(x: np.ndarray | float) -> float:
        return float(np.sum(x * (x - 1) * (2 * x + 5)))

    def two(x: np.ndarray) -> float:
        return float(np.sum(x * (x - 1)))

    def three(x: np.ndarray) -> float:
        return float(np.sum(x * (x - 1) * (x - 2)))

    variance = (five(total) - five(n) - five(t)) / 72
    if total > 2:
        variance += three(n) * three(t) / (36 * total * (total - 1) * (total - 2))
    if total > 1:
        variance += two(n) * two(t) / (8 * total * (total - 1))
    return max(variance, 0.0)
