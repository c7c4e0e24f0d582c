"""Has a model write its explanation and then its answer, under an intervention.

Letters: n prompts.
"""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe_jax.gating import RoutingEdit
from moe_jax.misrouting import interventions
from moe_jax.misrouting.conditions import Condition
from moe_jax.misrouting.context import Context, make_context
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.texts import same_answer, split_generation
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.generate import generate

OnProgress = Callable[[int], None]
"""Called with how many prompts were dealt with since the last call."""


class Answered(NamedTuple):
    """What the model wrote.

    Attributes:
      explanation: what stands before the delimiter, or all, if it didn't come.
      answer: "" if there is none.
      right: is it the prompt's answer?
      complete: did the delimiter come within `max_new_tokens`? The answer is asked for anyway.
      separator: white space that the model puts between delimiter and answer.
      ids: new tokens: explanation, delimiter, answer.
    """

    explanation: str
    answer: str
    right: bool
    complete: bool
    separator: str
    ids: list[int]


class Scoped(NamedTuple):
    """An edit, and the identity where it is out of scope. So one program runs both.

    Attributes:
      edit: leaves [l 1 ...].
      nothing: the identity.
      scope: of `conditions.SCOPES`.
    """

    edit: RoutingEdit
    nothing: RoutingEdit
    scope: str

    def during(self, part: str) -> RoutingEdit:
        """The edit while tokens of a part are read."""
        return self.edit if self.scope in ("all", part) else self.nothing


def scoped(lm: PretrainedLM, condition: Condition) -> Scoped:
    """The condition's edit with its scope."""
    return unedited(lm)._replace(edit=condition.edit, scope=condition.scope)


def unedited(lm: PretrainedLM) -> Scoped:
    """No intervention, as arrays.

    Raises:
      ValueError: a model without experts.
    """
    if lm.config.experts is None:
        raise ValueError("the model has no experts")
    nothing = interventions.identity(lm.config.experts.gate, len(lm.config.expert_layers))
    return Scoped(nothing, nothing, "all")


def write_answers(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    condition: Condition,
    config: StudyConfig,
    *,
    batch_size: int | None = None,
    progress: OnProgress | None = None,
) -> list[Answered]:
    """Greedy: the explanation up to the delimiter, then the answer up to the end of its line.

    A scope is about tokens that are read: "prompt" and "explanation" are those tokens; "answer" is
    the delimiter and the answer. The first token of a part is therefore drawn by the last one of
    the part before.

    Args:
      lm: the model.
      prompts: the tasks.
      condition: what to do to its routing.
      config: delimiter and lengths.
      batch_size: prompts at once; None: the config's.
      progress: called after each batch.

    Raises:
      UserError: a prompt with what is to be written is longer than the context.
    """
    size, found = batch_size or config.batch_size, []
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        found += _write(lm, some, scoped(lm, condition), config)
        if progress is not None:
            progress(len(some))
    return found


def common_separator(answered: Sequence[Answered]) -> str:
    """The white space that most answers begin with; "" if there is no answer."""
    counts = collections.Counter(one.separator for one in answered if one.answer)
    return counts.most_common(1)[0][0] if counts else ""


def context_of(
    lm: PretrainedLM, prompt: Prompt, explanation: str, config: StudyConfig, answer: str = ""
) -> Context:
    """What is read before an answer (and the answer)."""
    return make_context(lm.tokenizer, prompt.text, explanation, config.delimiter, answer=answer)


def _write(
    lm: PretrainedLM, prompts: Sequence[Prompt], edit: Scoped, config: StudyConfig
) -> list[Answered]:
    asked = [make_context(lm.tokenizer, p.text, "", "").ids for p in prompts]
    decode = lm.tokenizer.decode
    first = generate(
        lm.model,
        asked,
        max_new_tokens=config.max_new_tokens,
        stop_ids=lm.stop_ids,
        stop_texts=[config.delimiter],
        decode=decode,
        edit_prompt=edit.during("prompt"),
        edit_generated=edit.during("explanation"),
    )
    parts = [split_generation(decode(g.content.tolist()), config.delimiter) for g in first]
    contexts = [
        context_of(lm, p, part.explanation, config) for p, part in zip(prompts, parts, strict=True)
    ]
    second = generate(
        lm.model,
        [c.ids for c in contexts],
        max_new_tokens=config.answer_tokens,
        stop_ids=lm.stop_ids,
        stop_texts=["\n"],
        decode=decode,
        edit_prompt=edit.edit,
        edit_where=[c.within(edit.scope) for c in contexts],
        edit_generated=edit.during("answer"),
    )
    found = []
    for prompt, part, one, two in zip(prompts, parts, first, second, strict=True):
        raw = decode(two.content.tolist())
        line = raw.lstrip().partition("\n")[0]
        answer = line.strip()
        found.append(
            Answered(
                part.explanation,
                answer,
                same_answer(answer, prompt.answer),
                part.complete,
                raw[: len(raw) - len(raw.lstrip())],
                [*one.content.tolist(), *two.content.tolist()],
            )
        )
    return found
