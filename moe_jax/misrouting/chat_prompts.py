"""Prompts for instruct models: each becomes the user's message of a chat."""

import pathlib
from collections.abc import Sequence
from typing import TypeVar

from moe_jax.errors import UserError
from moe_jax.misrouting.inputs import Inputs
from moe_jax.misrouting.prompts import Prompt, read_prompts
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.chat import ChatTemplate, read_chat_template, render, without_added_tokens
from moe_jax.models.switch_pretrained import PretrainedSwitch

_LM = TypeVar("_LM", PretrainedLM, PretrainedSwitch, PretrainedLM | PretrainedSwitch)


def read_asked(inputs: Inputs) -> list[Prompt]:
    """The prompts of a file as the model is asked them: as they are, or as chats.

    Raises:
      UserError: as `read_prompts`, `template_of` and `as_chat`.
    """
    prompts = read_prompts(inputs.prompts)
    if inputs.chat:
        prompts = as_chat(prompts, template_of(inputs.model), system=inputs.system)
    return prompts


def template_of(model: str | pathlib.Path) -> ChatTemplate:
    """The model's chat template.

    Raises:
      UserError: it has none (what to do then), or as `read_chat_template`.
    """
    found = read_chat_template(model)
    if found is None:
        raise UserError(
            f"model {str(model)!r} has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): leave out --chat, or put the template it was trained with "
            "there"
        )
    return found


def as_chat(prompts: Sequence[Prompt], template: ChatTemplate, *, system: str = "") -> list[Prompt]:
    """The prompts with their texts as chats, up to where the answer begins; all else as it was.

    A model must read them through `reads_chats`, or special tokens are there twice.

    Args:
      prompts: what users ask.
      template: the model's.
      system: a system message before each; "": none.

    Raises:
      UserError: the template refuses one, or leaves out what it is given.
    """
    made = [p._replace(text=render(template, p.text, system=system)) for p in prompts]
    if len({p.text for p in prompts}) > 1 and len({p.text for p in made}) == 1:
        raise UserError(f"{template.where}: the chat template leaves out the prompt's text")
    if system and made and render(template, prompts[0].text) == made[0].text:
        raise UserError(f"{template.where}: the chat template leaves out the system message")
    return made


def reads_chats(lm: _LM) -> _LM:
    """The model with a tokenizer that adds no special tokens: the template has written them."""
    if lm.tokenizer is None:
        return lm
    return lm._replace(tokenizer=without_added_tokens(lm.tokenizer))
