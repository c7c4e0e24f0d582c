"""How far an intervention moves a model off its own text: stability and dose of each condition.

Letters: n prompts, l layers with a mixture.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.misrouting.answering import Answered, context_of
from moe_jax.misrouting.dose import dose
from moe_jax.misrouting.edited_scores import text_scores
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.scoped import Scoped
from moe_jax.misrouting.stability import (
    first_divergence,
    js_divergence,
    levenshtein_similarity,
    repetition,
    rouge_l,
    routing_drift,
    top1_agrees,
)
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.score import TextScore

METRICS = ("js", "top1", "drift", "same_start", "levenshtein", "rouge_l", "repetition", "complete")
"""Measures of `disturb`, of each prompt."""
DOSES = ("realised_k", "gate_mass", "target_share", "changed")


class Disturbed(NamedTuple):
    """Stability of each prompt, and the dose.

    Attributes:
      metric: by name of METRICS.
      dose: by name of DOSES, over the tokens in scope of all prompts.
      base_dose: the same of the base run.
    """

    metric: dict[str, Float[np.ndarray, " n"]]
    dose: dict[str, float]
    base_dose: dict[str, float]


def disturb(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    base: Sequence[Answered],
    now: Sequence[Answered],
    edit: Scoped,
    target: Bool[np.ndarray, "l e"],
    config: StudyConfig,
    *,
    batch_size: int | None = None,
) -> Disturbed:
    """What the intervention does, on the base run's texts and to what is written.

    * js: Jensen-Shannon divergence of next-token distributions on the base run's text, in bits,
      mean over its tokens after the prompt; top1: how often both have the same first choice.
    * drift: 1 - Jaccard overlap of chosen experts, mean over layers and tokens in scope.
    * same_start, levenshtein, rouge_l: of the text written now against the base run's.
    * repetition: rep-4 of the text written now; complete: the delimiter came.

    Args:
      lm: the model.
      prompts: the tasks.
      base: what it wrote without intervention.
      now: what it writes with it.
      edit: the intervention.
      target: the experts that it is aimed at.
      config: delimiter, batch size.
      batch_size: another one, for the noise floor; None: the config's.
    """
    texts = [
        context_of(lm, prompt, one.explanation, config, one.separator + one.answer)
        for prompt, one in zip(prompts, base, strict=True)
    ]
    js, top1, drift = [], [], []
    routes: list[tuple[np.ndarray, ...]] = []
    size = batch_size or config.batch_size
    for start in range(0, len(texts), size):
        some = texts[start : start + size]
        mine = range(start, start + len(some))
        before = text_scores(lm, some, mine, edit.off(), batch_size=config.batch_size, full=True)
        after = text_scores(lm, some, mine, edit, batch_size=size, full=True)
        for i, text in enumerate(some):
            was, is_now = _arrays(before[i]), _arrays(after[i])
            js.append(float(js_divergence(was[0], is_now[0]).mean()))
            top1.append(float(top1_agrees(was[0], is_now[0]).mean()))
            on, experts = text.within(edit.scope), target.shape[1]
            drift.append(float(routing_drift(was[1], is_now[1], experts, where=on).mean()))
            routes.append((*was[1:], *is_now[1:], on))
    base_dose, now_dose = _doses(routes, target)
    ids = [(np.asarray(a.ids), np.asarray(b.ids)) for a, b in zip(base, now, strict=True)]
    metric = {
        "js": js,
        "top1": top1,
        "drift": drift,
        "same_start": [first_divergence(a, b) for a, b in ids],
        "levenshtein": [levenshtein_similarity(a, b) for a, b in ids],
        "rouge_l": [rouge_l(a, b) for a, b in ids],
        "repetition": [repetition(b) for _, b in ids],
        "complete": [float(one.complete) for one in now],
    }
    arrays = {name: np.asarray(values, np.float64) for name, values in metric.items()}
    return Disturbed(arrays, now_dose, base_dose)


def _arrays(one: TextScore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities over the vocabulary, experts, weights."""
    if one.vocabulary is None or one.expert is None or one.weight is None:
        raise ValueError("the model has no experts")
    return one.vocabulary, one.expert, one.weight


def _doses(
    routes: Sequence[tuple[np.ndarray, ...]], target: Bool[np.ndarray, "l e"]
) -> tuple[dict[str, float], dict[str, float]]:
    joined = [np.concatenate(arrays) for arrays in zip(*routes, strict=True)]
    found = dose((joined[0], joined[1]), (joined[2], joined[3]), target, where=joined[4])
    before, after = (
        {name: float(getattr(one, name)) for name in DOSES}
        for one in (found.base_overall, found.overall)
    )
    return before, after
