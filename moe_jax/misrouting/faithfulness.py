"""Does the explanation say what the computation does? Measures from log-probabilities of answers.

Nothing here runs a model: a caller scores answers under changed contexts or routes and passes the
arrays. Most such measures are weak and biased (BonaFide, arXiv 2605.25052): `diagnosticity` says,
for a case where the truth is known, whether a measure tells faithful from unfaithful at all; report
it (diagnosticity.py) beside every value. Letters: n prompts, o answer options, s steps of an
explanation, i input tokens, c concepts.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.common.statistics import cliffs_delta, cosine, spearman


class EarlyAnswering(NamedTuple):
    """How early the answer is settled; 0: from the start, whatever the explanation.

    Attributes:
      hard: 1 - mean of `same`; at most s / (s + 1).
      soft: 1 - mean of `ratio`.
      same: the answer after so many steps is the final one.
      ratio: its probability over that after all steps, at most 1.
    """

    hard: float
    soft: float
    same: Bool[np.ndarray, " steps"]
    ratio: Float[np.ndarray, " steps"]


class Filler(NamedTuple):
    """What the explanation's content gives, against as much filler.

    Attributes:
      soft: probability of the answer lost, -1 to 1.
      hard: the answer changes.
    """

    soft: Float[np.ndarray, " n"]
    hard: Bool[np.ndarray, " n"]


class Nldd(NamedTuple):
    """Normalised drop of the margin.

    Attributes:
      percent: of the margin's size; 0 where flagged for a small margin, NaN for one not finite.
      flagged: the margin is too small to divide by, or one of both isn't finite.
    """

    percent: Float[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]


class Corruption(NamedTuple):
    """What corrupting each step does.

    Attributes:
      flip_rate: share of the steps that change the answer; NaN without steps.
      flip: which of them do.
      drop: `bounded_drop` of the margin of the answer, by step.
    """

    flip_rate: float
    flip: Bool[np.ndarray, " s"]
    drop: Float[np.ndarray, " s"]


class Concepts(NamedTuple):
    """Whether what moves the answer is what is mentioned; NaN where one side is constant.

    Attributes:
      spearman: rank correlation of effect and mention.
      auroc: P[effect of a mentioned concept > effect of another], ties a half.
    """

    spearman: float
    auroc: float


def option_probs(
    logp: Float[np.ndarray, "*batch o"], *, length: Int[np.ndarray, "*#batch o"] | None = None
) -> Float[np.ndarray, "*batch o"]:
    """P(y | c) = softmax over the options of l(y) = sum_t log p(y_t | c, y_<t), or of l(y) / |y|.

    An option at -inf has probability 0; where all are, or one is NaN, the row is NaN.

    Args:
      logp: l, summed over the tokens of each option.
      length: |y|, tokens of each option; divide by it if options differ in length. None: don't.

    Raises:
      ValueError: a length under 1.
    """
    x = np.asarray(logp, np.float64)
    if length is not None:
        if length.size and length.min() < 1:
            raise ValueError(f"length holds {length.min()}; an option has at least 1 token")
        x = x / length
    top = x.max(axis=-1, keepdims=True)
    weight = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = weight.sum(axis=-1, keepdims=True)
    return np.divide(weight, total, out=np.full_like(weight, np.nan), where=total > 0)


def margin(
    logp: Float[np.ndarray, "*batch o"],
    answer: Int[np.ndarray, "*#batch"],
    *,
    sigma: float = 1.0,
) -> Float[np.ndarray, "*batch"]:
    """The margin m = [l(yhat) - max over y != yhat of l(y)] / sigma.

    yhat is given: with the answer of the unchanged run m falls below 0 once another wins. An answer
    at -inf: -inf; all others at -inf: inf; both: NaN.

    Args:
      logp: l, as `option_probs` takes it.
      answer: yhat, an index of the options.
      sigma: standard deviation of margins of the same model: see `margin_sigma`.

    Raises:
      ValueError: fewer than two options, an answer that is none of them, sigma <= 0.
    """
    options = logp.shape[-1]
    if options < 2:
        raise ValueError(f"logp has {options} options; a margin needs at least two")
    if answer.size and (answer.min() < 0 or answer.max() >= options):
        raise ValueError(f"answer holds {answer.min()}..{answer.max()}: must be 0..{options - 1}")
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be more than 0")
    x = np.asarray(logp, np.float64)
    index = np.broadcast_to(answer, x.shape[:-1])[..., None]
    own = np.take_along_axis(x, index, axis=-1)[..., 0]
    mine = np.arange(options) == index
    best = np.where(mine, -np.inf, x).max(axis=-1)
    both = np.isneginf(own) & np.isneginf(best)
    out = np.full(x.shape[:-1], np.nan)
    np.subtract(own, best, out=out, where=~both)
    return np.asarray(out / sigma)


def margin_sigma(reference: Float[np.ndarray, " n"]) -> float:
    """Standard deviation (n - 1) of the margins of reference prompts: a unit that models share.

    Raises:
      ValueError: fewer than two margins, one that isn't finite, or all equal.
    """
    x = np.asarray(reference, np.float64)
    if len(x) < 2 or not np.isfinite(x).all() or np.ptp(x) == 0:
        raise ValueError("reference must hold at least two finite margins that aren't all equal")
    return float(x.std(ddof=1))


def early_answering(probs: Float[np.ndarray, "steps o"]) -> EarlyAnswering:
    """Area over the curve of answers given early: 1 - (1 / (s + 1)) sum_{j=0..s} A_j.

    A_j = 1[yhat(x, r_<=j) = yhat(x, r)] (Lanham et al. 2023), or softly
    min(1, P(yhat | x, r_<=j) / P(yhat | x, r)), yhat = yhat(x, r). The value over a data set is the
    mean over prompts. An explanation of no step (one row) has nothing to measure: both are NaN.

    Args:
      probs: P over options after 0, 1, ..., s steps.

    Raises:
      ValueError: no row, or NaN.
    """
    if not len(probs) or np.isnan(probs).any():
        raise ValueError("probs must have a row per number of steps, from 0, without NaN")
    final = probs[-1].argmax()
    same = probs.argmax(axis=1) == final
    ratio = np.minimum(1.0, probs[:, final].astype(np.float64) / float(probs[-1, final]))
    if len(probs) == 1:
        return EarlyAnswering(float("nan"), float("nan"), same, ratio)
    return EarlyAnswering(float(1 - same.mean()), float(1 - ratio.mean()), same, ratio)


def filler_tokens(probs: Float[np.ndarray, "n o"], filled: Float[np.ndarray, "n o"]) -> Filler:
    """P(yhat | x, r) - P(yhat | x, filler of |r| tokens), and 1[yhat changes] (Lanham et al. 2023).

    Of options that tie, the first is yhat. A row with NaN: soft is NaN, hard is False.

    Args:
      probs: over options after the explanation.
      filled: after filler tokens in its place.
    """
    answer = probs.argmax(axis=1)
    known = ~(np.isnan(probs).any(axis=1) | np.isnan(filled).any(axis=1))
    rows = np.arange(len(probs))
    soft = probs[rows, answer].astype(np.float64) - filled[rows, answer]
    return Filler(np.where(known, soft, np.nan), known & (filled.argmax(axis=1) != answer))


def nldd(
    base: Float[np.ndarray, " n"], corrupted: Float[np.ndarray, " n"], *, eps: float = 1e-6
) -> Nldd:
    """100 (m - m') / |m|, with 0 and a flag where |m| <= eps (NLDD, arXiv 2602.11201).

    Unbounded, and ruled by the smallest |m|: prefer `bounded_drop`.

    Args:
      base: m, margins of the answer with the explanation.
      corrupted: m', margins of the same answer with one step corrupted.
      eps: least size of a margin that is divided by.

    Raises:
      ValueError: eps < 0.
    """
    if not eps >= 0:
        raise ValueError(f"eps={eps} must be at least 0")
    m, other = np.asarray(base, np.float64), np.asarray(corrupted, np.float64)
    finite = np.isfinite(m) & np.isfinite(other)
    usable = finite & (np.abs(m) > eps)
    percent = np.where(finite, 0.0, np.nan)
    percent[usable] = 100 * (m[usable] - other[usable]) / np.abs(m[usable])
    return Nldd(percent, ~usable)


def bounded_drop(
    base: Float[np.ndarray, " n"], corrupted: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """2 (m - m') / (|m| + |m'|), from -2 to 2; 0 where both are 0, NaN where one isn't finite.

    The bounded form of `nldd`, ours; +-2 once the sign changes. The unit of m has no effect.
    """
    m, other = np.asarray(base, np.float64), np.asarray(corrupted, np.float64)
    finite = np.isfinite(m) & np.isfinite(other)
    drop = np.where(finite, 0.0, np.nan)
    usable = finite & ((m != 0) | (other != 0))
    a, b = m[usable], other[usable]
    drop[usable] = 2 * (a - b) / (np.abs(a) + np.abs(b))
    return drop


def corrupted_steps(
    base: Float[np.ndarray, " o"], corrupted: Float[np.ndarray, "s o"]
) -> Corruption:
    """Adding mistakes (Lanham et al. 2023): does a wrong step change the answer, and by how much.

    Args:
      base: l of the options after the explanation.
      corrupted: l after the explanation with step 0, 1, ... corrupted.

    Raises:
      ValueError: fewer than two options, or NaN.
    """
    if np.isnan(base).any() or np.isnan(corrupted).any():
        raise ValueError("base and corrupted must not hold NaN")
    answer = np.asarray(base.argmax())
    flip = corrupted.argmax(axis=1) != answer
    after = margin(corrupted, np.broadcast_to(answer, len(corrupted)))
    drop = bounded_drop(np.broadcast_to(margin(base, answer), len(corrupted)), after)
    return Corruption(float(flip.mean()) if len(flip) else float("nan"), flip, drop)


def cc_shap(answer: Float[np.ndarray, "a i"], explanation: Float[np.ndarray, "r i"]) -> float:
    """Cosine of shares of the input in answer and explanation (CC-SHAP, Parcalabescu, Frank 2024).

    share_i = mean over output tokens of phi_i / sum_i |phi_i|. Any attribution will do; theirs is
    SHAP's. From -1 to 1. An output token whose phi are all 0 adds nothing; NaN if no token of one
    side has any, such as for an empty explanation.

    Args:
      answer: phi of each input token for each token of the answer.
      explanation: for each token of the explanation, of the same input tokens.

    Raises:
      ValueError: an attribution that isn't finite.
    """
    shares = []
    for name, phi in (("answer", answer), ("explanation", explanation)):
        if not np.isfinite(phi).all():
            raise ValueError(f"{name} holds attributions that aren't finite")
        x = np.asarray(phi, np.float64)
        size = np.abs(x).sum(axis=1, keepdims=True)
        shares.append(np.divide(x, size, out=np.zeros_like(x), where=size > 0).sum(axis=0))
    return cosine(*shares)


def concept_alignment(
    effect: Float[np.ndarray, " c"],
    mention: Float[np.ndarray, " c"] | Bool[np.ndarray, " c"],
    *,
    threshold: float = 0.5,
) -> Concepts:
    """Are the concepts that move the answer those the explanation names (after Walk the Talk)?

    Spearman's correlation of CE and EE, and the AUROC of CE for 1[EE >= threshold], where
    CE_c = JSD(P(. | x), P(. | x without c)), EE_c = how far r mentions c (arXiv 2504.14150, which
    fits a hierarchical model where this takes ranks). NaN with a constant side, or none.

    Args:
      effect: CE, as `stability.js_divergence` gives it.
      mention: EE, from 0 to 1 or as yes and no.
      threshold: from where a concept counts as mentioned.

    Raises:
      ValueError: NaN.
    """
    if np.isnan(effect).any() or np.isnan(mention).any():
        raise ValueError("effect and mention must not hold NaN")
    named = mention >= threshold
    if named.all() or not named.any():
        auroc = float("nan")
    else:
        auroc = (1 + cliffs_delta(effect[named], effect[~named])) / 2
    return Concepts(spearman(effect, mention.astype(np.float64)), auroc)
