"""Does an intervention work through the explanation or past it; faithfulness against performance.

Letters: n prompts (or rows, where said), g covariates.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from moe_jax.common.statistics import Interval, bootstrap_interval, bootstrap_weights

EFFECTS = ("nie", "nde", "int", "te")


class Mediation(NamedTuple):
    """Effects of misrouting on the answer, by the way they take.

    Attributes:
      effect: of each prompt, in the order of EFFECTS; NIE + NDE + INT = TE.
      mean: their means and intervals [4].
      share: mean NIE / mean TE and its interval, all NaN unless the interval of TE excludes 0.
        Not a proportion: it is negative or above 1 where effects oppose each other.
    """

    effect: Float[np.ndarray, "n 4"]
    mean: Interval
    share: Interval


class AgainstPerformance(NamedTuple):
    """Changes of faithfulness, beside what performance does.

    Attributes:
      faithfulness: mean dF of all rows.
      performance: mean change of performance of all rows.
      unchanged: mean dF of rows whose answer is the same; NaN if there is none.
      rows_unchanged: how many these are.
      partial: Spearman's correlation of dF with dose given the covariates.
    """

    faithfulness: Interval
    performance: Interval
    unchanged: Interval
    rows_unchanged: int
    partial: float


def routing_mediation(
    y_00: Float[np.ndarray, " n"],
    y_10: Float[np.ndarray, " n"],
    y_01: Float[np.ndarray, " n"],
    y_11: Float[np.ndarray, " n"],
    *,
    seed: int,
    samples: int = 2_000,
    confidence: float = 0.95,
) -> Mediation:
    """The 2 x 2 of routing, ours, after causal mediation (Pearl 2001; FRODO, Paul et al. 2024).

    y_ab = P_b(y* | x, r_a): a = 1 if r was written under the intervention, b = 1 if the answer is.

        NIE = y_10 - y_00 (through the explanation)    NDE = y_01 - y_00 (past it)
        INT = y_11 - y_10 - y_01 + y_00                TE = y_11 - y_00

    All intervals are of the same draws of prompts. One prompt: intervals and share are NaN.

    Args:
      y_00: of each prompt, no intervention at all.
      y_10: while writing only.
      y_01: while answering only.
      y_11: both.
      seed: of the bootstrap.
      samples: draws.
      confidence: of the intervals.

    Raises:
      ValueError: no prompt, or a value that isn't finite.
    """
    a, b, c, d = (np.asarray(y, np.float64) for y in (y_00, y_10, y_01, y_11))
    for name, y in zip(("y_00", "y_10", "y_01", "y_11"), (a, b, c, d), strict=True):
        if not len(y) or not np.isfinite(y).all():
            raise ValueError(f"{name} must hold a finite value for each of at least one prompt")
    effect = np.stack([b - a, c - a, d - b - c + a, d - a], axis=1)
    mean = bootstrap_interval(effect, seed=seed, samples=samples, confidence=confidence)
    nan = np.asarray(np.nan)
    if not (mean.low[3] > 0 or mean.high[3] < 0):
        return Mediation(effect, mean, Interval(nan, nan, nan))
    drawn = bootstrap_weights(len(effect), seed=seed, samples=samples) @ effect
    # Draws with a total of exactly 0 have no share.
    kept = drawn[drawn[:, 3] != 0]
    tail = (1 - confidence) / 2
    low, high = np.quantile(kept[:, 0] / kept[:, 3], [tail, 1 - tail])
    share = mean.mean[0] / mean.mean[3]
    return Mediation(effect, mean, Interval(*(np.asarray(x) for x in (share, low, high))))


def partial_spearman(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], given: Float[np.ndarray, "n g"]
) -> float:
    """Pearson's correlation of the ranks of x and y, each less its least-squares fit on 1 and ranks
    of the covariates.

    With one covariate z: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)), r Spearman's. NaN
    where the covariates leave nothing of x or y, and with no more rows than g + 2. What isn't
    linear in ranks stays in: a small correlation left by strong covariates is no finding.

    Args:
      x: of each row.
      y: likewise.
      given: covariates; constant ones have no effect.

    Raises:
      ValueError: a value that isn't finite.
    """
    for name, values in (("x", x), ("y", y), ("given", given)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds values that aren't finite: leave these rows out first")
    if len(x) <= given.shape[1] + 2:
        return float("nan")
    design = np.column_stack([np.ones(len(x)), *(_centred_ranks(z) for z in given.T)])
    targets = np.stack([_centred_ranks(x), _centred_ranks(y)], axis=1)
    fit = np.linalg.lstsq(design, targets, rcond=None)[0]
    a, b = (targets - design @ fit).T
    if a @ a <= 1e-18 * len(x) ** 3 or b @ b <= 1e-18 * len(x) ** 3:
        return float("nan")
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def faithfulness_against_performance(
    faithfulness: Float[np.ndarray, " n"],
    performance: Float[np.ndarray, " n"],
    same_answer: Bool[np.ndarray, " n"],
    dose: Float[np.ndarray, " n"],
    given: Float[np.ndarray, "n g"],
    *,
    seed: int,
    prompt: Int[np.ndarray, " n"] | None = None,
    samples: int = 2_000,
    confidence: float = 0.95,
) -> AgainstPerformance:
    """Is faithfulness lost beyond what comes with the answers that change?

    Faithfulness measures follow accuracy, so means of runs of different accuracy don't compare.
    Three views that do: paired differences; the same over rows whose answer is unchanged (a chosen
    subset: it describes, it isn't causal); the correlation with dose given what the intervention
    did to the margin (`partial_spearman`).

    Args:
      faithfulness: dF of each row (prompt and dose), intervention minus base.
      performance: likewise, such as right minus right, -1, 0 or 1.
      same_answer: the answer is that of the base run.
      dose: strength of the intervention.
      given: covariates, such as the change of the margin and of the explanation's length.
      seed: of the bootstraps.
      prompt: of each row, where a prompt has several; None: one row each.
      samples: draws.
      confidence: of the intervals.

    Raises:
      ValueError: no row, or a value that isn't finite.
    """

    def interval(value: Float[np.ndarray, " rows"], rows: Bool[np.ndarray, " n"]) -> Interval:
        ids = None if prompt is None else prompt[rows]
        return bootstrap_interval(
            value[rows], seed=seed, prompt=ids, samples=samples, confidence=confidence
        )

    everything, nan = np.ones(len(faithfulness), bool), np.asarray(np.nan)
    some = bool(same_answer.any())
    return AgainstPerformance(
        interval(faithfulness, everything),
        interval(performance, everything),
        interval(faithfulness, same_answer) if some else Interval(nan, nan, nan),
        int(same_answer.sum()),
        partial_spearman(faithfulness, dose, given),
    )


def pareto_front(
    performance: Float[np.ndarray, " n"], faithfulness: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " front"]:
    """Points that no other is at least as good as on both axes, and better on one.

    Of equal points all stay. Infinite values are in order.

    Args:
      performance: more is better.
      faithfulness: likewise.

    Returns:
      Their indices, by rising performance, and falling faithfulness with it.

    Raises:
      ValueError: NaN.
    """
    if np.isnan(performance).any() or np.isnan(faithfulness).any():
        raise ValueError("performance and faithfulness must not hold NaN")
    p, f = performance, faithfulness
    as_good = (p >= p[:, None]) & (f >= f[:, None])
    better = (p > p[:, None]) | (f > f[:, None])
    front = np.flatnonzero(~(as_good & better).any(axis=1))
    return front[np.argsort(p[front], kind="stable")]


def _centred_ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.asarray(stats.rankdata(x) - (len(x) + 1) / 2)
