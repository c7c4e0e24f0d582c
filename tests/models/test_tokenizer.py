"""Texts that a tokenizer can't take: the error says where."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from moe_jax.errors import UserError
from moe_jax.misrouting.arithmetic_texts import tokenizer
from moe_jax.models.tokenizer import encode_text


def test_ids_are_the_tokenizers():
    found = encode_text(tokenizer(), "7+5=", "prompt 3")
    assert found.ids == [15, 5, 13, 4]


def test_an_unknown_character_is_named():
    with pytest.raises(UserError, match=r"^prompt 3, character 3: .* no token for 'x'"):
        encode_text(tokenizer(), "7+x/5", "prompt 3")


def test_a_text_of_known_characters_that_fails_as_a_whole():
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    words = Tokenizer(models.WordLevel(vocabulary))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match=r"^answer: the model's tokenizer can't take it: .*UNK"):
        encode_text(words, "ba", "answer")


def test_half_of_a_surrogate_pair():
    with pytest.raises(UserError, match=r"^prompt 3, character 2: '.ud800' is half"):
        encode_text(tokenizer(), "a\ud800", "prompt 3")
