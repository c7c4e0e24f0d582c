"""Concepts of prompts by hand; their effects against one text at a time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.misrouting import Prompt, StudyConfig, concepts, interventions
from moe_jax.misrouting.answering import context_of
from moe_jax.misrouting.concepts import Concept
from moe_jax.misrouting.probing import Explained
from moe_jax.misrouting.scoped import unedited
from moe_jax.models import load_lm
from tests.misrouting import oracle, small_lm

_CONFIG = StudyConfig(batch_size=4)
_OPTIONS = ("7", "17", "3", "0", "5")
_TEXTS = [
    Explained(Prompt("1+2+42=\n", 2, "7"), "1+2=3\n", _OPTIONS),  # 42 isn't named
    Explained(Prompt("9-9+3=\n", 1, "0"), "3=3\n", _OPTIONS),  # 9, twice in the text, isn't named
    Explained(Prompt("1+5=\n", 1, "6"), "1+5=6\n", _OPTIONS),  # both are
    Explained(Prompt("1+5=\n", 1, "6"), "", _OPTIONS),  # none is
    Explained(Prompt("=\n", 1, "6"), "5\n", _OPTIONS),  # there is none
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


def test_numbers_and_names_by_hand():
    text = "Ann gave Bob 1,200 apples. They cost 2.50 or 3; Bob paid.\nWho has 3?"
    found = concepts.concepts(text)
    assert [c.name for c in found] == ["Bob", "1,200", "2.50", "3"]
    for concept in found:
        assert [text[a:b] for a, b in concept.spans] == [concept.name] * len(concept.spans)
    assert [len(c.spans) for c in found] == [2, 1, 1, 2]


def test_of_many_concepts_sixteen_are_kept():
    found = concepts.concepts(" ".join(str(i) for i in range(31)))
    assert [c.name for c in found] == [str(i) for i in range(0, 31, 2)]


def test_mentions_are_whole_words():
    found = [Concept(name, ()) for name in ("3", "1,200", "Bob", "2.50", "Li")]
    said = "13 - 3.5 and Bobby: 1,200, Lin"
    assert concepts.mentions(found, said).tolist() == [False, True, False, False, False]
    assert concepts.mentions(found, "Bob's 3, Li").tolist() == [True, False, True, False, True]
    assert concepts.mentions([], "3").shape == (0,)


@given(st.text(alphabet="12 ,.aAB?\n", max_size=40))
def test_spans_are_apart_and_hold_the_name(text):
    spans = []
    for concept in concepts.concepts(text):
        assert all(text[a:b] == concept.name for a, b in concept.spans)
        spans += concept.spans
    spans.sort()
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(spans))


def _probs(lm, ids, mask, edit):
    scores = []
    for option in _OPTIONS:
        tail = [*lm.tokenizer.encode(option).ids, lm.stop_ids[0]]
        where = [*mask, *[edit.scope in ("all", "answer")] * len(tail)]
        scores.append(oracle.score(lm, ids, tail, edit=edit.edit, where=where).sum())
    weight = np.exp(np.asarray(scores) - max(scores))
    return weight / weight.sum()


def _divergence(p, q):
    m = (p + q) / 2
    return (np.sum(p * np.log2(p / m)) + np.sum(q * np.log2(q / m))) / 2


@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_values_are_those_of_one_text_at_a_time(lm, scope):
    gate, layers = lm.config.experts.gate, len(lm.config.expert_layers)
    target = np.zeros((layers, gate.num_experts), bool)
    target[:, ::2] = True
    edit = unedited(lm)._replace(edit=interventions.suppress(gate, target), scope=scope)
    got = concepts.named_concepts(lm, _TEXTS, edit, _CONFIG, separator="")
    filler = lm.tokenizer.encode("\n").ids[0]
    for value, one, places, named in (
        # By hand: the tokens (characters) of each concept.
        (got[0], _TEXTS[0], [[0], [2], [4, 5]], [True, True, False]),
        (got[1], _TEXTS[1], [[0, 2], [4]], [False, True]),
    ):
        context = context_of(lm, one.prompt, "", _CONFIG)
        mask = context.within(scope)
        base = _probs(lm, context.ids, mask, edit)
        effect = []
        for tokens in places:
            ids = context.ids.copy()
            ids[tokens] = filler
            effect.append(_divergence(base, _probs(lm, ids, mask, edit)))
        pairs = [
            np.sign(a - b) / 2 + 0.5
            for (a, na), (b, nb) in itertools.product(zip(effect, named, strict=True), repeat=2)
            if na and not nb
        ]
        np.testing.assert_allclose(value, np.mean(pairs))
    assert np.isnan(got[2:]).all()
