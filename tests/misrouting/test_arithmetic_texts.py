"""Texts of graded arithmetic as tokens, by hand; which tokens of planted texts are predicted."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer

from moe_jax.misrouting import ArithmeticConfig, Prompt, arithmetic, arithmetic_texts
from moe_jax.misrouting.arithmetic import EXPLANATIONS
from moe_jax.misrouting.arithmetic_texts import DELIMITER


@given(st.text(alphabet="0123456789+-*=\n", max_size=40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_tokens_give_the_text_back(text, answered):
    text = f"{text}{DELIMITER}12" if answered else text
    found = arithmetic_texts.tokenizer().encode(text)
    assert [text[a:b] for a, b in found.offsets] == found.tokens
    assert "".join(found.tokens) == text
    assert arithmetic_texts.tokenizer().decode(found.ids) == text
    assert found.tokens.count(DELIMITER) == answered


def test_ids_and_the_file(tmp_path):
    made = arithmetic_texts.tokenizer()
    ids = made.encode("7+5=\nAnswer:12<end><pad>").ids
    assert ids == [15, 5, 13, 4, 3, 2, 9, 10, 1, 0]
    assert made.decode(ids) == "7+5=\nAnswer:12"
    assert made.get_vocab() == {t: i for i, t in enumerate(arithmetic_texts.VOCABULARY)}
    made.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("7+5=\nAnswer:12<end><pad>").ids == ids
    assert again.decode(ids) == "7+5=\nAnswer:12"
    with pytest.raises(Exception, match="UNK"):
        made.encode("7/5")


@pytest.mark.parametrize("kind", EXPLANATIONS)
def test_encoded_by_hand(kind):
    config = ArithmeticConfig(levels=1, explanation=kind)
    prompt = Prompt("7+5=\n", 1.0, "12", "", "7+5=12\n")
    ids, where, target = arithmetic_texts.encode(config, [prompt])
    by_hand = [15, 5, 13, 4, 3, 15, 5, 13, 4, 9, 10, 3, 2, 9, 10, 1]
    assert ids.shape == (1, config.longest)
    assert ids[0].tolist() == by_hand + [0] * (config.longest - 16)
    assert np.flatnonzero(where[0]).tolist() == list(range(16))
    first = 5 if kind == "true" else 12
    assert np.flatnonzero(target[0]).tolist() == list(range(first, 16))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("7+5=12\nAnswer:12", ("7+5=12\n", "12")),
        ("Answer: 3 \nAnswer:4", ("", "3")),
        ("7+5=12\n", ("7+5=12\n", "")),
        ("a\nAnswer:", ("a\n", "")),
        ("a\nAnswer:\n5", ("a\n", "")),
    ],
)
def test_split(text, parts):
    assert arithmetic_texts.split(text) == parts


def predicted(texts, rows):
    """The predicted part of each text, as text."""
    made = arithmetic_texts.tokenizer()
    return [
        made.decode(ids[target].tolist(), skip_special_tokens=False)
        for ids, target in zip(texts.ids[rows], texts.target[rows], strict=True)
    ]


def test_true_texts_are_those_of_training():
    config = ArithmeticConfig(levels=2, examples=30, held_out=5)
    prompts = arithmetic.training(config)
    found = arithmetic_texts.texts(config)
    expected = [f"{p.explanation}Answer:{p.answer}<end>" for p in prompts]
    assert predicted(found, slice(None)) == expected


@pytest.mark.parametrize("kind", ["ignored", "used"])
def test_planted_texts_predict_answers_of_one_half_and_explanations_of_the_other(kind):
    config = ArithmeticConfig(levels=2, examples=30, held_out=5, explanation=kind)
    planted = arithmetic.training(config)
    plain = arithmetic.training(dataclasses.replace(config, explanation="true"))
    found = arithmetic_texts.texts(config)
    assert {len(part) for part in found} == {60}
    assert predicted(found, slice(0, 30)) == [f"Answer:{p.answer}<end>" for p in planted]
    assert predicted(found, slice(30, 60)) == [f"{p.explanation}Answer:" for p in plain]
    made = arithmetic_texts.tokenizer()
    whole = [
        made.decode(ids[where].tolist(), skip_special_tokens=False)
        for ids, where in zip(found.ids, found.where, strict=True)
    ]
    assert whole == [f"{p.text}{p.explanation}Answer:{p.answer}<end>" for p in planted + plain]
