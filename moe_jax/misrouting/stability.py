"""How much an intervention changes what the model says: distributions, answers, texts, routes.

The same measures between two runs without any intervention (other batch order, other dtype) are the
noise floor: see `above_floor`. Letters: t tokens, v vocabulary, s and r token ids of two texts, n
prompts, l layers, k choices, e experts.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_ROWS = 64  # tokens at once: [64 v] in float64


class Spread(NamedTuple):
    """Mean and 95th percentile; NaN if there was nothing."""

    mean: float
    p95: float


class Flips(NamedTuple):
    """What became of the answers, as shares of all prompts; they sum to 1.

    Attributes:
      right_right: right before and after.
      right_wrong: lost.
      wrong_right: gained.
      wrong_other: another wrong answer.
      wrong_same: the same wrong answer.
    """

    right_right: float
    right_wrong: float
    wrong_right: float
    wrong_other: float
    wrong_same: float

    @property
    def flipped(self) -> float:
        """Share of the answers that changed."""
        return self.right_wrong + self.wrong_right + self.wrong_other


class Consistency(NamedTuple):
    """Of several sampled answers to each prompt.

    Attributes:
      entropy: of the shares of the answers, in bits: 0 to log2(samples).
      share: of the most frequent answer.
    """

    entropy: Float[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]


class AboveFloor(NamedTuple):
    """A measure against the same measure with no intervention.

    Attributes:
      excess: the value less the mean of the re-runs.
      beyond: the value is above every re-run.
    """

    excess: Float[np.ndarray, "*m"]
    beyond: Bool[np.ndarray, "*m"]


def js_divergence(
    base: Float[np.ndarray, "t v"], changed: Float[np.ndarray, "t v"]
) -> Float[np.ndarray, " t"]:
    """Jensen and Shannon's divergence in bits: [KL(p || m) + KL(q || m)] / 2, m = (p + q) / 2.

    From 0 (the same) to 1 (nothing in common) (Lin 1991). To compare models, score both on the
    base run's tokens. A log-probability of -inf is a token that can't come.

    Args:
      base: log-probabilities of the next token, natural; rows are normalised exactly here.
      changed: likewise, with the intervention.

    Raises:
      ValueError: a row whose probabilities don't sum to 1 within 5% (logits, or NaN).
    """
    divergence = np.empty(len(base))
    for start in range(0, len(base), _ROWS):
        here = slice(start, start + _ROWS)
        p, q = _normalised("base", base[here]), _normalised("changed", changed[here])
        m = np.logaddexp(p, q) - np.log(2)
        divergence[here] = (_relative(p, m) + _relative(q, m)) / (2 * np.log(2))
    return np.clip(divergence, 0, 1)


def spread(value: Float[np.ndarray, " t"]) -> Spread:
    """Mean and 95th percentile (linear between order statistics); NaN if value is empty."""
    if not len(value):
        return Spread(float("nan"), float("nan"))
    return Spread(float(np.mean(value, dtype=np.float64)), float(np.quantile(value, 0.95)))


def top1_agrees(
    base: Float[np.ndarray, "t v"], changed: Float[np.ndarray, "t v"]
) -> Bool[np.ndarray, " t"]:
    """Where both give the most to the same token; of equals, the lowest id counts."""
    return base.argmax(axis=1) == changed.argmax(axis=1)


def flips(
    base: Int[np.ndarray, " n"], changed: Int[np.ndarray, " n"], right: Int[np.ndarray, " n"]
) -> Flips:
    """Answers before and after, by whether they were right.

    Args:
      base: answers, as any integers; a code such as -1 may stand for "no answer", a wrong one.
      changed: answers with the intervention.
      right: the right answers.

    Raises:
      ValueError: no prompt.
    """
    if not len(right):
        raise ValueError("right holds no prompt; flips need at least one")
    was, now, same = base == right, changed == right, base == changed
    cells = (was & now, was & ~now, ~was & now, ~was & ~now & ~same, ~was & same)
    return Flips(*(float(np.mean(cell)) for cell in cells))


def first_divergence(base: Int[np.ndarray, " s"], changed: Int[np.ndarray, " r"]) -> float:
    """Tokens before the first that differs (or is missing), over the length of base.

    1: changed begins with all of base. An empty base: NaN.
    """
    if not len(base):
        return float("nan")
    shared = min(len(base), len(changed))
    differs = np.flatnonzero(base[:shared] != changed[:shared])
    return float(differs[0] if len(differs) else shared) / len(base)


def levenshtein(a: Int[np.ndarray, " s"], b: Int[np.ndarray, " r"]) -> int:
    """Fewest insertions, deletions and substitutions of tokens from a to b (Levenshtein 1966)."""
    along = np.arange(len(b) + 1)
    row = along
    for i, token in enumerate(a):
        step = np.empty_like(row)
        step[0] = i + 1
        step[1:] = np.minimum(row[1:] + 1, row[:-1] + (b != token))
        # Insertions: min over j' <= j of step[j'] + (j - j').
        row = np.minimum.accumulate(step - along) + along
    return int(row[-1])


def levenshtein_similarity(a: Int[np.ndarray, " s"], b: Int[np.ndarray, " r"]) -> float:
    """1 - distance / max(s, r): 1 for equal texts (two empty ones too), 0 for nothing shared."""
    longest = max(len(a), len(b))
    return 1 - levenshtein(a, b) / longest if longest else 1.0


def rouge_l(base: Int[np.ndarray, " s"], changed: Int[np.ndarray, " r"]) -> float:
    """F1 of the longest common subsequence L of token ids: 2 L / (s + r) (Lin 2004, beta = 1).

    Equal to 2 P R / (P + R) with P = L / r and R = L / s. Two empty texts: 1; one empty: 0.
    """
    total = len(base) + len(changed)
    if not total:
        return 1.0
    row = np.zeros(len(changed) + 1, np.int64)
    for token in base:
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], row[:-1] + (changed == token)))
    return 2 * int(row[-1]) / total


def consistency(answer: Int[np.ndarray, "n samples"]) -> Consistency:
    """H = -sum_a p_a log2 p_a and max_a p_a, p_a the share of the samples with answer a.

    H of few samples is biased downwards: compare runs of equally many.

    Args:
      answer: of each prompt and seed, as any integers.

    Raises:
      ValueError: no samples.
    """
    samples = answer.shape[1]
    if not samples:
        raise ValueError("answer has no samples; it needs at least one per prompt")
    entropy, share = np.empty(len(answer)), np.empty(len(answer))
    for i, row in enumerate(answer):
        p = np.unique(row, return_counts=True)[1] / samples
        entropy[i], share[i] = np.sum(p * np.log2(1 / p)), p.max()
    return Consistency(entropy, share)


def perplexity_ratio(base: Float[np.ndarray, " t"], changed: Float[np.ndarray, " t"]) -> float:
    """Perplexity with the intervention over that without: exp(mean base - mean changed).

    Infinite if only changed has a -inf, 0 if only base has; both, or no token: NaN.

    Args:
      base: natural log-probabilities of the tokens of a neutral text.
      changed: of the same tokens, with the intervention.
    """
    if not len(base):
        return float("nan")
    before, after = np.mean(base, dtype=np.float64), np.mean(changed, dtype=np.float64)
    if np.isneginf(before) and np.isneginf(after):
        return float("nan")
    with np.errstate(over="ignore"):
        return float(np.exp(before - after))


def repetition(ids: Int[np.ndarray, " s"], *, n: int = 4) -> float:
    """rep-n: 1 - |different n-grams| / |n-grams| (Welleck et al. 2020); 0 if there is none.

    Raises:
      ValueError: n is less than 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if len(ids) < n:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(ids, n)
    return 1 - len(np.unique(grams, axis=0)) / len(grams)


def routing_drift(
    base: Int[np.ndarray, "t l k"],
    changed: Int[np.ndarray, "t l k2"],
    num_experts: int,
    *,
    where: Bool[np.ndarray, " t"] | None = None,
) -> Float[np.ndarray, " l"]:
    """D_l = 1 - mean over tokens of |A & B| / |A | B|, A and B the experts chosen in layer l.

    The layers after the one that was edited are those to read. A slot without an expert adds
    nothing to its set; two empty sets are the same. No token: NaN.

    Args:
      base: ids as `Routing.expert` has them, num_experts where there is no expert.
      changed: likewise, with the intervention; it may have more or fewer slots.
      num_experts: e, of each layer.
      where: the tokens to count; None: all.

    Raises:
      ValueError: an id out of range.
    """
    for name, ids in (("base", base), ("changed", changed)):
        if ids.size and (ids.min() < 0 or ids.max() > num_experts):
            raise ValueError(
                f"{name} holds {ids.min()}..{ids.max()}: ids go from 0 to {num_experts - 1}, and "
                f"{num_experts} means no expert"
            )
    on = np.ones(len(base), bool) if where is None else where
    drift = np.full(base.shape[1], np.nan)
    if not on.any():
        return drift
    for layer in range(base.shape[1]):
        a, b = (_members(ids[on, layer], num_experts) for ids in (base, changed))
        either = np.sum(a | b, axis=1)
        jaccard = np.where(either > 0, np.sum(a & b, axis=1) / np.maximum(either, 1), 1.0)
        drift[layer] = 1 - jaccard.mean()
    return drift


def above_floor(value: Float[np.ndarray, "*m"], reruns: Float[np.ndarray, " r *m"]) -> AboveFloor:
    """A measure less its noise floor: the mean of the measure over re-runs with no intervention.

    Args:
      value: of base against intervention.
      reruns: of base against base again, r times.

    Raises:
      ValueError: no re-run.
    """
    if not len(reruns):
        raise ValueError("reruns holds no run; the floor needs at least one")
    return AboveFloor(
        np.asarray(value - reruns.mean(axis=0)), np.asarray(value > reruns.max(axis=0))
    )


def _normalised(name: str, logp: Float[np.ndarray, "t v"]) -> Float[np.ndarray, "t v"]:
    """The logs less log sum p, in float64, if the sum is about 1."""
    logp = np.asarray(logp, np.float64)
    with np.errstate(over="ignore"):
        total = np.exp(logp).sum(axis=1, keepdims=True)
    if not np.all(np.abs(total - 1) <= 0.05):
        raise ValueError(
            f"{name} has rows that sum to {total.min():.3g}..{total.max():.3g} as probabilities; "
            f"must be log-probabilities (log_softmax of the logits)"
        )
    return logp - np.log(total)


def _relative(p: Float[np.ndarray, "t v"], m: Float[np.ndarray, "t v"]) -> Float[np.ndarray, " t"]:
    """KL(p || m) in nats from logs, 0 log 0 = 0."""
    possible = p > -np.inf
    ratio = np.subtract(p, m, out=np.zeros_like(p), where=possible)
    return np.sum(np.exp(p) * ratio, axis=1)


def _members(ids: Int[np.ndarray, "t k"], num_experts: int) -> Bool[np.ndarray, "t e"]:
    """Which experts are among the ids of each token."""
    chosen = np.zeros((len(ids), num_experts + 1), bool)
    np.put_along_axis(chosen, ids, True, axis=1)
    return chosen[:, :-1]
