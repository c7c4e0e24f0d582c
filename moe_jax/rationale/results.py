"""What an evaluation of the rationale model found, as plain data.

`assess` makes these records, `report` and `explain` show them. They hold NumPy arrays and
strings only, so that they can be stored, compared and drawn without the model.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class TextRationale(NamedTuple):
    """Which factor took each token of one text.

    Attributes:
      text: the text as it was given.
      offsets: [s, 2] first and past-the-end character of each token in `text`.
      probs: [s, e] probability of each factor for each token (rows sum to 1).
      labels: [s] gold label of each token, -1 where there is none; None for unlabelled text.
    """

    text: str
    offsets: Int[np.ndarray, "s 2"]
    probs: Float[np.ndarray, "s e"]
    labels: Int[np.ndarray, " s"] | None = None


class LabelScores(NamedTuple):
    """Precision, recall and F1 of each label over tokens, and their plain means over labels.

    Attributes:
      precision, recall, f1: [labels], 0 where a label was never predicted or never occurs.
      support: [labels] gold tokens of each label.
      macro_precision, macro_recall, macro_f1: unweighted means over the labels that occur.
    """

    precision: Float[np.ndarray, " labels"]
    recall: Float[np.ndarray, " labels"]
    f1: Float[np.ndarray, " labels"]
    support: Int[np.ndarray, " labels"]
    macro_precision: float
    macro_recall: float
    macro_f1: float


class MethodScores(NamedTuple):
    """One method (the model or a baseline) against the gold labels of the test tokens.

    Attributes:
      name: "model", "majority", "random", "k-means", "NMF".
      one_to_one: scores under the Hungarian factor-to-label map learned on training tokens.
      many_to_one: scores when several factors may share a label (map learned on training too).
      ami: adjusted mutual information of factors and labels, no map needed.
    """

    name: str
    one_to_one: LabelScores
    many_to_one: LabelScores
    ami: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
    """Everything a reader wants to see of one trained model.

    Attributes:
      labels: names of the gold labels; empty when the corpus has none.
      methods: the model first, then the baselines; empty when there are no gold labels.
      mapping: [e] label of each factor (one-to-one), -1 = none (all of them without gold labels).
      usage: [e] share of the test tokens that each factor took (argmax).
      monitors: collapse monitors by name (usage_perplexity, dead_factors, max_share, ...).
      rationale_scores: ERASER measures by name, in both forms (suffix _compat / _corrected).
      faithfulness: comprehensiveness and sufficiency by name.
      top_words: for each factor its most typical words with their scores, best first.
      samples: texts of the test part, to be shown.
    """

    labels: list[str]
    methods: list[MethodScores]
    mapping: Int[np.ndarray, " e"]
    usage: Float[np.ndarray, " e"]
    monitors: dict[str, float]
    rationale_scores: dict[str, float]
    faithfulness: dict[str, float]
    top_words: list[list[tuple[str, float]]]
    samples: list[TextRationale]
