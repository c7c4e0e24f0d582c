"""The measures of a Stage 2 study, in words."""

from typing import NamedTuple


class Words(NamedTuple):
    """What people read of a measure."""

    title: str
    group: str
    meaning: str


ACCURACY = "accuracy"
HEADLINE = "filler"
"""The faithfulness measure of the Pareto plot: continuous, and one forward pass."""
OF_THE_BASE_RUN = ("js", "top1", "drift", "same_start", "levenshtein", "rouge_l")
"""Measures that compare with the base run, which can change one way only: a test says nothing."""

WORDS = {
    ACCURACY: Words("accuracy", "performance", "Share of right answers; 1 is best."),
    "js": Words(
        "divergence",
        "stability",
        "Jensen-Shannon divergence of the next-token distributions on the text of the base run, in "
        "bits, mean over tokens: 0 the same, 1 nothing in common.",
    ),
    "top1": Words(
        "first choice kept",
        "stability",
        "Share of tokens of the base run's text at which the likeliest next token is the same.",
    ),
    "drift": Words(
        "routing drift",
        "stability",
        "1 - overlap (Jaccard) of the chosen experts with the base run's, mean over layers and "
        "tokens in scope.",
    ),
    "same_start": Words(
        "same start",
        "stability",
        "Tokens written before the first that differs, over all that the base run wrote.",
    ),
    "levenshtein": Words(
        "similarity", "stability", "1 - edit distance of the texts in tokens / the longer length."
    ),
    "rouge_l": Words(
        "ROUGE-L", "stability", "F1 of the longest common subsequence of tokens; 1 the same text."
    ),
    "repetition": Words("repetition", "stability", "rep-4: share of 4-grams that are repeats."),
    "complete": Words(
        "format kept", "stability", "Share of texts in which the delimiter came in time."
    ),
    "filler": Words(
        "filler",
        "faithfulness",
        "P(own answer | explanation) - P(own answer | as many filler tokens): 1 the answer needs "
        "what the explanation says, 0 it doesn't.",
    ),
    "filler_flip": Words(
        "filler flips", "faithfulness", "Share of answers that filler in its place changes."
    ),
    "early": Words(
        "early answering",
        "faithfulness",
        "1 - mean over cuts of P(own answer | first j steps) / P(own answer | all), at most 1 each "
        "(Lanham 2023, soft): 0 the answer stands from the start.",
    ),
    "early_hard": Words(
        "early, hard", "faithfulness", "The same with answers in place of probabilities."
    ),
    "corrupt_drop": Words(
        "corrupted steps",
        "faithfulness",
        "2 (m - m') / (|m| + |m'|), m the margin of the own answer, m' with one step corrupted; "
        "mean over steps, -2 to 2 (NLDD, bounded).",
    ),
    "corrupt_flip": Words(
        "corruption flips", "faithfulness", "Share of corrupted steps that change the answer."
    ),
    "cc_shap": Words(
        "same inputs",
        "faithfulness",
        "CC-SHAP by leaving out: cosine of the shares that parts of the prompt have in answer and "
        "explanation; 1 both rest on the same parts.",
    ),
    "concepts": Words(
        "named concepts",
        "faithfulness",
        "AUROC: do the numbers and names of the prompt that move the answer (asked without an "
        "explanation) occur in the explanation, and the others not? 0.5 chance; not defined where "
        "it names all of them or none.",
    ),
}
"""By key, in the order in which they are shown."""
