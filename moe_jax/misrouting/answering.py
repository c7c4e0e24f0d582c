"""Has a model write its explanation and then its answer, under an intervention.

Letters: n prompts.
"""

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from moe_jax.misrouting.context import ANSWER, Context, make_context
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.scoped import Scoped
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.texts import same_answer, split_generation
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.generate import generate
from moe_jax.models.pieces import hidden_tokens, text_after

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


def write_answers(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    edit: Scoped,
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
      edit: the intervention on these prompts.
      config: delimiter and lengths.
      batch_size: prompts at once; None: the config's.
      progress: called after each batch.

    Raises:
      UserError: a prompt with what is to be written is longer than the context.
    """
    size, found = batch_size or config.batch_size, []
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]
        mine = edit.take(range(start, start + len(some)))
        found += _write(lm, some, mine, config)
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
    asked = [make_context(lm.tokenizer, p.text, "", "") for p in prompts]
    decode, every = lm.tokenizer.decode, range(len(prompts))
    none, hidden = (hidden_tokens(lm.tokenizer, show) for show in ([], [config.delimiter]))
    first = generate(
        lm.model,
        [c.ids for c in asked],
        max_new_tokens=config.max_new_tokens,
        # A delimiter that ends a turn ends the explanation, not the text.
        stop_ids=[i for i in lm.stop_ids if i not in none - hidden],
        stop_texts=[config.delimiter],
        decode=decode,
        edit_prompt=edit.on(asked, every),
        edit_where=[c.within(edit.scope) for c in asked],
        edit_generated=edit.later(
            "explanation", [0] * len(asked), every, count=config.max_new_tokens - 1
        ),
    )
    written = [
        text_after(lm.tokenizer, c.ids.tolist(), g.content.tolist(), hidden)
        for c, g in zip(asked, first, strict=True)
    ]
    parts = [split_generation(text, config.delimiter) for text in written]
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
        edit_prompt=edit.on(contexts, every),
        edit_where=[c.within(edit.scope) for c in contexts],
        edit_generated=edit.later(
            "answer",
            [int(np.sum(c.part == ANSWER)) for c in contexts],
            every,
            count=config.answer_tokens - 1,
        ),
    )
    found = []
    for prompt, part, context, one, two in zip(
        prompts, parts, contexts, first, second, strict=True
    ):
        raw = text_after(lm.tokenizer, context.ids.tolist(), two.content.tolist(), none)
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
