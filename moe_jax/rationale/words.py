"""Words of a text and the factor of each; the words that are typical of each factor."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from moe_jax.rationale.results import TextRationale

_WORD = re.compile(r"\S+")
# Cut from both ends of a word before it is counted; "C++" and "C#" keep their names.
_PUNCTUATION = ".,;:!?\"'`()[]{}<>«»“”‘’„…·•*_=|/\\—–-¡¿、。，；：！？（）「」『』"


class Words(NamedTuple):
    """The words of one text that hold tokens: text between white space.

    Attributes:
      spans: [w, 2] first and past-the-end character of each word.
      probs: [w, e] mean factor probabilities of the tokens of each word.
    """

    spans: Int[np.ndarray, "w 2"]
    probs: Float[np.ndarray, "w e"]


def words(text: TextRationale) -> Words:
    """Join the tokens (word pieces) of a text into the words that hold their first characters.

    Tokens that cover no character belong to no word.
    """
    spans = np.array([m.span() for m in _WORD.finditer(text.text)], np.int64).reshape(-1, 2)
    num_factors = text.probs.shape[1]
    covers = text.offsets[:, 1] > text.offsets[:, 0]
    first = text.offsets[covers, 0]
    home = np.searchsorted(spans[:, 0], first, side="right") - 1
    inside = home >= 0
    # A token that starts in white space (some tokenizers keep the space) belongs to the next word.
    inside[inside] = first[inside] < spans[home[inside], 1]
    home = np.where(inside, home, home + 1)
    kept = home < len(spans)
    sums = np.zeros((len(spans), num_factors))
    np.add.at(sums, home[kept], text.probs[covers][kept])
    count = np.bincount(home[kept], minlength=len(spans))[: len(spans)]
    held = count > 0
    return Words(spans[held], sums[held] / count[held, None])


def typical_words(
    texts: Sequence[TextRationale],
    *,
    num_factors: int,
    num_words: int = 12,
    min_count: int = 3,
    prior: float = 0.05,
    z: float = 1.645,
) -> list[list[tuple[str, float]]]:
    """List for each factor the words that it takes far more often than the other factors do.

    A word goes to the factor with the highest mean probability over its tokens; case and
    punctuation at its ends don't count. With y_wk the count of word w in factor k, y_w. its total
    and n_k the words of factor k, the log-odds ratio with an informative prior a_w = prior * y_w.
    (Monroe, Colaresi and Quinn 2008) is

        delta = logit((y_wk + a_w) / (n_k + A)) - logit((y_w. - y_wk + a_w) / (n. - n_k + A)),
        A = sum_w a_w,  var = 1 / (y_wk + a_w) + 1 / (y_w. - y_wk + a_w),

    and the score is its lower bound delta - z sqrt(var): a word must be specific AND frequent
    enough, so neither function words (which every factor takes) nor rare words lead the list. A
    score of log(5) = 1.6 says: at least five times the odds of elsewhere; below 0: too rare to
    say. Only words with delta > 0 are listed. Where one factor took every word there is nothing
    to compare: its most frequent words are listed with score 0.

    Args:
      texts: any texts, with or without labels.
      num_factors: number of factors e.
      num_words: most words for a factor.
      min_count: least count of a word in the factor.
      prior: weight of the prior, as a part of the word's total count.
      z: width of the bound in standard deviations (1.645: one-sided 95%).
    """
    counts: Counter[tuple[str, int]] = Counter()
    for text in texts:
        found = words(text)
        for (start, end), factor in zip(found.spans, found.probs.argmax(axis=1), strict=True):
            word = text.text[start:end].strip(_PUNCTUATION).lower()
            if any(letter.isalnum() for letter in word):
                counts[word, int(factor)] += 1
    names = sorted({word for word, _ in counts})
    row = {word: i for i, word in enumerate(names)}
    table = np.zeros((len(names), num_factors))
    for (word, factor), count in counts.items():
        table[row[word], factor] = count
    alone = np.count_nonzero(table.any(axis=0)) == 1
    delta, spread = _log_odds(table, prior)
    score = np.zeros_like(table) if alone else delta - z * spread
    typical = (table >= min_count) & ((delta > 0) | alone)
    lists = []
    for k in range(num_factors):
        order = np.lexsort((-table[:, k], -score[:, k]))
        best = [i for i in order if typical[i, k]][:num_words]
        lists.append([(names[i], float(score[i, k])) for i in best])
    return lists


def _log_odds(table: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """The delta and its standard deviation, as in `typical_words`, for counts [word, factor]."""
    total = table.sum(axis=1, keepdims=True)
    here = table + prior * total
    there = total - table + prior * total
    size_here, size_there = here.sum(axis=0, keepdims=True), there.sum(axis=0, keepdims=True)
    # A vocabulary of one word has no "other words"; half a count keeps the odds finite.
    odds_here = here / np.maximum(size_here - here, 0.5)
    odds_there = there / np.maximum(size_there - there, 0.5)
    return np.log(odds_here / odds_there), np.sqrt(1 / here + 1 / there)
