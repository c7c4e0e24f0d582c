"""Prompts as chats: only their texts change, and what the template leaves out is told."""

import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt
from moe_jax.misrouting.chat_prompts import as_chat, reads_chats, template_of
from moe_jax.misrouting.context import make_context
from moe_jax.misrouting.reading_tokens import tokenise
from moe_jax.models import PretrainedSwitch
from moe_jax.models.chat import chat_template
from tests.models import small_chats

PROMPTS = [
    Prompt("1+2=", 1.0, "3", "sums", "1+2=3\n"),
    Prompt("9-1=", 2.0, "8"),
]


def made(source):
    return chat_template(source, {"bos_token": "<s>"}, "here.jinja")


def test_only_the_text_changes():
    template = made(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    assert as_chat(PROMPTS, template) == [
        Prompt("<s>[user]1+2=", 1.0, "3", "sums", "1+2=3\n"),
        Prompt("<s>[user]9-1=", 2.0, "8"),
    ]
    assert as_chat(PROMPTS[1:], template, system="Be brief.") == [
        Prompt("<s>[system]Be brief.[user]9-1=", 2.0, "8")
    ]
    assert as_chat([], template, system="Be brief.") == []


def test_what_a_template_leaves_out():
    images = made(
        "x{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(
        UserError, match=r"here\.jinja: the chat template leaves out the prompt's t"
    ):
        as_chat(PROMPTS, images)
    last = made("{{ messages[-1].content }}")
    with pytest.raises(
        UserError, match=r"here\.jinja: the chat template leaves out the system mes"
    ):
        as_chat(PROMPTS, last, system="Be brief.")
    assert as_chat(PROMPTS, last) == PROMPTS


def test_a_model_without_a_template(tmp_path):
    with pytest.raises(UserError, match=r"has no chat template .* leave out --chat, or put"):
        template_of(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("x")
    assert template_of(tmp_path).where == str(tmp_path / "chat_template.jinja")


def test_a_chat_that_ends_in_a_special_token_is_read_whole():
    """The tokens of both stages are the template's, its last one too."""
    tokenizer = small_chats.tokenizer()
    lm = reads_chats(PretrainedSwitch(None, tokenizer, None, "m"))
    (prompt,) = as_chat(PROMPTS[:1], made("{{ bos_token }}[INST]{{ messages[0].content }}[/INST]"))
    ids = [0, 4, *tokenizer.encode("1+2=").ids, 5]
    assert tokenise(lm.tokenizer, [prompt])[0].ids.tolist() == ids
    context = make_context(lm.tokenizer, prompt.text, "3\n", "A:")
    assert context.ids[: len(ids)].tolist() == ids
    assert context.part.tolist() == [0] * len(ids) + [1] * 2 + [2] * 2


def test_a_model_without_a_tokenizer_stays_without():
    assert reads_chats(PretrainedSwitch(None, None, None, "m")).tokenizer is None
