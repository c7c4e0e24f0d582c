import numpy as np
import pytest

from moe_jax.misrouting import interventions
from moe_jax.misrouting.answering import (
    Answered,
    common_separator,
    context_of,
    scoped,
    unedited,
    write_answers,
)
from moe_jax.misrouting.conditions import SCOPES, Condition
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.models.causal_pretrained import load_lm
from tests.misrouting import oracle, small_lm

_CONFIG = StudyConfig(max_new_tokens=9, answer_tokens=4, batch_size=2)
_PROMPTS = [Prompt("1+2=\n", 1, "3"), Prompt("17-4=\n", 2, "13"), Prompt("9+9=\n", 1, "18")]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


def _condition(lm, scope: str) -> Condition:
    gate, layers = lm.config.experts.gate, len(lm.config.expert_layers)
    target = np.zeros((layers, gate.num_experts), bool)
    target[:, : gate.num_experts // 2] = True
    edit = interventions.suppress(gate, target)
    return Condition(f"suppress@{scope}", "selected", scope, target, edit)


@pytest.mark.parametrize("scope", SCOPES)
def test_texts_are_those_of_one_prompt_at_a_time_with_the_edit_in_its_scope(lm, scope):
    run = _condition(lm, scope)
    for prompt, got in zip(_PROMPTS, write_answers(lm, _PROMPTS, run, _CONFIG), strict=True):
        asked = lm.tokenizer.encode(prompt.text).ids
        where = np.full(len(asked), scope in ("all", "prompt"))
        said = oracle.greedy(
            lm, asked, 9, edit=run.edit, where=where, later=scope in ("all", "explanation")
        )
        said = [i for i in said if i not in lm.stop_ids]
        # A random model doesn't write the delimiter: all that it writes is explanation.
        assert got.explanation == lm.tokenizer.decode(said)
        assert not got.complete
        context = context_of(lm, prompt, got.explanation, _CONFIG)
        new = oracle.greedy(
            lm,
            context.ids,
            4,
            edit=run.edit,
            where=context.within(scope),
            later=scope in ("all", "answer"),
        )
        newline = lm.tokenizer.encode("\n").ids[0]
        cut = new.index(newline) + 1 if newline in new else len(new)
        new = [i for i in new[:cut] if i not in lm.stop_ids]
        assert got.ids == [*said, *new]
        assert got.answer == lm.tokenizer.decode(new).strip().partition("\n")[0].strip()
        assert got.right == (got.answer == prompt.answer)


def test_the_edit_is_the_identity_out_of_its_scope(lm):
    run = _condition(lm, "explanation")
    edit = scoped(lm, run)
    assert edit.during("explanation") is run.edit
    assert edit.during("answer") is edit.nothing
    assert not np.asarray(edit.nothing.suppress).any()
    assert not np.asarray(unedited(lm).edit.suppress).any()


def test_progress_counts_the_prompts(lm):
    seen: list[int] = []
    write_answers(lm, _PROMPTS, _condition(lm, "all"), _CONFIG, progress=seen.append)
    assert seen == [2, 1]


def test_the_separator_is_what_most_answers_begin_with():
    def one(separator: str, answer: str = "1") -> Answered:
        return Answered("", answer, True, True, separator, [])

    assert common_separator([one(" "), one(" "), one("")]) == " "
    assert common_separator([one("\n", ""), one("")]) == ""
    assert common_separator([]) == ""
