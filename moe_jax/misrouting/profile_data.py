"""What Stage 1 finds, as plain data.

`profile` makes these records, `profile_files` stores them and `profile_report` shows them. Letters:
n prompts, d levels, l layers with experts, e experts of each, k choices of a token, t tokens
counted (of all prompts).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.misrouting.profile_config import ProfileSettings


class ModelShape(NamedTuple):
    """What a profile says of the model.

    Attributes:
      name: what it was loaded as.
      expert_layers: number in the model of each of the l layers.
      num_experts: e.
      k: choices of a token.
    """

    name: str
    expert_layers: tuple[int, ...]
    num_experts: int
    k: int


class Sample(NamedTuple):
    """A text to be shown: the tokens' pieces, which of them count, and their experts."""

    number: int
    pieces: tuple[str, ...]
    where: Bool[np.ndarray, " s"]
    expert: Int[np.ndarray, "s l k"]


class Collected(NamedTuple):
    """The readings of all prompts, summed up.

    Attributes:
      rate: usage, of the kind asked for.
      dropped: share of the choices that no expert took (capacity).
      tokens: how many count.
      length: how many were read.
      entropy: mean over tokens of the scores' entropy in bits; NaN where scores aren't known.
      ids: of the tokens that count, prompt after prompt.
      expert: their experts.
      pieces: a text of each id.
      samples: the first prompts of each level, where asked for.
    """

    rate: Float[np.ndarray, "n l e"]
    dropped: Float[np.ndarray, "n l"]
    tokens: Int[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]
    entropy: Float[np.ndarray, "n l"]
    ids: Int[np.ndarray, " t"]
    expert: Int[np.ndarray, "t l k"]
    pieces: dict[int, str]
    samples: tuple[Sample, ...]


class LevelMeans(NamedTuple):
    """Mean usage by level, over prompts, and its 95% bootstrap interval."""

    mean: Float[np.ndarray, "d l e"]
    low: Float[np.ndarray, "d l e"]
    high: Float[np.ndarray, "d l e"]


class Scores(NamedTuple):
    """The trend of every expert: see `trend.Trend`, `trend.Bootstrap` and `trend.Jonckheere`.

    `clr_score` and `clr_p_family` are score and family-wise p of centred log-ratios (`usage.clr`,
    half a token of the median prompt added to every rate).
    """

    score: Float[np.ndarray, "l e"]
    low: Float[np.ndarray, "l e"]
    high: Float[np.ndarray, "l e"]
    z: Float[np.ndarray, "l e"]
    p: Float[np.ndarray, "l e"]
    p_family: Float[np.ndarray, "l e"]
    q: Float[np.ndarray, "l e"]
    inclusion: Float[np.ndarray, "l e"]
    somers_d: Float[np.ndarray, "l e"]
    p_jonckheere: Float[np.ndarray, "l e"]
    clr_score: Float[np.ndarray, "l e"]
    clr_p: Float[np.ndarray, "l e"]
    clr_p_family: Float[np.ndarray, "l e"]


class Selection(NamedTuple):
    """The experts of largest |score| on half A, and what half B says of them. m experts.

    Without halves A is all prompts and so is B: its p are then too small.

    Attributes:
      halved: were there halves?
      half_a: prompts of A.
      half_b: of B.
      layer: of each selected expert, its number in the model.
      expert: its number in the layer.
      score_a: its score on A.
      score_b: on B.
      p_b: two-sided, of its trend on B alone.
      p_holm: of the m together (Holm).
      agreement: share of the m whose score has the same sign on B.
      correlation: Pearson's, of the scores on A and on B of all experts.
      usage_mean: mean usage on A.
      z: of the trend on A.
    """

    halved: bool
    half_a: Int[np.ndarray, " a"]
    half_b: Int[np.ndarray, " b"]
    layer: Int[np.ndarray, " m"]
    expert: Int[np.ndarray, " m"]
    score_a: Float[np.ndarray, " m"]
    score_b: Float[np.ndarray, " m"]
    p_b: Float[np.ndarray, " m"]
    p_holm: Float[np.ndarray, " m"]
    agreement: float
    correlation: float
    usage_mean: Float[np.ndarray, "l e"]
    z: Float[np.ndarray, "l e"]


class Balance(NamedTuple):
    """Each layer over all tokens that count: see `specialisation.Balance`.

    Attributes:
      entropy: token entropy by level, mean over prompts, in bits.
      vocabulary: mean over token ids of how far each is bound to one expert; NaN where no id is
        seen often enough.
      pairs: tokens that choose both; no rows where k = 1.
    """

    load: Float[np.ndarray, "l e"]
    load_entropy: Float[np.ndarray, " l"]
    evenness: Float[np.ndarray, " l"]
    peak: Float[np.ndarray, " l"]
    dead: Bool[np.ndarray, "l e"]
    cold: Bool[np.ndarray, "l e"]
    entropy: Float[np.ndarray, "d l"]
    vocabulary: Float[np.ndarray, " l"]
    pairs: Int[np.ndarray, "pairs e e"]


class TopTokens(NamedTuple):
    """The tokens that one expert takes most.

    Attributes:
      layer, expert: which.
      pieces: texts of the tokens, by how often the expert takes them.
      times: how often it does.
      rate: share of the token's occurrences.
    """

    layer: int
    expert: int
    pieces: tuple[str, ...]
    times: tuple[int, ...]
    rate: tuple[float, ...]


class Compared(NamedTuple):
    """A second model, or checkpoint, that read the same tokens: see `specialisation.Comparison`.

    Attributes:
      name: what it was loaded as.
      score: trends of its experts.
      p_family: their family-wise p.
      score_correlation: Pearson's, of both models' scores over all experts.
    """

    name: str
    jaccard: Float[np.ndarray, " l"]
    total_variation: Float[np.ndarray, " l"]
    jsd: Float[np.ndarray, " l"]
    correlation: Float[np.ndarray, " l"]
    score: Float[np.ndarray, "l e"]
    p_family: Float[np.ndarray, "l e"]
    score_correlation: float


class Profile(NamedTuple):
    """Everything Stage 1 finds.

    Attributes:
      model: its shape.
      settings: how the study was evaluated.
      difficulty: of each level.
      level: of each prompt.
      group: of each prompt.
      stratum: within which labels were permuted.
      tokens: of each prompt, how many count.
      length: how many were read.
      usage: u(x) of each prompt.
      dropped: share of its choices that no expert took.
      means: usage by level.
      scores: trends.
      ranking: layer index * e + expert, by |score|, largest first.
      selection: of the experts for Stage 2.
      balance: of each layer.
      top_tokens: of the experts that lead the ranking.
      samples: texts to be shown.
      compared: other models beside this one.
    """

    model: ModelShape
    settings: ProfileSettings
    difficulty: tuple[float, ...]
    level: Int[np.ndarray, " n"]
    group: tuple[str, ...]
    stratum: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]
    length: Int[np.ndarray, " n"]
    usage: Float[np.ndarray, "n l e"]
    dropped: Float[np.ndarray, "n l"]
    means: LevelMeans
    scores: Scores
    ranking: Int[np.ndarray, " m"]
    selection: Selection
    balance: Balance
    top_tokens: tuple[TopTokens, ...]
    samples: tuple[Sample, ...]
    compared: tuple[Compared, ...] = ()
