"""Do the tokens of a factor carry the sentence embedding? ERASER's two questions, asked of factors.

With c(W) the cosine between the target embedding and the one predicted from the tokens W only,
and F the tokens in question, out of all tokens A of a text:

    comprehensiveness = c(A) - c(A without F)      large: the text misses them
    sufficiency       = c(A) - c(F)                small: they would be enough

Nothing here knows the model: it is a function from token masks to cosines.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.rationale.results import TextRationale

# One mask per text (True = the model may see the token) to one cosine per text.
Score = Callable[[list[np.ndarray]], np.ndarray]

THRESHOLDS = (0.01, 0.05, 0.10, 0.20, 0.50)


def _asker(score: Score) -> Score:
    """Check what `score` answers, and answer 0 for an empty mask without asking."""

    def ask(masks: list[np.ndarray]) -> np.ndarray:
        empty = np.array([not mask.any() for mask in masks])
        safe = [np.ones_like(m) if e else m for m, e in zip(masks, empty, strict=True)]
        cosines = np.asarray(score(safe), np.float64)
        if cosines.shape != (len(masks),):
            raise ValueError(f"score gave shape {cosines.shape} for {len(masks)} texts")
        if not np.isfinite(cosines[~empty]).all():
            raise ValueError("score gave a cosine that is not finite")
        return np.where(empty, 0.0, cosines)

    return ask


def _first(values_s: Float[np.ndarray, " s"], count: int) -> Bool[np.ndarray, " s"]:
    """Mark the `count` largest values, the earlier one first on a tie."""
    chosen = np.zeros(values_s.shape, bool)
    chosen[np.argsort(-values_s, kind="stable")[:count]] = True
    return chosen


def faithfulness(
    texts: Sequence[TextRationale],
    score: Score,
    *,
    seed: int = 0,
    max_factors: int = 3,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, float]:
    """Comprehensiveness and sufficiency of the factors, beside random tokens of equal number.

    Averages over pairs (text, factor), for the `max_factors` factors that took most tokens of
    each text. F is the factor's own tokens (argmax), or, for the figures at q, the
    max(1, ceil(q s)) tokens with the highest probability of the factor; AOPC is the mean over q.
    c of no tokens at all is 0. For each base in (comprehensiveness, sufficiency):

    base_compat, base_random, base_corrected (= compat - random): F = the factor's tokens;
    base_aopc_compat, base_aopc_random, base_aopc_corrected: mean over the thresholds;
    base_at_5, base_at_5_random, ...: the curve, by percent of tokens.

    Args:
      texts: the texts that `score` knows.
      score: takes one mask [s] per text, in the order of `texts`, and returns one cosine per
        text. Called 1 + 4 max_factors (1 + len(thresholds)) times; no mask is ever empty.
      seed: seed of the random tokens.
      max_factors: factors looked at in each text.
      thresholds: parts of the tokens, each in (0, 1].

    Raises:
      ValueError: a threshold or `max_factors` is out of range, or `score` answers with another
        number of cosines or with NaN.
    """
    if max_factors < 1:
        raise ValueError(f"max_factors={max_factors} must be at least 1")
    if not thresholds or not all(0 < q <= 1 for q in thresholds):
        raise ValueError(f"thresholds={tuple(thresholds)} must be one or more numbers in (0, 1]")
    if not any(len(text.probs) for text in texts):
        return {}
    ask, rng = _asker(score), np.random.default_rng(seed)
    whole = [np.ones(len(text.probs), bool) for text in texts]
    full = ask(whole)
    shares = [np.bincount(t.probs.argmax(axis=1), minlength=t.probs.shape[1]) for t in texts]
    cuts = [("", 0.0)] + [(f"_at_{100 * q:g}", q) for q in thresholds]
    kept: dict[str, list[np.ndarray]] = {}

    def record(name: str, chosen: list[np.ndarray], valid: np.ndarray) -> None:
        # Where a text has no such factor the whole text is asked for and the answer left out.
        outside = [w if not v else ~c for w, c, v in zip(whole, chosen, valid, strict=True)]
        inside = [w if not v else c for w, c, v in zip(whole, chosen, valid, strict=True)]
        kept.setdefault(f"comprehensiveness{name}", []).append((full - ask(outside))[valid])
        kept.setdefault(f"sufficiency{name}", []).append((full - ask(inside))[valid])

    for slot in range(min(max_factors, max(len(share) for share in shares))):
        factors = [int(np.argsort(-share, kind="stable")[slot]) for share in shares]
        valid = np.array([share[k] > 0 for share, k in zip(shares, factors, strict=True)])
        if not valid.any():
            break
        for name, q in cuts:
            chosen, random = [], []
            for text, k in zip(texts, factors, strict=True):
                own = text.probs.argmax(axis=1) == k
                if q:
                    own = _first(text.probs[:, k], max(1, math.ceil(q * len(own) - 1e-9)))
                chosen.append(own)
                random.append(_first(rng.random(len(own)), int(own.sum())))
            record(name or "_compat", chosen, valid)
            record(f"{name}_random", random, valid)
    means = {name: float(np.concatenate(values).mean()) for name, values in kept.items()}
    return _summary(means, [name for name, q in cuts if q])


def _summary(means: dict[str, float], points: list[str]) -> dict[str, float]:
    """Add the mean over thresholds (AOPC) and the differences from random tokens."""
    found: dict[str, float] = {}
    for base in ("comprehensiveness", "sufficiency"):
        for kind in ("compat", "random"):
            end = "_random" if kind == "random" else ""
            found[f"{base}_{kind}"] = means[f"{base}_{kind}"]
            curve = [means[f"{base}{point}{end}"] for point in points]
            found[f"{base}_aopc_{kind}"] = float(np.mean(curve))
            found |= {f"{base}{p}{end}": v for p, v in zip(points, curve, strict=True)}
        for part in (base, f"{base}_aopc"):
            found[f"{part}_corrected"] = found[f"{part}_compat"] - found[f"{part}_random"]
    return found
