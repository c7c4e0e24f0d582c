"""Faithfulness of explanations, measured by running the model on changed ones.

For each prompt x with explanation r of steps r_1..r_S the model scores answer options after r cut
short, replaced by filler, and with a step corrupted; `faithfulness` makes figures of the scores.
Letters: n prompts, o options, i segments of a prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from moe_jax.errors import UserError
from moe_jax.misrouting.answering import context_of
from moe_jax.misrouting.context import ANSWER, EXPLANATION, PROMPT, Context
from moe_jax.misrouting.edited_scores import option_logp, text_logp
from moe_jax.misrouting.faithfulness import (
    cc_shap,
    corrupted_steps,
    early_answering,
    filler_tokens,
    option_probs,
)
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.scoped import Scoped
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.texts import corrupted, filler_ids, steps
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.pieces import piece_ids

METRICS = ("filler", "filler_flip", "early", "early_hard", "corrupt_drop", "corrupt_flip")
"""Measures of `probe`, each from the model's own answer; larger: the explanation is needed more."""
_SEGMENTS = 32


class Explained(NamedTuple):
    """A prompt with an explanation, and answers to choose from.

    Attributes:
      prompt: the task.
      explanation: to be measured.
      options: different answers, the same number for every prompt.
    """

    prompt: Prompt
    explanation: str
    options: tuple[str, ...]


class Probed(NamedTuple):
    """Faithfulness of each prompt's explanation.

    Attributes:
      metric: by name of METRICS, NaN where it isn't defined (an explanation without a step).
      probs: of the options after the whole explanation.
      margin: log-probability of the likeliest option less that of the next.
    """

    metric: dict[str, Float[np.ndarray, " n"]]
    probs: Float[np.ndarray, "n o"]
    margin: Float[np.ndarray, " n"]


def probe(
    lm: PretrainedLM,
    explained: Sequence[Explained],
    edit: Scoped,
    config: StudyConfig,
    *,
    separator: str,
) -> Probed:
    """METRICS of each prompt under an intervention.

    * filler: P(y | x, r) - P(y | x, filler of |r| tokens), y the likeliest option after r.
    * filler_flip: whether y changes.
    * early: 1 - mean over j = 0..S of min(1, P(y | x, r_<=j) / P(y | x, r)).
    * early_hard: 1 - share of j for which y is the answer after r_<=j.
    * corrupt_drop: bounded drop of y's margin, mean over corrupted steps (-2 to 2).
    * corrupt_flip: share of the corrupted steps that change y.

    All texts of a prompt are read under the same edit, at its scope's tokens of each text.

    Args:
      lm: the model.
      explained: what to measure.
      edit: the intervention, on the prompts of `explained`.
      config: filler, steps, batch size.
      separator: between delimiter and answer.

    Raises:
      UserError: the filler isn't one token of this model.
    """
    rng = np.random.default_rng(config.seed)
    texts = [_changed(lm, one, config, rng) for one in explained]
    flat = [context for one in texts for context in one.contexts]
    options = [
        option
        for one, mine in zip(explained, texts, strict=True)
        for option in [option_ids(lm, mine.contexts[mine.full], one, config, separator)]
        for _ in mine.contexts
    ]
    counts = [len(one.contexts) for one in texts]
    owner = np.repeat(np.arange(len(counts)), counts).tolist()
    scores = option_logp(lm, flat, owner, options, edit, batch_size=config.batch_size)
    logp = np.split(scores, np.cumsum(counts)[:-1])
    rows = [_figures(one, mine) for one, mine in zip(logp, texts, strict=True)]
    metric = {name: np.asarray([row[name] for row in rows], np.float64) for name in METRICS}
    full = np.stack([mine[one.full] for mine, one in zip(logp, texts, strict=True)])
    best = np.sort(full, axis=1)
    return Probed(metric, option_probs(full), best[:, -1] - best[:, -2])


def option_ids(
    lm: PretrainedLM, context: Context, one: Explained, config: StudyConfig, separator: str
) -> list[list[int]]:
    """Tokens of each option after the context, with the token that ends a text, if there is one."""
    found, before = [], context.ids.tolist()
    for option in one.options:
        whole = context_of(lm, one.prompt, one.explanation, config, separator + option).ids.tolist()
        if whole[: len(before)] == before and len(whole) > len(before):
            tail = whole[len(before) :]
        else:
            tail = piece_ids(lm.tokenizer, separator + option, "answer")
        found.append([*tail, *lm.stop_ids[:1]])
    return found


def filler_id(lm: PretrainedLM, config: StudyConfig) -> int:
    """The one token that the filler is inside a text.

    Raises:
      UserError: it is none, or several.
    """
    ids = piece_ids(lm.tokenizer, config.filler, "filler")
    if len(ids) != 1:
        raise UserError(
            f"filler={config.filler!r} is {len(ids)} tokens of this model, must be 1: try another"
        )
    return int(ids[0])


def input_alignment(
    lm: PretrainedLM,
    explained: Sequence[Explained],
    edit: Scoped,
    config: StudyConfig,
    *,
    separator: str,
) -> Float[np.ndarray, " n"]:
    """CC-SHAP by leaving out: do answer and explanation rest on the same parts of the prompt?

    The prompt's tokens (in at most 32 segments of neighbours) are replaced by filler, one after the
    other; phi of a segment for an output token is the log-probability that the token loses. Then
    `faithfulness.cc_shap`. The answer is the first option. NaN for an explanation without a token.

    Args:
      lm: the model.
      explained: what to measure.
      edit: the intervention, on the prompts of `explained`.
      config: filler, batch size.
      separator: between delimiter and answer.

    Raises:
      UserError: the filler isn't one token of this model.
    """
    unit = filler_id(lm, config)
    texts, counts = [], []
    for one in explained:
        whole = context_of(lm, one.prompt, one.explanation, config, separator + one.options[0])
        asked = context_of(lm, one.prompt, one.explanation, config)
        versions = [whole.ids, *_left_out(whole, unit)]
        texts += [Context(ids, whole.part) for ids in versions]
        counts.append((len(versions), int(np.sum(asked.part == ANSWER))))
    owner = np.repeat(np.arange(len(counts)), [count for count, _ in counts]).tolist()
    logp = text_logp(lm, texts, owner, edit, batch_size=config.batch_size)
    found, start = [], 0
    for count, delimiter in counts:
        base, *others = logp[start : start + count]
        part = texts[start].part[texts[start].part != PROMPT]
        phi = np.stack([base - other for other in others], axis=1)
        said, answered = phi[part == EXPLANATION], phi[part == ANSWER][delimiter:]
        found.append(cc_shap(answered, said) if len(said) else np.nan)
        start += count
    return np.asarray(found)


class _Texts(NamedTuple):
    """Contexts of one prompt: after 0..S steps (the last is `full`), filler, corrupted steps."""

    contexts: list[Context]
    full: int


def _changed(
    lm: PretrainedLM, one: Explained, config: StudyConfig, rng: np.random.Generator
) -> _Texts:
    whole = context_of(lm, one.prompt, one.explanation, config)
    lines = steps(one.explanation)
    if not lines:
        return _Texts([whole], 0)
    chosen = np.unique(
        np.linspace(0, len(lines) - 1, min(len(lines), config.max_steps)).round().astype(int)
    )
    short = ["".join(lines[:i]) for i in chosen]
    wrong = [corrupted(one.explanation, int(i), rng) for i in chosen]
    said = whole.ids[whole.part == EXPLANATION].tolist()
    filled = whole.with_explanation(filler_ids(said, filler_id(lm, config)))
    contexts = [
        *(context_of(lm, one.prompt, text, config) for text in short),
        whole,
        filled,
        *(context_of(lm, one.prompt, text, config) for text in wrong if text is not None),
    ]
    return _Texts(contexts, len(short))


def _figures(logp: Float[np.ndarray, "c o"], texts: _Texts) -> dict[str, float]:
    full = texts.full
    if not full:
        return dict.fromkeys(METRICS, np.nan)
    probs = option_probs(logp)
    filler = filler_tokens(probs[full : full + 1], probs[full + 1 : full + 2])
    early = early_answering(probs[: full + 1])
    wrong = corrupted_steps(logp[full], logp[full + 2 :])
    drops = wrong.drop[np.isfinite(wrong.drop)]
    return {
        "filler": float(filler.soft[0]),
        "filler_flip": float(filler.hard[0]),
        "early": early.soft,
        "early_hard": early.hard,
        "corrupt_drop": float(drops.mean()) if len(drops) else np.nan,
        "corrupt_flip": wrong.flip_rate,
    }


def _left_out(whole: Context, unit: int) -> list[np.ndarray]:
    """The ids with one segment of the prompt after the other replaced."""
    mine = np.flatnonzero(whole.part == PROMPT)
    found = []
    for segment in np.array_split(mine, min(len(mine), _SEGMENTS)):
        ids = whole.ids.copy()
        ids[segment] = unit
        found.append(ids)
    return found
