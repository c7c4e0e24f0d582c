import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, StudyConfig, interventions, probing
from moe_jax.misrouting.answering import context_of
from moe_jax.misrouting.context import ANSWER, EXPLANATION, PROMPT
from moe_jax.misrouting.probing import Explained
from moe_jax.misrouting.scoped import Scoped, unedited
from moe_jax.models import load_lm
from tests.misrouting import oracle, small_lm

_CONFIG = StudyConfig(batch_size=8)
_TEXTS = [
    Explained(Prompt("1+2+4=\n", 2, "7"), "1+2=3\n3+4=7\n", ("7", "17", "3", "0", "5")),
    Explained(Prompt("9-9=\n", 1, "0"), "9-9=0\n", ("12", "0", "3", "7", "5")),
    Explained(Prompt("5=\n", 1, "5"), "", ("5", "0", "3", "7", "1")),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


def _edit(lm, scope: str) -> Scoped:
    gate, layers = lm.config.experts.gate, len(lm.config.expert_layers)
    target = np.zeros((layers, gate.num_experts), bool)
    target[:, ::2] = True
    return unedited(lm)._replace(edit=interventions.suppress(gate, target), scope=scope)


def _option_probs(lm, one, explanation, edit, *, filled=False):
    """P over the options after an explanation, from one text at a time."""
    context = context_of(lm, one.prompt, explanation, _CONFIG)
    if filled:
        newline = lm.tokenizer.encode("\n").ids[0]
        context = context.with_explanation([newline] * int(np.sum(context.part == EXPLANATION)))
    scores = []
    for option in one.options:
        tail = [*lm.tokenizer.encode(option).ids, lm.stop_ids[0]]
        later = edit.scope in ("all", "answer")
        where = [*context.within(edit.scope), *[later] * len(tail)]
        scores.append(oracle.score(lm, context.ids, tail, edit=edit.edit, where=where).sum())
    weight = np.exp(np.asarray(scores) - max(scores))
    return np.asarray(scores), weight / weight.sum()


@pytest.mark.parametrize("scope", ["all", "explanation", "answer"])
def test_figures_are_those_of_one_text_at_a_time(lm, scope):
    edit = _edit(lm, scope)
    got = probing.probe(lm, _TEXTS, edit, _CONFIG, separator="")
    for i, one in enumerate(_TEXTS[:2]):
        lines = one.explanation.splitlines(keepends=True)
        scores, probs = _option_probs(lm, one, one.explanation, edit)
        own = probs.argmax()
        np.testing.assert_allclose(got.probs[i], probs, atol=1e-5)
        ordered = np.sort(scores)
        np.testing.assert_allclose(got.margin[i], ordered[-1] - ordered[-2], atol=1e-4)
        _, filled = _option_probs(lm, one, one.explanation, edit, filled=True)
        np.testing.assert_allclose(got.metric["filler"][i], probs[own] - filled[own], atol=1e-5)
        assert got.metric["filler_flip"][i] == (filled.argmax() != own)
        cut = [_option_probs(lm, one, "".join(lines[:j]), edit)[1] for j in range(len(lines) + 1)]
        ratio = np.mean([min(1.0, p[own] / probs[own]) for p in cut])
        np.testing.assert_allclose(got.metric["early"][i], 1 - ratio, atol=1e-5)
        same = np.mean([p.argmax() == own for p in cut])
        np.testing.assert_allclose(got.metric["early_hard"][i], 1 - same, atol=1e-9)
        assert 0 <= got.metric["corrupt_flip"][i] <= 1
        assert -2 <= got.metric["corrupt_drop"][i] <= 2


def test_a_text_without_a_step_has_no_faithfulness(lm):
    got = probing.probe(lm, _TEXTS, unedited(lm), _CONFIG, separator="")
    assert all(np.isnan(values[2]) for values in got.metric.values())
    assert all(np.isfinite(values[:2]).all() for values in got.metric.values())
    assert np.isfinite(got.probs).all()


def test_corrupting_is_the_same_every_time(lm):
    a, b = (probing.probe(lm, _TEXTS, unedited(lm), _CONFIG, separator="") for _ in range(2))
    np.testing.assert_array_equal(a.metric["corrupt_drop"], b.metric["corrupt_drop"])


def test_long_explanations_are_cut_at_few_places(lm):
    long = _TEXTS[0]._replace(explanation="1+1=2\n" * 9)
    texts = probing._changed(lm, long, StudyConfig(max_steps=3), np.random.default_rng(0))
    kept = [
        lm.tokenizer.decode(c.ids[c.part == EXPLANATION].tolist()).count("\n")
        for c in texts.contexts[: texts.full + 1]
    ]
    assert kept == [0, 4, 8, 9]
    assert len(texts.contexts) == 3 + 1 + 1 + 3


def test_options_end_with_the_stop_token_and_keep_the_separator(lm):
    context = context_of(lm, _TEXTS[0].prompt, _TEXTS[0].explanation, _CONFIG)
    ids = probing.option_ids(lm, context, _TEXTS[0], _CONFIG, " ")
    assert lm.tokenizer.decode(ids[1][:-1]) == " 17"
    assert ids[1][-1] == lm.stop_ids[0]


def test_a_filler_of_several_tokens_is_refused(lm):
    with pytest.raises(UserError, match=r"filler='1\+1' is 3 tokens of this model"):
        probing.filler_id(lm, StudyConfig(filler="1+1"))


def test_alignment_of_inputs_is_the_cosine_of_what_leaving_out_costs(lm):
    edit = _edit(lm, "all")
    got = probing.input_alignment(lm, _TEXTS, edit, _CONFIG, separator="")
    assert np.isnan(got[2])
    newline = lm.tokenizer.encode("\n").ids[0]
    for i, one in enumerate(_TEXTS[:2]):
        whole = context_of(lm, one.prompt, one.explanation, _CONFIG, one.options[0])
        asked = int(np.sum(whole.part == PROMPT))
        part, logp = whole.part[asked:], []
        for j in range(-1, asked):
            ids = whole.ids.copy()
            if j >= 0:
                ids[j] = newline
            logp.append(oracle.score(lm, ids[:asked], ids[asked:], edit=edit.edit))
        phi = logp[0][:, None] - np.stack(logp[1:], axis=1)
        answered = phi[part == ANSWER][len("Answer:") :]
        shares = [
            (x / np.abs(x).sum(axis=1, keepdims=True)).mean(axis=0)
            for x in (answered, phi[part == EXPLANATION])
        ]
        a, b = shares
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(got[i], cosine, atol=1e-3)
