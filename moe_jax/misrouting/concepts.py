"""Concepts of a prompt: which of them move the answer, and which does the explanation name?

A concept is a number or a name that the prompt's text holds, wherever it stands there: rules, no
helper model. Letters: n prompts, c concepts, o options.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.misrouting.answering import context_of
from moe_jax.misrouting.context import Context
from moe_jax.misrouting.edited_scores import option_logp
from moe_jax.misrouting.faithfulness import concept_alignment, option_probs
from moe_jax.misrouting.probing import Explained, filler_id, option_ids
from moe_jax.misrouting.scoped import Scoped
from moe_jax.misrouting.stability import js_divergence
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.models.causal_pretrained import PretrainedLM

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
# A word with a capital that doesn't begin a sentence or a line.
_NAME = r"(?<=[^.!?:\n\s]\s)[A-Z][^\W\d_]+"
_CONCEPT = re.compile(f"{_NUMBER}|{_NAME}")
_WORD = re.compile(rf"{_NUMBER}|[^\W\d_]+")
_MOST = 16


class Concept(NamedTuple):
    """Something that a prompt speaks of.

    Attributes:
      name: its text.
      spans: where it stands, start and end in characters.
    """

    name: str
    spans: tuple[tuple[int, int], ...]


def concepts(text: str) -> list[Concept]:
    """Numbers and names of a text, in order; of more than 16, so many spread evenly."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for match in _CONCEPT.finditer(text):
        spans.setdefault(match.group(), []).append(match.span())
    found = [Concept(name, tuple(where)) for name, where in spans.items()]
    if len(found) <= _MOST:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, _MOST).round().astype(int)]


def mentions(found: Sequence[Concept], explanation: str) -> Bool[np.ndarray, " c"]:
    """Which concepts an explanation names: as whole numbers, as whole words."""
    words = set(_WORD.findall(explanation))
    return np.asarray([concept.name in words for concept in found], bool)


def named_concepts(
    lm: PretrainedLM,
    explained: Sequence[Explained],
    edit: Scoped,
    config: StudyConfig,
    *,
    separator: str,
) -> Float[np.ndarray, " n"]:
    """AUROC of the concepts' effects on the answer for whether the explanation names them.

    CE_c = JSD(P(. | x), P(. | x without c)) over the options, in bits: the model is asked for the
    answer at once, without explanation, and c's tokens are replaced by filler. Then
    `faithfulness.concept_alignment`: 1 where all that is named moves the answer more than all that
    isn't, 0.5 is chance, NaN where all is named or nothing.

    Args:
      lm: the model.
      explained: what to measure.
      edit: the intervention, on the prompts of `explained`.
      config: filler, batch size.
      separator: between delimiter and answer.

    Raises:
      UserError: the filler isn't one token of this model.
    """
    unit, texts, options, counts = filler_id(lm, config), [], [], []
    for one in explained:
        mine = concepts(one.prompt.text)
        asked = context_of(lm, one.prompt, "", config)
        texts += [
            asked,
            *(_without(lm, asked, one, config.delimiter, concept, unit) for concept in mine),
        ]
        options += [option_ids(lm, asked, one._replace(explanation=""), config, separator)] * (
            1 + len(mine)
        )
        counts.append(1 + len(mine))
    owner = np.repeat(np.arange(len(counts)), counts).tolist()
    scores = option_logp(lm, texts, owner, options, edit, batch_size=config.batch_size)
    found = []
    parts = np.split(scores, np.cumsum(counts)[:-1])
    for one, logp in zip(explained, parts, strict=True):
        with np.errstate(divide="ignore"):
            said = np.log(option_probs(logp))
        effect = js_divergence(np.broadcast_to(said[:1], said[1:].shape), said[1:])
        named = mentions(concepts(one.prompt.text), one.explanation)
        found.append(concept_alignment(effect, named).auroc)
    return np.asarray(found)


def _without(
    lm: PretrainedLM,
    asked: Context,
    one: Explained,
    delimiter: str,
    concept: Concept,
    unit: int,
) -> Context:
    """The context with the filler in place of every token that has a character of the concept."""
    offsets = lm.tokenizer.encode(one.prompt.text + delimiter).offsets
    ids = asked.ids.copy()
    for token, (start, end) in enumerate(offsets[: len(ids)]):
        if any(start < b and end > a for a, b in concept.spans):
            ids[token] = unit
    return asked._replace(ids=ids)
