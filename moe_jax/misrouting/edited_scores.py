"""Log-probabilities of answers and texts that a model reads under an intervention in its scope.

Letters: c contexts, o options, r tokens of a text.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moe_jax.misrouting.context import ANSWER, PROMPT, Context
from moe_jax.misrouting.scoped import Scoped
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.score import TextScore, score_options, score_text


def option_logp(
    lm: PretrainedLM,
    contexts: Sequence[Context],
    prompts: Sequence[int],
    options: Sequence[Sequence[Sequence[int]]],
    edit: Scoped,
    *,
    batch_size: int,
) -> Float[np.ndarray, "c o"]:
    """l(y | c) of each option y after its context c (`score.score_options`), in float64.

    Args:
      lm: the model.
      contexts: what is read before the options.
      prompts: the number of the prompt that each is of, among those of the edit.
      options: token ids of each context's options.
      edit: the intervention.
      batch_size: contexts read at once.
    """
    longest = max((len(y) for ys in options for y in ys), default=1)
    asked = [int(np.sum(context.part == ANSWER)) for context in contexts]
    scores = score_options(
        lm.model,
        [context.ids for context in contexts],
        options,
        edit=edit.on(contexts, prompts),
        edit_where=[context.within(edit.scope) for context in contexts],
        edit_options=edit.later("answer", asked, prompts, count=longest - 1),
        batch_size=batch_size,
    )
    return np.asarray(scores.logp, np.float64)


def text_scores(
    lm: PretrainedLM,
    texts: Sequence[Context],
    prompts: Sequence[int],
    edit: Scoped,
    *,
    batch_size: int,
    full: bool = False,
) -> list[TextScore]:
    """What comes after each prompt, token by token (`score.score_text`).

    Args:
      lm: the model.
      texts: prompts with what comes after them.
      prompts: the number of the prompt that each is of, among those of the edit.
      edit: the intervention.
      batch_size: texts read at once.
      full: with the probabilities of the whole vocabulary.
    """
    split = [int(np.sum(text.part == PROMPT)) for text in texts]
    return score_text(
        lm.model,
        [text.ids[:at] for text, at in zip(texts, split, strict=True)],
        [text.ids[at:] for text, at in zip(texts, split, strict=True)],
        edit=edit.on(texts, prompts),
        edit_where=[text.within(edit.scope) for text in texts],
        batch_size=batch_size,
        full=full,
    )


def text_logp(
    lm: PretrainedLM,
    texts: Sequence[Context],
    prompts: Sequence[int],
    edit: Scoped,
    *,
    batch_size: int,
) -> list[Float[np.ndarray, " r"]]:
    """Log-probability of every token after the prompt's, given those before it, in float64."""
    scores = text_scores(lm, texts, prompts, edit, batch_size=batch_size)
    return [np.asarray(one.logp, np.float64) for one in scores]
