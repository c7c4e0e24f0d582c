"""Does a measure of faithfulness tell faithful from unfaithful, where the truth is known?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from moe_jax.common.statistics import bootstrap_interval, sign_test


class Diagnosticity(NamedTuple):
    """How often a measure is higher for the faithful one of a pair.

    Attributes:
      value: 1/2 is chance; less means that the measure is upside down.
      low: end of the bootstrap interval.
      high: its other end.
      p: exact sign test of the pairs without a tie, two-sided.
      alpha: 1 - confidence.
    """

    value: float
    low: float
    high: float
    p: float
    alpha: float


def diagnosticity(
    faithful: Float[np.ndarray, " n"],
    unfaithful: Float[np.ndarray, " n"],
    *,
    seed: int,
    samples: int = 2_000,
    confidence: float = 0.95,
) -> Diagnosticity:
    """D = P[F(faithful) > F(unfaithful)] over pairs, ties a half (arXiv 2502.18848).

    The interval is of resampled pairs; one pair: NaN. Infinite values are in order, NaN isn't.

    Args:
      faithful: the measure where the explanation is known to be faithful.
      unfaithful: on the other of each pair.
      seed: of the bootstrap.
      samples: draws.
      confidence: of the interval.

    Raises:
      ValueError: no pair, or NaN.
    """
    if not len(faithful) or np.isnan(faithful).any() or np.isnan(unfaithful).any():
        raise ValueError("faithful and unfaithful must hold at least one pair, without NaN")
    more, less = faithful > unfaithful, faithful < unfaithful
    wins = (1.0 + more - less) / 2
    got = bootstrap_interval(wins, seed=seed, samples=samples, confidence=confidence)
    p = sign_test(int(less.sum()), int(more.sum()))
    return Diagnosticity(float(got.mean), float(got.low), float(got.high), p, 1 - confidence)


def tells_apart(result: Diagnosticity) -> bool:
    """The interval excludes 1/2 and the sign test agrees (p <= alpha).

    The bootstrap alone would be sure of two pairs that both go one way. A value below 1/2 that
    tells apart is upside down. NaN: no.
    """
    return bool((result.low > 0.5 or result.high < 0.5) and result.p <= result.alpha + 1e-12)
