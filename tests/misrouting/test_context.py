import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from moe_jax.misrouting.context import ANSWER, EXPLANATION, PROMPT, Context, make_context


def _tokenizer(pieces: list[str], *, special: bool = False) -> Tokenizer:
    """Whole words or single characters, whatever is in the vocabulary; the longest first."""
    vocabulary = {piece: i for i, piece in enumerate(["<b>", "<e>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<b>"))
    pattern = "|".join(sorted(map(_escaped, pieces), key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.add_special_tokens(["<b>", "<e>"])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<b> $A <e>", special_tokens=[("<b>", 0), ("<e>", 1)]
        )
    return tokenizer


def _escaped(piece: str) -> str:
    return "".join("\\" + c if c in "+." else c for c in piece)


def test_each_token_belongs_to_the_part_of_its_last_character():
    tokenizer = _tokenizer(["1+2=", "1", "+", "2", "=", "\n3", "3\n", "A", ":", "3", "\n"])
    # "=\n" ends the prompt; "\n3" begins in it and ends in the explanation.
    got = make_context(tokenizer, "1+2=\n", "3\n", "A:", answer="3")
    texts = [tokenizer.id_to_token(i) for i in got.ids.tolist()]
    assert texts == ["1+2=", "\n3", "\n", "A", ":", "3"]
    assert got.part.tolist() == [PROMPT, EXPLANATION, EXPLANATION, ANSWER, ANSWER, ANSWER]


def test_special_tokens_before_the_text_are_the_prompts_and_those_after_are_left_out():
    tokenizer = _tokenizer(list("1A"), special=True)
    got = make_context(tokenizer, "1", "", "A")
    assert got.ids.tolist() == [0, 2, 3]
    assert got.part.tolist() == [PROMPT, PROMPT, ANSWER]


def test_a_prompt_alone():
    got = make_context(_tokenizer(list("1A"), special=True), "11", "", "")
    assert got.ids.tolist() == [0, 2, 2]
    assert got.within("all").all()
    assert got.within("prompt").all()
    assert not got.within("answer").any()


def test_scopes_share_out_the_tokens():
    got = make_context(_tokenizer(list("1A\n")), "1", "1\n1", "A")
    masks = np.stack([got.within(scope) for scope in ("prompt", "explanation", "answer")])
    np.testing.assert_array_equal(masks.sum(axis=0), 1)
    np.testing.assert_array_equal(masks.sum(axis=1), [1, 3, 1])


def test_another_explanation_takes_its_place():
    context = Context(np.array([5, 6, 7, 8]), np.array([PROMPT, EXPLANATION, EXPLANATION, ANSWER]))
    got = context.with_explanation([1, 1, 1])
    assert got.ids.tolist() == [5, 1, 1, 1, 8]
    assert got.part.tolist() == [PROMPT, *[EXPLANATION] * 3, ANSWER]
    assert context.with_explanation([]).ids.tolist() == [5, 8]
