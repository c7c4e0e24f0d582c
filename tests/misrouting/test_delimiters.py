"""Delimiters, stop texts and fillers that a tokenizer shows in texts otherwise than alone."""

import numpy as np
import pytest
from tokenizers import normalizers

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, StudyConfig, TokenSubset
from moe_jax.misrouting.answering import context_of, write_answers
from moe_jax.misrouting.probing import Explained, filler_id, option_ids, probe
from moe_jax.misrouting.reading import read
from moe_jax.misrouting.scoped import unedited
from moe_jax.misrouting.selection import check_prompts
from moe_jax.models import generate, load_lm
from tests.misrouting import scripted_lm
from tests.models.small_pieces import SPACE, byte_level, sentence_pieces

NEWLINE = "\u010a"
PROMPTS = [Prompt("1+1=", 1, "7"), Prompt("12+1=", 2, "9")]


def config(delimiter, **more):
    sizes = {"max_new_tokens": 10, "answer_tokens": 4, "batch_size": 2}
    return StudyConfig(delimiter=delimiter, **sizes, **more)


@pytest.fixture(scope="module")
def bytes_lm(tmp_path_factory):
    """Writes kz<|a|>7, a newline, and ends."""
    made = byte_level(("</s>", "<|a|>"))
    written = ["=", "k", "z", "<|a|>", "7", NEWLINE]
    return load_lm(scripted_lm.write(tmp_path_factory.mktemp("bytes"), made, written))


@pytest.fixture(scope="module")
def pieces_lm(tmp_path_factory):
    """Writes k<|a|>, a space and 7 as one token, a newline, and ends."""
    made = sentence_pieces(("<|a|>",))
    written = ["=", "k", "<|a|>", f"{SPACE}7", "<0x0A>"]
    return load_lm(scripted_lm.write(tmp_path_factory.mktemp("pieces"), made, written))


@pytest.mark.parametrize(
    "delimiter, explanation, answer, complete",
    [
        ("<|a|>", "kz", "7", True),
        ("z<|a|>", "k", "7", True),
        ("z", "k", "7", True),
        # What the model never writes; the special token isn't part of the text.
        ("Answer:", "kz7\n", "", False),
    ],
)
def test_explanation_and_answer(bytes_lm, delimiter, explanation, answer, complete):
    check_prompts(bytes_lm, PROMPTS, [0, 1], config(delimiter))
    for one in write_answers(bytes_lm, PROMPTS, unedited(bytes_lm), config(delimiter)):
        assert (one.explanation, one.complete) == (explanation, complete)
        if complete:
            assert one.answer == answer


def test_a_delimiter_that_ends_a_turn(tmp_path):
    made = byte_level(("</s>", "<end>"))
    lm = load_lm(scripted_lm.write(tmp_path, made, ["=", "k", "<end>", "7", NEWLINE]))
    lm = lm._replace(stop_ids=(*lm.stop_ids, made.token_to_id("<end>")))
    for one in write_answers(lm, PROMPTS, unedited(lm), config("<end>")):
        assert (one.explanation, one.answer, one.complete) == ("k", "7", True)


def test_the_space_before_an_answer_is_seen(pieces_lm):
    lm, made = pieces_lm, pieces_lm.tokenizer
    (one, _) = write_answers(lm, PROMPTS, unedited(lm), config("<|a|>"))
    assert (one.explanation, one.complete, one.answer) == ("k", True, "7")
    assert one.ids[-2] == made.token_to_id(f"{SPACE}7")


def test_an_answer_after_a_colon(tmp_path):
    made = sentence_pieces()
    lm = load_lm(scripted_lm.write(tmp_path, made, ["=", "k", ":", f"{SPACE}7", "<0x0A>"]))
    written = write_answers(lm, PROMPTS, unedited(lm), config(":"))
    assert [one.separator for one in written] == [" ", " "]
    said = Explained(PROMPTS[0], "k", ("7", "9"))
    context = context_of(lm, said.prompt, said.explanation, config(":"))
    options = option_ids(lm, context, said, config(":"), " ")
    assert options[0] == [made.token_to_id(f"{SPACE}7"), lm.stop_ids[0]]


def test_options_that_join_the_delimiter(tmp_path):
    made = byte_level(("</s>",), merges=((":", "7"),))
    lm = load_lm(scripted_lm.write(tmp_path, made, ["=", "k"]))
    said = Explained(PROMPTS[0], "k", ("7", "9"))
    context = context_of(lm, said.prompt, said.explanation, config(":"))
    assert [made.id_to_token(one[0]) for one in option_ids(lm, context, said, config(":"), "")] == [
        "7",
        "9",
    ]


def test_the_filler_is_a_token_inside_a_text(pieces_lm):
    made = pieces_lm.tokenizer
    assert filler_id(pieces_lm, config("#")) == made.token_to_id("<0x0A>") == 13
    assert filler_id(pieces_lm, config("#", filler="a")) == made.token_to_id("a")
    with pytest.raises(UserError, match="filler='ab' is 2 tokens"):
        filler_id(pieces_lm, config("#", filler="ab"))
    said = [Explained(p, "k\n", ("7", "9")) for p in PROMPTS]
    found = probe(pieces_lm, said, unedited(pieces_lm), config("#"), separator="")
    assert np.isfinite(found.metric["filler"]).all()


@pytest.mark.parametrize("stop", ["<|a|>", "z<|a|>", "<|a|>7"])
def test_generate_stops_at_a_special_token(bytes_lm, stop):
    made = bytes_lm.tokenizer
    ids = [made.encode(p.text).ids for p in PROMPTS]
    steps = []
    for one in generate(
        bytes_lm.model,
        ids,
        max_new_tokens=8,
        stop_texts=[stop],
        decode=made.decode,
        on_token=lambda number, new: steps.append(new),
    ):
        assert one.stopped_by == stop
        assert made.decode(one.ids, skip_special_tokens=False) == "kz<|a|>" + "7" * stop.endswith(
            "7"
        )
    assert len(steps) == len(one.ids)


def test_generate_stops_at_a_space(pieces_lm):
    made = pieces_lm.tokenizer
    (one,) = generate(
        pieces_lm.model,
        [made.encode("k").ids],
        max_new_tokens=8,
        stop_texts=[" 7"],
        decode=made.decode,
    )
    assert one.stopped_by == " 7"


def test_tokens_after_a_special_token_that_was_written(bytes_lm):
    subset = TokenSubset.parse("after:<|a|>")
    for one in read(bytes_lm, PROMPTS, subset=subset, generate_tokens=6):
        assert one.text.endswith("kz<|a|>7\n")
        assert [piece for piece, on in zip(one.pieces, one.where, strict=True) if on] == ["7", "\n"]
    for one in read(bytes_lm, PROMPTS, generate_tokens=6, stop="<|a|>"):
        assert one.text.endswith("kz<|a|>")


def test_what_could_never_be_found_is_refused(bytes_lm, tmp_path):
    small = sentence_pieces()
    lm = load_lm(scripted_lm.write(tmp_path, small, ["=", "k"]))
    lm.tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), small.normalizer])
    with pytest.raises(UserError, match=r"^delimiter='Answer:' is 'answer:' in the text of this"):
        check_prompts(lm, PROMPTS, [0, 1], config("Answer:"))
    with pytest.raises(UserError, match=r"^stop='A' is 'a' in the text of this model's tokens"):
        list(read(lm, PROMPTS, generate_tokens=4, stop="A"))
    with pytest.raises(UserError, match=r"^delimiter, character 1: '.ud800' is half of"):
        check_prompts(bytes_lm, PROMPTS, [0, 1], config("\ud800"))
