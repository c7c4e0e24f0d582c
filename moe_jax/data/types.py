"""Texts with gold labels of their parts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Example(NamedTuple):
    """One text and the gold labels of its parts.

    Attributes:
      text: the text; never empty.
      spans: (first character, past-the-end character, label index) of each labelled part,
        sorted and without overlap; empty when nothing is known.
    """

    text: str
    spans: tuple[tuple[int, int, int], ...] = ()


class Corpus(NamedTuple):
    """Examples to train on, examples held out, and the names of the labels.

    Attributes:
      train: at least one example.
      test: may be empty (`CorpusConfig.test_fraction=0`, or an empty test.jsonl).
      labels: name of each label index; empty when no example has spans.
    """

    train: list[Example]
    test: list[Example]
    labels: list[str]


def token_labels(
    offsets_s2: Int[np.ndarray, "s 2"], spans: Sequence[tuple[int, int, int]]
) -> Int[np.ndarray, " s"]:
    """Gold label of each token: the label of the span that holds the token's first character.

    Args:
      offsets_s2: first and past-the-end character of each token, [s, 2].
      spans: (start, end, label), sorted and without overlap, as in `Example`.

    Returns:
      [s] int32; -1 for a token outside every span and for a token of no characters (specials).
    """
    if not spans:
        return np.full(len(offsets_s2), -1, np.int32)
    start, end, label = np.asarray(spans, np.int64).T
    first = offsets_s2[:, 0]
    place = np.searchsorted(start, first, side="right") - 1  # last span that starts at or before
    inside = (place >= 0) & (first < end[place]) & (offsets_s2[:, 1] > first)
    return np.where(inside, label[place], -1).astype(np.int32)
