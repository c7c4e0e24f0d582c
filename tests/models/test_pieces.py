"""Pieces inside texts: other tokens than alone, other text than alone, special tokens in it."""

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from moe_jax.errors import UserError
from moe_jax.models.pieces import check_shown, hidden_tokens, piece_ids, text_after
from tests.models.small_pieces import SPACE, byte_level, sentence_pieces


def names(made, piece, **kw):
    return [made.id_to_token(i) for i in piece_ids(made, piece, "piece", **kw)]


@pytest.mark.parametrize(
    "piece, wanted",
    [
        ("\n", ["<0x0A>"]),
        ("a", ["a"]),
        (" 7", [f"{SPACE}7"]),
        ("7", ["7"]),
        (" ", [SPACE]),
        ("#:", ["#", ":"]),
        ("!", ["<0x21>"]),
    ],
)
def test_no_space_is_set_before_a_piece(piece, wanted):
    made = sentence_pieces()
    assert names(made, piece) == wanted
    assert names(made, piece, before="k=") == wanted
    # The text's tokens end so, whatever comes first.
    assert made.encode("k#" + piece).tokens[-len(wanted) :] == wanted


def test_a_piece_that_joins_what_is_before_it():
    made = byte_level(merges=(("a", "\u010a"), ("0", "x")))
    assert made.encode("a\n").tokens == ["a\u010a"]
    assert names(made, "\n") == ["\u010a"]
    assert names(made, "\n", before="ka") == ["\u010a"]
    assert names(made, "xy", before="0") == ["x", "y"]


def test_a_tokenizer_that_knows_few_characters():
    made = Tokenizer(models.WordLevel({"=": 0, "7": 1, "\n": 2}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    assert piece_ids(made, "7", "answer") == [1]
    with pytest.raises(UserError, match=r"^answer: the model's tokenizer has no token for 'a'"):
        piece_ids(made, "a", "answer")


def test_words_that_are_one_token_each():
    made = Tokenizer(models.WordLevel({"w0": 0, "w1": 1}, unk_token="w0"))
    assert piece_ids(made, "w1", "piece") == [1]


def test_the_space_that_new_tokens_begin_with():
    made = sentence_pieces()
    before = made.encode("k:").ids
    new = [made.token_to_id(f"{SPACE}7"), made.token_to_id("<0x0A>")]
    assert made.decode(new) == "7\n"
    assert text_after(made, before, new, hidden_tokens(made)) == " 7\n"
    assert text_after(made, [], new, hidden_tokens(made)) == "7\n"
    assert text_after(made, before, [], hidden_tokens(made)) == ""


def test_half_a_character_before_new_tokens():
    made = byte_level()
    ids = made.encode("a\N{GRINNING FACE}b").ids
    whole = "".join(text_after(made, ids[:1], ids[1:n], hidden_tokens(made)) for n in (len(ids),))
    assert whole == "\N{GRINNING FACE}b"
    assert text_after(made, ids[:-1], ids[-1:], hidden_tokens(made)) == "b"


@pytest.mark.parametrize("made", [byte_level(("<e>", "<|a|>")), sentence_pieces(("<e>", "<|a|>"))])
def test_special_tokens_that_are_looked_for_are_in_the_text(made):
    ids = made.encode("k<e>z<|a|>7<e>", add_special_tokens=False).ids
    assert "<" not in made.decode(ids)
    shown = text_after(made, ids[:2], ids[2:], hidden_tokens(made, ["x<|a|>"]))
    assert "<|a|>" in shown
    assert "<e>" not in shown


def test_a_text_that_is_never_found():
    lower = Tokenizer(models.WordLevel({"[UNK]": 0, "answer": 1, ":": 2}, unk_token="[UNK]"))
    lower.normalizer, lower.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    check_shown(lower, "answer", "stop", before=":")
    with pytest.raises(UserError, match=r"^delimiter='Answer' is '.*answer' in the text of this"):
        check_shown(lower, "Answer", "delimiter")
    made = byte_level(("<|a|>",))
    for piece in ("<|a|>", "k<|a|>\n", "Answer:", "\n\n", " "):
        check_shown(made, piece, "delimiter", before="1+1=")


@pytest.mark.parametrize("half", ["\ud83d", "a\ude00b", "\ude00\ud83d"])
def test_half_of_a_surrogate_pair_is_named(half):
    place = 2 if half[0] == "a" else 1
    with pytest.raises(UserError, match=rf"^piece, character {place}: '\\ud.*half of a surrogate"):
        piece_ids(sentence_pieces(), half, "piece")
