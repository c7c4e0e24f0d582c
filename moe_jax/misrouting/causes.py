"""What the experts cause: each one alone, through the explanation or past it, and at dose zero.

Letters: n prompts, l layers with a mixture, e experts, c candidate experts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.misrouting import interventions
from moe_jax.misrouting.answering import Answered, context_of, write_answers
from moe_jax.misrouting.context import ANSWER, EXPLANATION, PROMPT, Context
from moe_jax.misrouting.edited_scores import option_logp, text_logp, text_scores
from moe_jax.misrouting.edits import make_edit
from moe_jax.misrouting.faithfulness import option_probs
from moe_jax.misrouting.probing import Explained, option_ids
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.routes import by_part
from moe_jax.misrouting.scoped import Scoped, gate_of, unedited
from moe_jax.misrouting.specs import ON_EXPERTS, Spec
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.models.causal_pretrained import PretrainedLM

CANDIDATES = 64
"""Experts whose effect is measured one by one: the selected, then the most used."""


def agreement_record(
    lm: PretrainedLM,
    texts: Sequence[Explained],
    target: Bool[np.ndarray, "l e"],
    usage: Float[np.ndarray, "l e"],
    config: StudyConfig,
    *,
    separator: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Effects for `agreement.expert_agreement`: each candidate suppressed alone.

    a_e = l(y | x, r) - l_e(y | x, r) and b_e = (l(r | x) - l_e(r | x)) / |r|, means over prompts
    that have an explanation; y the first option.

    Args:
      lm: the model.
      texts: what it wrote without intervention.
      target: the selected experts, candidates in any case.
      usage: the most used of the others are candidates too.
      config: batch size.
      separator: between delimiter and answer.
      progress: called before each candidate, with its number from 0 and how many there are.

    Returns:
      `answer` and `explanation` [c], `layer`, `expert` and `usage` of the candidates, `prompts`.
    """
    read = [one for one in texts if one.explanation]
    contexts = [
        context_of(lm, one.prompt, one.explanation, config, separator + one.options[0])
        for one in read
    ]
    delimiters = [
        int(np.sum(context_of(lm, one.prompt, one.explanation, config).part == ANSWER))
        for one in read
    ]
    order = np.argsort(-(usage + target * (1 + np.max(usage, initial=0))), axis=None, kind="stable")
    candidates = [divmod(int(i), usage.shape[1]) for i in order[:CANDIDATES]]
    plain = unedited(lm)
    base = _sums(lm, contexts, delimiters, plain, config)
    answer, explanation = [], []
    for number, (layer, expert) in enumerate(candidates):
        if progress is not None:
            progress(number, len(candidates))
        one = np.zeros_like(target)
        one[layer, expert] = True
        edit = plain._replace(edit=interventions.suppress(gate_of(lm), one))
        now = _sums(lm, contexts, delimiters, edit, config)
        answer.append(float(np.mean(base[0] - now[0])))
        explanation.append(float(np.mean(base[1] - now[1])))
    return {
        "answer": answer,
        "explanation": explanation,
        "layer": [layer for layer, _ in candidates],
        "expert": [expert for _, expert in candidates],
        "usage": [float(usage[pair]) for pair in candidates],
        "prompts": len(read),
    }


def mediation_record(
    lm: PretrainedLM,
    prompts: Sequence[Prompt],
    base: Sequence[Answered],
    options: Sequence[tuple[str, ...]],
    edit: Scoped,
    config: StudyConfig,
    *,
    separator: str,
) -> dict[str, Any]:
    """y_ab = P_b(right answer | x, r_a) of each prompt, for `mediation.routing_mediation`.

    r_1 is written while the intervention acts on the tokens of the explanation; b = 1 has it act on
    the delimiter and the answer.

    Args:
      lm: the model.
      prompts: the tasks.
      base: what it wrote without intervention.
      options: answers to choose from, the right one first.
      edit: the intervention on these prompts, of scope "all".
      config: lengths, batch size.
      separator: between delimiter and answer.

    Returns:
      `y_00`, `y_10`, `y_01`, `y_11` [n].
    """
    written = write_answers(lm, prompts, edit._replace(scope="explanation"), config)
    found, every = {}, range(len(prompts))
    for a, texts in enumerate((base, written)):
        explained = [
            Explained(prompt, one.explanation, mine)
            for prompt, one, mine in zip(prompts, texts, options, strict=True)
        ]
        contexts = [context_of(lm, one.prompt, one.explanation, config) for one in explained]
        ids = [
            option_ids(lm, context, one, config, separator)
            for context, one in zip(contexts, explained, strict=True)
        ]
        for b, acting in enumerate((edit.off(), edit._replace(scope="answer"))):
            logp = option_logp(lm, contexts, every, ids, acting, batch_size=config.batch_size)
            found[f"y_{a}{b}"] = option_probs(logp)[:, 0]
    return found


def zero_dose_record(
    lm: PretrainedLM, texts: Sequence[Explained], config: StudyConfig
) -> dict[str, Any]:
    """Is every intervention at dose zero bitwise the run without one?

    On the log-probabilities of the first batch of texts: for each of ON_EXPERTS with no expert in
    its target, bias 0 and scale 1 on all experts, Gumbel noise of temperature 0, and the routes
    that the texts take anyway, replayed.

    Returns:
      `same`: True or False by name.
    """
    some = [
        context_of(lm, one.prompt, one.explanation, config) for one in texts[: config.batch_size]
    ]
    gate = gate_of(lm)
    shape = (len(lm.config.expert_layers), gate.num_experts)
    size, numbers, plain = config.batch_size, range(len(some)), unedited(lm)
    read = text_scores(lm, some, numbers, plain, batch_size=size)
    base = [np.asarray(one.logp, np.float64) for one in read]
    none, every = np.zeros(shape, bool), np.ones(shape, bool)
    means = np.ones((*shape, lm.config.d_model), np.float32)
    edits = {
        name: make_edit(gate, Spec(name, 2.0, "all"), none, seed=config.seed, means=means)
        for name in ON_EXPERTS
    }
    own = tuple(by_part(text, one.expert) for text, one in zip(some, read, strict=True))
    edits["bias=0"] = interventions.bias(gate, every, 0.0)
    edits["scale=1"] = interventions.scale(gate, every, 1.0)
    layers = np.ones(shape[0], bool)
    edits["gumbel=0"] = interventions.gumbel(gate, layers, 0.0, seed=config.seed)
    acting = {name: plain._replace(edit=edit) for name, edit in edits.items()}
    acting["replay"] = plain._replace(routes=own)
    same = {}
    for name, edit in acting.items():
        now = text_logp(lm, some, numbers, edit, batch_size=size)
        same[name] = all(np.array_equal(p, q) for p, q in zip(base, now, strict=True))
    return {"same": same}


def _sums(
    lm: PretrainedLM,
    contexts: Sequence[Context],
    delimiters: Sequence[int],
    edit: Scoped,
    config: StudyConfig,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """l(y | x, r), and l(r | x) / |r|."""
    answer, explanation = [], []
    read = text_logp(lm, contexts, range(len(contexts)), edit, batch_size=config.batch_size)
    for context, skip, logp in zip(contexts, delimiters, read, strict=True):
        part = context.part[context.part != PROMPT]
        answer.append(logp[part == ANSWER][skip:].sum())
        explanation.append(logp[part == EXPLANATION].mean())
    return np.asarray(answer), np.asarray(explanation)
