"""What a Stage 2 study found: one row for each intervention, one effect for each measure."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from moe_jax.common.statistics import Equivalence, Interval
from moe_jax.misrouting.diagnosticity import Diagnosticity
from moe_jax.misrouting.mediation import AgainstPerformance, Mediation


class Measure(NamedTuple):
    """A quantity that is measured of each prompt.

    Attributes:
      name: its key.
      title: what people call it, short.
      group: "performance", "stability" or "faithfulness".
      meaning: one sentence with the formula in words, and which way is which.
      diagnosticity: does it tell the two planted models apart; None if that wasn't measured (there
        were no planted models), or isn't asked (no measure of faithfulness).
      tells: the verdict on `diagnosticity`.
      floor: mean change of the re-run without intervention: numeric noise.
    """

    name: str
    title: str
    group: str
    meaning: str
    diagnosticity: Diagnosticity | None
    tells: bool
    floor: float


class Effect(NamedTuple):
    """What an intervention does to one measure, over prompts in which both runs have it.

    Attributes:
      base: mean without intervention.
      value: mean with it.
      change: value - base, prompt by prompt.
      p: of no change: exact McNemar for accuracy, sign flips for others; NaN for measures that
        compare with the base run, which can change one way only.
      p_holm: the same, Holm's over all interventions on the selected experts.
      control: change under matched random sets: mean, 2.5% and 97.5% quantile of the sets.
      p_control: (1 + sets that change as much or more, either way) / (sets + 1); NaN without sets.
      prompts: how many.
    """

    base: float
    value: float
    change: Interval
    p: float
    p_holm: float
    control: Interval
    p_control: float
    prompts: int


class Row(NamedTuple):
    """One intervention on one set of experts.

    Attributes:
      spec: the intervention, "suppress@all".
      experts: "selected" or "opposite".
      effects: by the measure's name.
      dose: by name, with the intervention; of tokens in scope.
      base_dose: the same tokens without it.
      lost: answers that were right and are wrong.
      gained: the other way round.
      preserved: two one-sided tests of accuracy within the margin.
      against: faithfulness against performance, by the measure's name.
      matched: change of the faithfulness measure less that of the random sets whose accuracy is
        nearest, by the measure's name; NaN without sets.
    """

    spec: str
    experts: str
    effects: dict[str, Effect]
    dose: dict[str, float]
    base_dose: dict[str, float]
    lost: int
    gained: int
    preserved: Equivalence
    against: dict[str, AgainstPerformance]
    matched: dict[str, float]


class Agreement(NamedTuple):
    """Do answer and explanation need the same experts (`agreement.expert_agreement`)?

    Attributes:
      spearman: rank correlation of effects over candidate experts, and its p.
      p_spearman: one-sided, experts permuted within layer and usage.
      cosine: of the effects.
      p_cosine: likewise.
      layer: of each candidate.
      expert: of each candidate.
      answer: effect on the answer of suppressing it alone.
      explanation: effect on the explanation, per token.
    """

    spearman: float
    p_spearman: float
    cosine: float
    p_cosine: float
    layer: list[int]
    expert: list[int]
    answer: Float[np.ndarray, " c"]
    explanation: Float[np.ndarray, " c"]


class Example(NamedTuple):
    """One prompt before and after.

    Attributes:
      prompt: its text.
      right: the right answer.
      spec: the intervention.
      before: explanation, delimiter and answer without it.
      after: with it.
      before_right: was the answer right?
      after_right: is it?
    """

    prompt: str
    right: str
    spec: str
    before: str
    after: str
    before_right: bool
    after_right: bool


class Study(NamedTuple):
    """Everything that the page and the files of a study say.

    Attributes:
      model: its name.
      prompts: how many were tested.
      measured: of how many faithfulness was measured.
      controls: matched random sets of each intervention on experts.
      selected: (layer of the model, expert).
      accuracy: of the base run.
      by_difficulty: (difficulty, prompts, accuracy) of the base run.
      measures: in order.
      rows: selected experts first, then their opposites.
      scatter: for each of `spec`, (change of accuracy, change of faithfulness) of its control sets.
      front: names of the rows on the Pareto front of accuracy and the first faithfulness measure.
      agreement: of experts.
      mediation: by spec.
      zero_dose: by intervention: is it bitwise the base run at dose zero?
      examples: some prompts.
      settings: the config as text.
    """

    model: str
    prompts: int
    measured: int
    controls: int
    selected: list[tuple[int, int]]
    accuracy: Interval
    by_difficulty: list[tuple[float, int, float]]
    measures: list[Measure]
    rows: list[Row]
    scatter: dict[str, list[tuple[float, float]]]
    front: list[str]
    agreement: Agreement | None
    mediation: dict[str, Mediation]
    zero_dose: dict[str, bool]
    examples: list[Example]
    settings: str
