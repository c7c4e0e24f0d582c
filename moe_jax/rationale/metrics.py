"""Factors against gold labels, and the state of the factors: counts in, plain figures out.

A map from factors to labels is learned from the counts of the training tokens and applied to the
test tokens; no figure here looks at a test label before the map is fixed. Tokens without a gold
label (-1) are left out everywhere. All arithmetic is in float64.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln, xlogy

from moe_jax.rationale.results import LabelScores


def _check_range(name: str, values: Int[np.ndarray, " t"], low: int, high: int) -> None:
    """Raise ValueError unless every value is in low..high-1."""
    if values.size and (values.min() < low or values.max() >= high):
        raise ValueError(
            f"{name} holds {values.min()}..{values.max()}; it must lie in {low}..{high - 1}"
        )


def _check_pair(name: str, first: np.ndarray, other: str, second: np.ndarray) -> None:
    """Raise ValueError unless two token arrays have the same length."""
    if first.shape != second.shape:
        raise ValueError(f"{name} has {first.size} tokens but {other} has {second.size}")


def contingency(
    assigned: Int[np.ndarray, " t"],
    gold: Int[np.ndarray, " u"],
    *,
    num_factors: int,
    num_labels: int,
) -> Int[np.ndarray, "e labels"]:
    """Count tokens by factor and gold label: counts[k, l] = #{i: assigned_i = k, gold_i = l}.

    Args:
      assigned: [t] factor of each token, 0..num_factors-1.
      gold: [t] gold label of each token, -1 where there is none (left out).
      num_factors: number of factors e.
      num_labels: number of labels.

    Raises:
      ValueError: lengths differ, or a factor or label is out of range.
    """
    _check_pair("assigned", assigned, "gold", gold)
    _check_range("assigned", assigned, 0, num_factors)
    _check_range("gold", gold, -1, num_labels)
    known = gold >= 0
    cell = assigned[known].astype(np.int64) * num_labels + gold[known]
    counts = np.bincount(cell, minlength=num_factors * num_labels)
    return counts.reshape(num_factors, num_labels).astype(np.int64)


def hungarian_map(counts: Int[np.ndarray, "e labels"]) -> Int[np.ndarray, " e"]:
    """Return the one-to-one map of factors to labels that puts most tokens on the diagonal.

    map = argmax over one-to-one maps of sum_k counts[k, map_k] (Kuhn 1955). A factor left without
    a label (more factors than labels), or matched with a label it shares no token with, gets -1.

    Args:
      counts: `contingency` of the training tokens.
    """
    from scipy.optimize import linear_sum_assignment  # here, as it takes a while

    mapping = np.full(counts.shape[0], -1, dtype=np.int64)
    if counts.size:
        factors, labels = linear_sum_assignment(counts, maximize=True)
        mapping[factors] = np.where(counts[factors, labels] > 0, labels, -1)
    return mapping


def many_to_one_map(counts: Int[np.ndarray, "e labels"]) -> Int[np.ndarray, " e"]:
    """Return the most frequent label of each factor; -1 for a factor without labelled tokens.

    map_k = argmax_l counts[k, l] (the lowest label on a tie). Several factors may share a label,
    so the scores under it can only grow with the number of factors: never compare them across
    different numbers of factors.

    Args:
      counts: `contingency` of the training tokens.
    """
    if not counts.size:
        return np.full(counts.shape[0], -1, dtype=np.int64)
    return np.where(counts.max(axis=1) > 0, counts.argmax(axis=1), -1).astype(np.int64)


def label_counts(
    predicted: Int[np.ndarray, " t"], gold: Int[np.ndarray, " u"], num_labels: int
) -> Int[np.ndarray, "3 labels"]:
    """Count true positives, predictions and gold tokens of each label.

    Args:
      predicted: [t] predicted label, -1 = none.
      gold: [t] gold label, -1 = none: such tokens count nowhere, whatever was predicted.
      num_labels: number of labels.

    Raises:
      ValueError: lengths differ, or a label is out of range.
    """
    _check_pair("predicted", predicted, "gold", gold)
    _check_range("predicted", predicted, -1, num_labels)
    _check_range("gold", gold, -1, num_labels)
    known = gold >= 0
    predicted, gold = predicted[known], gold[known]
    # Shifted by one, so that a prediction of -1 falls in a bin that is cut off.
    counts = [
        np.bincount(values + 1, minlength=num_labels + 1)[1:]
        for values in (gold[predicted == gold], predicted, gold)
    ]
    return np.stack(counts).astype(np.int64)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Quotient in float64, 0 where `under` is 0."""
    over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
    return np.divide(over, under, out=np.zeros(np.broadcast(over, under).shape), where=under > 0)


def scores_from_counts(counts: Int[np.ndarray, "3 labels"]) -> LabelScores:
    """Turn `label_counts` into precision, recall and F1.

    P = tp / predicted, R = tp / support, F1 = 2 tp / (predicted + support), each 0 where its
    denominator is 0; the macro figures are plain means over the labels with support > 0.
    """
    hits, predicted, support = counts
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    f1 = _ratio(2 * hits, predicted + support)
    occurs = support > 0
    macro = [float(x[occurs].mean()) if occurs.any() else 0.0 for x in (precision, recall, f1)]
    return LabelScores(precision, recall, f1, support, *macro)


def score_labels(
    predicted: Int[np.ndarray, " t"], gold: Int[np.ndarray, " u"], num_labels: int
) -> LabelScores:
    """Score predicted token labels against gold ones.

    A token whose gold label is -1 is left out. A predicted -1 (its factor has no label) is a
    missed token: it lowers the recall of its gold label and the precision of none.

    Args:
      predicted: [t] predicted label or -1.
      gold: [t] gold label or -1.
      num_labels: number of labels.

    Raises:
      ValueError: lengths differ, or a label is out of range.
    """
    return scores_from_counts(label_counts(predicted, gold, num_labels))


def macro_f1_interval(
    predicted: Sequence[Int[np.ndarray, " _"]],
    gold: Sequence[Int[np.ndarray, " _"]],
    num_labels: int,
    *,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of the macro F1 over documents (the map of factors to labels is fixed).

    Documents, not tokens, are drawn with replacement, because the tokens of one document depend
    on each other; the interval is between the (1-level)/2 and (1+level)/2 quantiles.

    Args:
      predicted: predicted labels of each document, [s].
      gold: gold labels of each document, [s].
      num_labels: number of labels.
      seed: seed of the draws.
      draws: number of resamples.
      level: coverage aimed at, between 0 and 1.

    Raises:
      ValueError: the lists differ in length, or `draws` or `level` is out of range.
    """
    if len(predicted) != len(gold):
        raise ValueError(f"predicted has {len(predicted)} documents but gold has {len(gold)}")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws={draws}, level={level}: draws must be >= 1, level in (0, 1)")
    each = [label_counts(p, g, num_labels) for p, g in zip(predicted, gold, strict=True)]
    # Documents without gold tokens say nothing; leaving them in would only add empty draws.
    each = [counts for counts in each if counts[2].any()]
    if not each:
        return 0.0, 0.0
    documents = np.stack(each).reshape(len(each), 3 * num_labels).astype(np.float64)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), size=draws)
    hits, guessed, support = (weights @ documents).reshape(draws, 3, num_labels).swapaxes(0, 1)
    f1, occurs = _ratio(2 * hits, guessed + support), support > 0
    macro = (f1 * occurs).sum(axis=1) / occurs.sum(axis=1)
    low, high = np.quantile(macro, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def collapse_monitors(
    probs_te: Float[np.ndarray, "t e"], *, dead_below: float = 0.01
) -> dict[str, float]:
    """Tell whether the factors are all in use and whether tokens are assigned sharply.

    usage_perplexity = exp H(mean_t probs), between 1 (one factor takes all) and e (all even);
    dead_factors = factors whose share of tokens (argmax) is below dead_below / e;
    max_share = largest share of tokens (argmax) of one factor;
    token_entropy = mean_t H(probs_t) in nats, relative_entropy = the same over log e, 0..1.
    All are 0 for no tokens, except dead_factors, which is then e.

    Args:
      probs_te: [t, e] factor probabilities of each token.
      dead_below: part of the even share 1/e below which a factor counts as dead.
    """
    num_tokens, num_factors = probs_te.shape
    names = ("usage_perplexity", "dead_factors", "max_share", "token_entropy", "relative_entropy")
    if num_tokens == 0:
        return dict.fromkeys(names, 0.0) | {"dead_factors": float(num_factors)}
    probs = probs_te.astype(np.float64)
    share = np.bincount(probs.argmax(axis=1), minlength=num_factors) / num_tokens
    mean = probs.mean(axis=0)
    entropy = float(-xlogy(probs, probs).sum(axis=1).mean())
    values = (
        float(np.exp(-xlogy(mean, mean).sum())),
        float((share < dead_below / num_factors).sum()),
        float(share.max()),
        max(entropy, 0.0),
        max(entropy, 0.0) / np.log(num_factors) if num_factors > 1 else 0.0,
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution that the counts are proportional to."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _mutual_information(counts: np.ndarray) -> float:
    """Mutual information in nats of the rows and columns of a contingency table."""
    rows, columns = np.nonzero(counts)
    cells, total = counts[rows, columns].astype(np.float64), float(counts.sum())
    expected = counts.sum(1)[rows] * counts.sum(0)[columns].astype(np.float64)
    return max(0.0, float((cells / total * np.log(cells * total / expected)).sum()))


def _expected_information(counts: np.ndarray) -> float:
    """Mean mutual information of tables with these margins, tokens paired at random."""
    total = int(counts.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    value = 0.0
    for a in counts.sum(1):
        for b in counts.sum(0):
            n = np.arange(max(1, a + b - total), min(a, b) + 1)
            log_prob = (
                log_factorial[[a, b, total - a, total - b]].sum()
                - log_factorial[[total]].sum()
                - log_factorial[n]
                - log_factorial[a - n]
                - log_factorial[b - n]
                - log_factorial[total - a - b + n]
            )
            gain = n / total * (np.log(n * (total / a)) - np.log(b))
            value += float((np.exp(log_prob) * gain).sum())
    return value


def adjusted_mutual_information(counts: Int[np.ndarray, "e labels"]) -> float:
    """Mutual information of factors and labels, corrected for chance; needs no map.

    AMI = (MI - E MI) / ((H_factors + H_labels)/2 - E MI), the expectation over random tables with
    the same margins (Vinh, Epps and Bailey 2010): 1 = same partition, 0 = no better than chance.
    0 for no tokens and when exactly one side has a single group; 1 when both have.

    Args:
      counts: `contingency` of the tokens to be scored.
    """
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    if not counts.size or 1 in counts.shape:
        return 1.0 if counts.shape == (1, 1) else 0.0
    if counts.shape[0] == counts.shape[1] and (counts > 0).sum() == counts.shape[0]:
        return 1.0  # the same partition; also avoids 0/0 when every token is its own group
    chance = _expected_information(counts)
    mean_entropy = (_entropy(counts.sum(0)) + _entropy(counts.sum(1))) / 2
    # Every token alone on one side: chance reaches the bound, and nothing is known.
    room = mean_entropy - chance
    return (_mutual_information(counts) - chance) / room if room > 1e-15 else 0.0


def v_measure(counts: Int[np.ndarray, "e labels"]) -> tuple[float, float, float]:
    """Return homogeneity, completeness and their harmonic mean (Rosenberg and Hirschberg 2007).

    homogeneity = MI / H_labels (each factor holds one label), completeness = MI / H_factors (each
    label is in one factor), each 1 where its denominator is 0. All 0 for no tokens.

    Args:
      counts: `contingency` of the tokens to be scored.
    """
    if not counts.any():
        return 0.0, 0.0, 0.0
    information = _mutual_information(counts)
    labels, factors = _entropy(counts.sum(0)), _entropy(counts.sum(1))
    homogeneity = information / labels if labels > 0 else 1.0
    completeness = information / factors if factors > 0 else 1.0
    both = homogeneity + completeness
    return homogeneity, completeness, 2 * homogeneity * completeness / both if both > 0 else 0.0


def stability(first: Int[np.ndarray, " t"], second: Int[np.ndarray, " u"]) -> float:
    """Share of tokens on which two runs agree after the best one-to-one matching of factors.

    max over one-to-one maps m of mean_i 1[m(first_i) = second_i]; 1 = same partition, 0 for no
    tokens. Two random assignments to e even factors agree on a bit more than 1/e.

    Args:
      first: [t] factor of each token in one run.
      second: [t] factor of each token in another run, same tokens.

    Raises:
      ValueError: lengths differ or a factor is negative.
    """
    from scipy.optimize import linear_sum_assignment

    _check_pair("first", first, "second", second)
    if not first.size:
        return 0.0
    sizes = int(first.max()) + 1, int(second.max()) + 1
    counts = contingency(first, second, num_factors=sizes[0], num_labels=sizes[1])
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / first.size)
