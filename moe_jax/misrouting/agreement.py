"""Do the answer and its explanation need the same experts? Letters: c candidate experts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from moe_jax.common.statistics import cosine, spearman


class ExpertAgreement(NamedTuple):
    """Whether the experts that the answer needs are those that the explanation needs.

    Attributes:
      spearman: over experts, of both effects.
      cosine: likewise, about 0.
      p_spearman: one-sided, under permutation within strata.
      p_cosine: likewise.
      free: experts that share their stratum with another; only they are permuted.
    """

    spearman: float
    cosine: float
    p_spearman: float
    p_cosine: float
    free: int


def usage_strata(
    layer: Int[np.ndarray, " c"], usage: Float[np.ndarray, " c"], *, bins: int = 10
) -> Int[np.ndarray, " c"]:
    """A number for each (layer, quantile bin of usage within the layer).

    Args:
      layer: of each expert.
      usage: of each expert; experts of equal usage share a bin.
      bins: quantiles; 10: deciles.

    Raises:
      ValueError: bins < 1.
    """
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    quantile = np.zeros(len(layer), np.int64)
    for one in np.unique(layer):
        here = layer == one
        below = np.searchsorted(np.sort(usage[here]), usage[here], side="left")
        quantile[here] = below * bins // np.sum(here)
    pairs = np.stack([layer, quantile], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def expert_agreement(
    answer: Float[np.ndarray, " c"],
    explanation: Float[np.ndarray, " c"],
    stratum: Int[np.ndarray, " c"],
    *,
    seed: int,
    permutations: int = 9_999,
) -> ExpertAgreement:
    """Expert-CC, ours: EA = Spearman over e of a_e and b_e, and the cosine of a and b.

    a_e = l(yhat | x, r) - l_e(yhat | x, r), b_e = [l(r | x) - l_e(r | x)] / |r|, where l_e is with
    intervention e. Shares a / |a|_1 and b / |b|_1 have the same cosine. The null permutes b within
    strata: p = (1 + #{EA* >= EA}) / (permutations + 1); where all strata are of one expert p = 1.
    A constant side: EA and its p are NaN; one that is all 0: the cosine too.

    Args:
      answer: a.
      explanation: b.
      stratum: experts alike in layer and usage: see `usage_strata`.
      seed: of the permutations.
      permutations: how many.

    Raises:
      ValueError: an effect that isn't finite, fewer than one permutation.
    """
    if not (np.isfinite(answer).all() and np.isfinite(explanation).all()):
        raise ValueError("answer and explanation must hold finite effects")
    if permutations < 1:
        raise ValueError(f"permutations={permutations} must be at least 1")
    groups = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    groups = [here for here in groups if len(here) > 1]
    rng = np.random.default_rng(seed)
    order = np.tile(np.arange(len(answer)), (permutations, 1))
    for here in groups:
        order[:, here] = rng.permuted(order[:, here], axis=1)
    a, b = np.asarray(answer, np.float64), np.asarray(explanation, np.float64)
    ranks = [stats.rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
    values = spearman(a, b), cosine(a, b)
    chances = []
    for (x, y), value in zip((ranks, (a, b)), values, strict=True):
        sums, seen = y[order] @ x, y @ x
        reached = np.sum(sums >= seen - 1e-12 * np.sum(np.abs(x)) * np.abs(y).max(initial=0))
        p = (1 + int(reached)) / (permutations + 1)
        chances.append(float("nan") if np.isnan(value) else p)
    return ExpertAgreement(*values, chances[0], chances[1], sum(map(len, groups)))
