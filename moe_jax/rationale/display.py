"""What the page and the terminal have in common: names of factors, words, colours of labels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from moe_jax.rationale.results import Assessment, TextRationale
from moe_jax.rationale.words import words
from moe_jax.reports.tokens import Key, Span

# A "word" of more pieces than this (Chinese or Thai, an address, noise) is shown piece by piece.
_MOST_PIECES = 12


def factor_names(
    num_factors: int,
    labels: Sequence[str] = (),
    mapping: Int[np.ndarray, " e"] | None = None,
    top_words: Sequence[Sequence[tuple[str, float]]] = (),
) -> list[str]:
    """What to call each factor: its label, or else its most typical words, or else "factor 3".

    Args:
      num_factors: number of factors e.
      labels: names of the gold labels.
      mapping: [e] label of each factor, -1 = none.
      top_words: typical words of each factor with their scores, best first.
    """
    names = []
    for factor in range(num_factors):
        label = int(mapping[factor]) if mapping is not None and factor < len(mapping) else -1
        best = [word for word, _ in top_words[factor][:2]] if factor < len(top_words) else []
        if 0 <= label < len(labels):
            names.append(labels[label])
        else:
            names.append(" / ".join(best) or f"factor {factor}")
    return names


def names_of(assessment: Assessment) -> list[str]:
    """`factor_names` of everything that an assessment knows."""
    return factor_names(
        len(assessment.usage), assessment.labels, assessment.mapping, assessment.top_words
    )


def label_colours(mapping: Int[np.ndarray, " e"], num_labels: int, num_factors: int) -> list[int]:
    """Colour of each gold label: its factor's, or one of its own where no factor stands for it."""
    factor_of = {int(label): factor for factor, label in enumerate(mapping) if label >= 0}
    spare = iter(range(num_factors, num_factors + num_labels))
    return [factor_of[label] if label in factor_of else next(spare) for label in range(num_labels)]


def keys_of(assessment: Assessment) -> list[Key]:
    """The legend: each factor with its share of the tokens, then the labels without a factor."""
    num_factors = len(assessment.usage)
    keys = [
        Key(factor, name, f"{assessment.usage[factor]:.0%}")
        for factor, name in enumerate(names_of(assessment))
    ]
    colours = label_colours(assessment.mapping, len(assessment.labels), num_factors)
    return keys + [
        Key(colour, label, "gold label without a factor", is_factor=False)
        for label, colour in zip(assessment.labels, colours, strict=True)
        if colour >= num_factors
    ]


def display_spans(text: TextRationale, colours: Sequence[int] = ()) -> list[Span]:
    """The words of a text, each with the mean probabilities of its pieces, ready to be shown.

    The gold label of a word is that of its first piece.

    Args:
      text: the text; several tokens may cover the same characters.
      colours: colour of each gold label; () leaves the gold labels out.
    """
    covers = text.offsets[:, 1] > text.offsets[:, 0]
    offsets, probs = text.offsets[covers], text.probs[covers]
    order = np.argsort(offsets[:, 0], kind="stable")
    offsets, probs = offsets[order], probs[order]
    labels = None
    if text.labels is not None and len(colours):
        labels = text.labels[covers][order]
    found = words(text)
    spans = []
    for (start, end), mean in zip(found.spans, found.probs, strict=True):
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
        if len(inside) <= _MOST_PIECES:
            spans.append(Span(int(start), int(end), mean.tolist(), _gold(labels, inside, colours)))
            continue
        last = int(start)
        for i in inside:
            first = max(last, int(offsets[i, 0]))
            past = min(int(offsets[i, 1]), int(end))
            if past > first:
                spans.append(
                    Span(
                        first, past, probs[i].tolist(), _gold(labels, inside[inside == i], colours)
                    )
                )
                last = past
    return spans


def _gold(labels: np.ndarray | None, inside: np.ndarray, colours: Sequence[int]) -> int | None:
    if labels is None or not len(inside) or labels[inside[0]] < 0:
        return None
    return colours[int(labels[inside[0]])]
