import numpy as np
import pytest

from moe_jax.misrouting import Prompt, StudyConfig, interventions
from moe_jax.misrouting.answering import (
    Answered,
    common_separator,
    context_of,
    write_answers,
)
from moe_jax.misrouting.context import ANSWER, EXPLANATION, Context
from moe_jax.misrouting.routes import Routes
from moe_jax.misrouting.scoped import Scoped, gate_of, unedited
from moe_jax.misrouting.specs import SCOPES
from moe_jax.models import load_lm
from tests.misrouting import oracle, small_lm

_CONFIG = StudyConfig(max_new_tokens=9, answer_tokens=4, batch_size=2)
_PROMPTS = [Prompt("1+2=\n", 1, "3"), Prompt("17-4=\n", 2, "13"), Prompt("9+9=\n", 1, "18")]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


def _edit(lm, scope: str) -> Scoped:
    gate, layers = gate_of(lm), len(lm.config.expert_layers)
    target = np.zeros((layers, gate.num_experts), bool)
    target[:, : gate.num_experts // 2] = True
    return unedited(lm)._replace(edit=interventions.suppress(gate, target), scope=scope)


@pytest.mark.parametrize("scope", SCOPES)
def test_texts_are_those_of_one_prompt_at_a_time_with_the_edit_in_its_scope(lm, scope):
    run = _edit(lm, scope)
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


def _routes(lm, rng: np.random.Generator) -> Routes:
    """Routes of some tokens of each part."""
    gate, layers = gate_of(lm), len(lm.config.expert_layers)
    return Routes(
        *(
            np.argsort(rng.random((t, layers, gate.num_experts)), axis=2)[:, :, : gate.k]
            for t in (4, 6, 9)
        )
    )


def _greedy(lm, context: Context, part: int, count: int, routes: Routes, scope: str) -> list[int]:
    """The likeliest tokens, all of it read anew for each, every token under its own route."""
    ids, parts = list(context.ids), list(context.part)
    for _ in range(count):
        now = Context(np.asarray(ids), np.asarray(parts))
        drawn = np.full((64, *routes.prompt.shape[1:]), -1)
        drawn[: len(ids)] = routes.along(now.part)
        edit = interventions.replay(gate_of(lm), drawn)
        logp, _, _ = oracle.read(lm, ids, edit=edit, where=now.within(scope))
        ids.append(int(logp[-1].argmax()))
        parts.append(part)
        if ids[-1] in lm.stop_ids:
            break
    return ids[len(context.ids) :]


@pytest.mark.parametrize("scope", SCOPES)
def test_routes_of_their_own_are_followed_token_by_token(lm, scope):
    rng = np.random.default_rng(0)
    routes = tuple(_routes(lm, rng) for _ in _PROMPTS)
    edit = unedited(lm)._replace(routes=routes, scope=scope)
    found = write_answers(lm, _PROMPTS, edit, _CONFIG)
    newline = lm.tokenizer.encode("\n").ids[0]
    for prompt, mine, got in zip(_PROMPTS, routes, found, strict=True):
        asked = np.asarray(lm.tokenizer.encode(prompt.text).ids)
        said = _greedy(lm, Context(asked, np.zeros_like(asked)), EXPLANATION, 9, mine, scope)
        said = [i for i in said if i not in lm.stop_ids]
        context = context_of(lm, prompt, got.explanation, _CONFIG)
        new = _greedy(lm, context, ANSWER, 4, mine, scope)
        cut = new.index(newline) + 1 if newline in new else len(new)
        assert got.ids == [*said, *(i for i in new[:cut] if i not in lm.stop_ids)]


def test_routes_change_what_is_written(lm):
    """So that the test above can't pass with routes that do nothing."""
    routes = tuple(_routes(lm, np.random.default_rng(0)) for _ in _PROMPTS)
    plain = write_answers(lm, _PROMPTS, unedited(lm), _CONFIG)
    for scope in SCOPES:
        edit = unedited(lm)._replace(routes=routes, scope=scope)
        assert edit.off().routes is None
        assert write_answers(lm, _PROMPTS, edit, _CONFIG) != plain


def test_the_edit_is_the_identity_out_of_its_scope(lm):
    edit = _edit(lm, "explanation")
    (on,) = edit.later("explanation", [0], [0], count=4)
    (off,) = edit.later("answer", [0], [0], count=4)
    np.testing.assert_array_equal(on.suppress, edit.edit.suppress)
    assert not np.asarray(off.suppress).any()
    # One form, so that one program runs both.
    assert [a.shape for a in on] == [a.shape for a in off]
    assert not np.asarray(edit.nothing.suppress).any()
    assert not np.asarray(unedited(lm).edit.suppress).any()


def test_progress_counts_the_prompts(lm):
    seen: list[int] = []
    write_answers(lm, _PROMPTS, _edit(lm, "all"), _CONFIG, progress=seen.append)
    assert seen == [2, 1]


def test_the_separator_is_what_most_answers_begin_with():
    def one(separator: str, answer: str = "1") -> Answered:
        return Answered("", answer, True, True, separator, [])

    assert common_separator([one(" "), one(" "), one("")]) == " "
    assert common_separator([one("\n", ""), one("")]) == ""
    assert common_separator([]) == ""
