"""ERASER's measures of rationales (DeYoung et al. 2020), as its program computes them and mended.

Two forms of each, told apart by the suffix:

* `_compat`: the value that the benchmark's program gives, so that figures can be compared with
  published ones. Two differences only: where the program divides by zero (nothing was predicted,
  nothing is gold) the value is 0, and an AUPRC is taken only where its label occurs.
* `_corrected`: tokens without a gold label are left out; each gold span can be found once only;
  AUPRC is average precision and skips texts where it is trivial.

An instance is one label in one text. Its gold rationale is the tokens that carry the label, its
prediction the tokens whose factor maps to it, its soft score the probability of that factor.
ERASER's other half, comprehensiveness and sufficiency, is in `faithfulness`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.rationale.results import TextRationale

Span = tuple[int, int]


def _divide(over: int | float, under: int | float) -> float:
    """Quotient, 0 where under is 0."""
    return over / under if under else 0.0


def _f1(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall, 0 where both are 0."""
    return _divide(2 * precision * recall, precision + recall)


def _mean(values: Sequence[float]) -> float:
    """Plain mean, 0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0


def runs(where_s: Bool[np.ndarray, " s"]) -> list[Span]:
    """Return the maximal runs of True as (first, past the end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], where_s.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def token_f1(
    gold: Sequence[Bool[np.ndarray, " _"]], predicted: Sequence[Bool[np.ndarray, " _"]]
) -> dict[str, float]:
    """Token precision, recall and F1: mean over instances, and pooled (`micro_`).

    Per instance P = |G & P|/|P|, R = |G & P|/|G|, F1 = 2PR/(P+R), 0 where undefined; precision,
    recall and f1 are the means of the three over the instances that have gold or predicted tokens.

    Args:
      gold: for each instance, which tokens are gold.
      predicted: for each instance, which tokens are predicted.

    Raises:
      ValueError: another number of instances or of tokens on one side.
    """
    hits, guessed, real = [], [], []
    for g, p in zip(gold, predicted, strict=True):
        if g.shape != p.shape:
            raise ValueError(f"gold has {g.size} tokens but predicted has {p.size}")
        if g.any() or p.any():
            hits.append(int((g & p).sum()))
            guessed.append(int(p.sum()))
            real.append(int(g.sum()))
    precision = [_divide(h, n) for h, n in zip(hits, guessed, strict=True)]
    recall = [_divide(h, n) for h, n in zip(hits, real, strict=True)]
    f1 = [_f1(p, r) for p, r in zip(precision, recall, strict=True)]
    pooled = _divide(sum(hits), sum(guessed)), _divide(sum(hits), sum(real))
    return {
        "precision": _mean(precision),
        "recall": _mean(recall),
        "f1": _mean(f1),
        "micro_precision": pooled[0],
        "micro_recall": pooled[1],
        "micro_f1": _f1(*pooled),
    }


def _overlaps(predicted: Sequence[Span], gold: Sequence[Span]) -> Float[np.ndarray, "p g"]:
    """Intersection over union of each predicted span with each gold span."""
    p = np.array(predicted, np.float64).reshape(-1, 1, 2)
    g = np.array(gold, np.float64).reshape(1, -1, 2)
    both = np.minimum(p[..., 1], g[..., 1]) - np.maximum(p[..., 0], g[..., 0])
    both = np.maximum(both, 0.0)
    union = (p[..., 1] - p[..., 0]) + (g[..., 1] - g[..., 0]) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def iou_f1_compat(
    gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]], *, threshold: float = 0.5
) -> dict[str, float]:
    """Span F1 as ERASER's program has it: a predicted span counts if ANY gold span overlaps enough.

    hits = #{p: max_g IoU(p, g) >= threshold}; P = hits / #predicted averaged over the instances
    with predictions, R = hits / #gold over the instances with gold spans, F1 from these averages.
    Two predictions can hit one gold span, so R and F1 can be more than 1: gold [0,4) with
    predictions [0,2) and [2,4) gives R = 2 and F1 = 4/3.

    Args:
      gold: for each instance its gold spans (first token, past the end).
      predicted: for each instance its predicted spans.
      threshold: least intersection over union.
    """
    precision, recall = [], []
    hits = guessed = real = 0
    for spans, guesses in zip(gold, predicted, strict=True):
        found = int((_overlaps(guesses, spans).max(axis=1, initial=0.0) >= threshold).sum())
        hits, guessed, real = hits + found, guessed + len(guesses), real + len(spans)
        if guesses:
            precision.append(found / len(guesses))
        if spans:
            recall.append(found / len(spans))
    means = _mean(precision), _mean(recall)
    micro = _f1(_divide(hits, guessed), _divide(hits, real))
    return {"precision": means[0], "recall": means[1], "f1": _f1(*means), "micro_f1": micro}


def iou_f1_corrected(
    gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]], *, threshold: float = 0.5
) -> dict[str, float]:
    """Span F1 with each gold span found at most once.

    hits = most pairs (p, g) with IoU(p, g) >= threshold, each span in one pair at most; P, R and
    F1 per instance, then their means over the instances with gold or predicted spans. All in 0..1.

    Args:
      gold: for each instance its gold spans (first token, past the end).
      predicted: for each instance its predicted spans.
      threshold: least intersection over union.
    """
    from scipy.optimize import linear_sum_assignment  # here, as it takes a while

    precision, recall, f1 = [], [], []
    hits = guessed = real = 0
    for spans, guesses in zip(gold, predicted, strict=True):
        if not spans and not guesses:
            continue
        match = _overlaps(guesses, spans) >= threshold
        found = int(match[linear_sum_assignment(match, maximize=True)].sum())
        hits, guessed, real = hits + found, guessed + len(guesses), real + len(spans)
        precision.append(_divide(found, len(guesses)))
        recall.append(_divide(found, len(spans)))
        f1.append(_f1(precision[-1], recall[-1]))
    micro = _f1(_divide(hits, guessed), _divide(hits, real))
    return {
        "precision": _mean(precision),
        "recall": _mean(recall),
        "f1": _mean(f1),
        "micro_f1": micro,
    }


def _curve(
    gold: Bool[np.ndarray, " s"], score: Float[np.ndarray, " s"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Precision and recall at each distinct score, from the highest score down."""
    order = np.argsort(-score, kind="stable")
    score, gold = score[order], gold[order]
    last = np.append(np.flatnonzero(np.diff(score)), score.size - 1)
    hits = np.cumsum(gold)[last].astype(np.float64)
    return hits / (last + 1), hits / gold.sum()


def auprc_compat(
    gold: Sequence[Bool[np.ndarray, " _"]], scores: Sequence[Float[np.ndarray, " _"]]
) -> float:
    """Trapezoid area under precision over recall, mean over instances with gold tokens.

    As in ERASER's program: instances where every token is gold count (with 1), and the straight
    line to (recall 0, precision 1) flatters: constant scores with half the tokens gold give 0.75.

    Args:
      gold: for each instance, which tokens are gold.
      scores: for each instance, the soft score of each token.
    """
    areas = []
    for g, s in zip(gold, scores, strict=True):
        if g.any():
            precision, recall = _curve(g, s)
            heights = (precision + np.append(1.0, precision[:-1])) / 2
            areas.append(float((np.diff(recall, prepend=0.0) * heights).sum()))
    return _mean(areas)


def auprc_corrected(
    gold: Sequence[Bool[np.ndarray, " _"]], scores: Sequence[Float[np.ndarray, " _"]]
) -> float:
    """Average precision sum_n (R_n - R_{n-1}) P_n, mean over instances with both kinds of token.

    Constant scores give the share of gold tokens, which is what guessing gives.

    Args:
      gold: for each instance, which tokens are gold.
      scores: for each instance, the soft score of each token.
    """
    values = []
    for g, s in zip(gold, scores, strict=True):
        if g.any() and not g.all():
            precision, recall = _curve(g, s)
            values.append(float((np.diff(recall, prepend=0.0) * precision).sum()))
    return _mean(values)


def rationale_scores(
    texts: Sequence[TextRationale], mapping: Int[np.ndarray, " e"]
) -> dict[str, float]:
    """Score the rationales of labelled texts in both forms.

    Names: token_{precision,recall,f1,micro_precision,micro_recall,micro_f1}, iou_{precision,
    recall,f1,micro_f1} (at 0.5) and auprc, each with `_compat` and `_corrected`. Spans are maximal
    runs of tokens, so two gold fragments of one label that touch are one span.

    Args:
      texts: texts with gold labels (those without are left out).
      mapping: [e] label of each factor, -1 = none.
    """
    found: dict[str, float] = {}
    for form in ("compat", "corrected"):
        gold, predicted, scored, scores = [], [], [], []
        for text in texts:
            if text.labels is None or not (text.labels >= 0).any():
                continue
            labels, guess = text.labels, mapping[text.probs.argmax(axis=1)]
            keep = np.full(labels.shape, True)
            if form == "corrected":
                keep = labels >= 0
                guess = np.where(keep, guess, -1)
            for label in np.union1d(labels, guess):
                if label >= 0:
                    gold.append(labels == label)
                    predicted.append(guess == label)
                    scored.append(gold[-1][keep])
                    soft = text.probs[:, mapping == label].sum(axis=1, dtype=np.float64)
                    scores.append(soft[keep])
        spans = [runs(g) for g in gold], [runs(p) for p in predicted]
        iou_f1, auprc = iou_f1_compat, auprc_compat
        if form == "corrected":
            iou_f1, auprc = iou_f1_corrected, auprc_corrected
        found |= {f"token_{n}_{form}": v for n, v in token_f1(gold, predicted).items()}
        found |= {f"iou_{n}_{form}": v for n, v in iou_f1(*spans).items()}
        found[f"auprc_{form}"] = auprc(scored, scores)
    return found
