"""Before against after on the same prompts: paired tests, intervals, effect sizes.

The unit is the prompt. Differences are "after minus before"; NaN and infinities raise, so that
leaving prompts out is explicit. Letters: n rows (one prompt each, unless `prompt` says otherwise),
m quantities, r random sets, b resamples.

Binomial, t and rank statistics are SciPy's. It has no test of McNemar, of Holm or of equivalence.
Its `permutation_test` and `bootstrap` draw other random numbers than `sign_flip` and
`bootstrap_interval`, know no prompts of several rows, and of random signs the first doubles the
smaller side where ours counts both. statsmodels would add Holm, and McNemar as the same binomial.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

SIDES = ("greater", "less", "two-sided")
_ROWS = 2048  # resamples at once


class McNemar(NamedTuple):
    """Right and wrong answers of the same prompts, before and after.

    Attributes:
      lost: right before, wrong after.
      gained: wrong before, right after.
      p: two-sided, exact.
    """

    lost: int
    gained: int
    p: float


class SignFlip(NamedTuple):
    """A mean difference and what random signs say about it.

    Attributes:
      mean: of the differences.
      p: two-sided.
      exact: all 2^n signs were tried.
    """

    mean: float
    p: float
    exact: bool


class Interval(NamedTuple):
    """A mean and its interval: numbers, or arrays of one shape; NaN where they aren't defined.

    Attributes:
      mean: [*m], or a float.
      low: lower end, likewise.
      high: upper end, likewise.
    """

    mean: Any
    low: Any
    high: Any


class Equivalence(NamedTuple):
    """Two one-sided tests against a margin.

    Attributes:
      mean: of the differences as they are.
      low: end of the interval of confidence 1 - 2 alpha.
      high: its other end.
      p: the larger of the two one-sided p.
      preserved: p <= alpha, that is, the interval is within the margin.
    """

    mean: float
    low: float
    high: float
    p: float
    preserved: bool


def mcnemar(before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> McNemar:
    """McNemar's test of two accuracies, exact: p = min(1, 2 P[Binomial(b + c, 1/2) <= min(b, c)]).

    b and c count the prompts whose answer turned wrong or right (McNemar 1947). Without any: p = 1.

    Args:
      before: which answers are right.
      after: likewise, of the same prompts.
    """
    lost, gained = int(np.sum(before & ~after)), int(np.sum(~before & after))
    return McNemar(lost, gained, sign_test(lost, gained))


def sign_test(less: int, more: int) -> float:
    """Exact two-sided p of a fair coin that falls so often to either side; 1 if it never fell."""
    return float(stats.binomtest(less, less + more).pvalue) if less + more else 1.0


def sign_flip(
    difference: Float[np.ndarray, " n"],
    *,
    seed: int,
    flips: int = 9_999,
    exact_up_to: int = 16,
) -> SignFlip:
    """Test of a mean of 0 where the signs are arbitrary: mean* = (1/n) sum_i s_i d_i, s_i = +-1.

    With n <= exact_up_to all signs are tried: p = #{|mean*| >= |mean|} / 2^n. Otherwise
    p = (1 + #{|mean*| >= |mean|}) / (flips + 1) (Fisher 1935; Phipson and Smyth 2010). All
    differences 0: p = 1. One prompt: p = 1, whatever it says.

    Args:
      difference: of each prompt.
      seed: of the random signs.
      flips: how many of them.
      exact_up_to: the most prompts for which all are tried, at most 20.

    Raises:
      ValueError: no prompt, a difference that isn't finite, flips < 1, exact_up_to > 20.
    """
    d = _rows("difference", difference)
    if flips < 1:
        raise ValueError(f"flips={flips} must be at least 1")
    if exact_up_to > 20:
        raise ValueError(f"exact_up_to={exact_up_to} must be at most 20: 2^n sums are tried")
    # Signs that change nothing must count as reaching it, in spite of rounding.
    bar = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    if len(d) <= exact_up_to:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlip(float(d.mean()), float(np.mean(np.abs(sums) >= bar)), True)
    rng, reached = np.random.default_rng(seed), 0
    for start in range(0, flips, _ROWS):
        rows = min(_ROWS, flips - start)
        signs = rng.integers(0, 2, (rows, len(d)), dtype=np.int8) * 2.0 - 1
        reached += int(np.sum(np.abs(signs @ d) >= bar))
    return SignFlip(float(d.mean()), (1 + reached) / (flips + 1), False)


def bootstrap_weights(n: int, *, seed: int, samples: int) -> Float[np.ndarray, "b n"]:
    """How often each of n prompts is in each of b draws of n with replacement, over n."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), samples) / n


def bootstrap_interval(
    value: Float[np.ndarray, " n *m"],
    *,
    seed: int,
    prompt: Int[np.ndarray, " n"] | None = None,
    samples: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of the mean over rows, prompts drawn with replacement (Efron 1979).

    A drawn prompt brings all its rows, and all m quantities are of the same draws. With one prompt
    the ends are NaN: nothing is known of the spread.

    Args:
      value: rows.
      seed: of the draws.
      prompt: the prompt of each row, any integers; None: each row is a prompt of its own.
      samples: draws.
      confidence: of the interval.

    Raises:
      ValueError: no row, a value that isn't finite, a confidence that isn't between 0 and 1.
    """
    x = _rows("value", value)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1")
    flat = x.reshape(len(x), -1)
    ids = np.arange(len(x)) if prompt is None else np.unique(prompt, return_inverse=True)[1]
    rows = np.bincount(ids).astype(np.float64)
    sums = np.stack([np.bincount(ids, column) for column in flat.T], axis=1)
    if len(rows) == 1:
        nan = np.full(x.shape[1:], np.nan)
        return Interval(np.asarray(x.mean(axis=0)), nan, nan)
    weights = bootstrap_weights(len(rows), seed=seed, samples=samples)
    means = (weights @ sums) / (weights @ rows)[:, None]
    tail = (1 - confidence) / 2
    ends = np.quantile(means, [tail, 1 - tail], axis=0)
    low, high = ends.reshape(2, *x.shape[1:])
    return Interval(np.asarray(x.mean(axis=0)), np.asarray(low), np.asarray(high))


def empirical_p(
    observed: Float[np.ndarray, "*m"],
    random: Float[np.ndarray, " r *m"],
    *,
    side: str = "greater",
) -> Float[np.ndarray, "*m"]:
    """An effect against those of matched random expert sets: (1 + #{random >= observed}) / (r + 1).

    "less" counts random <= observed; "two-sided" is twice the smaller of the two, at most 1. The
    smallest p is 1 / (r + 1), or twice that. What is equal but for rounding counts as reaching it.

    Args:
      observed: effect of the chosen experts.
      random: effects of r sets of as many experts of the same layers and usage.
      side: one of SIDES.

    Raises:
      ValueError: an unknown side, no random set, a value that isn't finite.
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r} is none of {', '.join(SIDES)}")
    drawn, seen = _rows("random", random), _finite("observed", observed)
    slack = 1e-12 * np.abs(seen)
    greater = (1 + np.sum(drawn >= seen - slack, axis=0)) / (len(drawn) + 1)
    less = (1 + np.sum(drawn <= seen + slack, axis=0)) / (len(drawn) + 1)
    both = np.minimum(1.0, 2 * np.minimum(greater, less))
    return np.asarray({"greater": greater, "less": less, "two-sided": both}[side])


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Adjusted p: of the i-th smallest (from 0), max over j <= i of (m - j) p_(j), at most 1.

    Read at a level, they hold the chance of any false finding under it (Holm 1979).

    Raises:
      ValueError: a p that isn't from 0 to 1.
    """
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p={p} must be from 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    steps = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order])
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def tost(
    difference: Float[np.ndarray, " n"],
    margin: float,
    *,
    alpha: float = 0.05,
    bound: float | None = None,
) -> Equivalence:
    """Is performance preserved: is the mean difference within -margin..margin, by two t tests?

    p = max(P[t > (mean + margin) / se], P[t < (mean - margin) / se]) with n - 1 degrees of freedom
    (Schuirmann 1987). t says nothing of one prompt, or of differences that are all equal: p and the
    ends are then NaN, and nothing is preserved.

    With `bound`, half a prompt at -bound, half a prompt at +bound and one at 0 are added first,
    which is Agresti and Min's (2005) correction of paired proportions when bound = 1. Use it for
    accuracies: it makes few prompts without a change weak evidence, and many strong.

    Args:
      difference: of each prompt.
      margin: declared before the data are seen, > 0.
      alpha: level of the test, under 1/2.
      bound: the largest |difference| there can be; None: no correction.

    Raises:
      ValueError: no prompt, a value that isn't finite, margin <= 0, alpha not between 0 and 1/2,
        a bound under the largest difference.
    """
    d = _rows("difference", difference)
    if not margin > 0:
        raise ValueError(f"margin={margin} must be more than 0")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha} must be between 0 and 0.5")
    if bound is not None and not bound >= np.abs(d).max():
        raise ValueError(f"bound={bound} is less than the largest difference {np.abs(d).max()}")
    size = len(d) + (0 if bound is None else 2)
    extra = 0.0 if bound is None else bound**2
    centre = d.sum() / size
    spread = np.sum((d - centre) ** 2) + (size - len(d)) * centre**2 + extra
    if size < 2 or spread <= 1e-24 * np.sum(d**2):
        return Equivalence(float(d.mean()), np.nan, np.nan, np.nan, False)
    error, freedom = np.sqrt(spread / (size - 1) / size), size - 1
    p = stats.t.sf((margin - np.abs(centre)) / error, freedom)
    half = stats.t.ppf(1 - alpha, freedom) * error
    ends = float(centre - half), float(centre + half)
    return Equivalence(float(d.mean()), *ends, float(p), bool(p <= alpha))


def cliffs_delta(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> float:
    """P[a > b] - P[a < b] over all pairs, from -1 to 1 (Cliff 1993).

    Raises:
      ValueError: an empty side, or NaN.
    """
    for name, values in (("a", a), ("b", b)):
        if not len(values) or np.isnan(values).any():
            raise ValueError(f"{name} holds nothing, or NaN; it must have a number per prompt")
    # Mann and Whitney's U: pairs with a > b, and half of those that are equal.
    greater, pairs = stats.mannwhitneyu(a, b, method="asymptotic").statistic, len(a) * len(b)
    return float((2 * greater - pairs) / pairs)


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation of ranks, equals sharing theirs; NaN if a side is constant or empty."""
    if not len(x) or x.max() == x.min() or y.max() == y.min():
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def cosine(a: Float[np.ndarray, " c"], b: Float[np.ndarray, " c"]) -> float:
    """Cosine of a and b, NaN if one is 0."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / size, -1, 1)) if size else float("nan")


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values in float64, if they are finite."""
    wrong = int(np.sum(~np.isfinite(values)))
    if wrong:
        raise ValueError(
            f"{name} holds {wrong} of {values.size} values that aren't finite: leave them out first"
        )
    return np.asarray(values, np.float64)


def _rows(name: str, values: np.ndarray) -> np.ndarray:
    """Likewise, if there is a row at all."""
    if not len(values):
        raise ValueError(f"{name} has no row; it needs at least one")
    return _finite(name, values)
