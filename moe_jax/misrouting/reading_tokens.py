"""Texts as tokens, prompts and what was generated after them. Letters: t tokens."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.subsets import PromptTokens
from moe_jax.models.pieces import hidden_tokens
from moe_jax.models.tokenizer import encode_text


def tokenise(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], numbers: Iterable[int] | None = None
) -> list[PromptTokens]:
    """The prompts' texts as tokens, special ones that the tokenizer adds included.

    Args:
      tokenizer: the model's.
      prompts: their texts.
      numbers: what an error calls them; None: their places.

    Raises:
      UserError: the tokenizer can't take one (which, and what in it).
    """
    found = []
    named = range(len(prompts)) if numbers is None else numbers
    for number, prompt in zip(named, prompts, strict=True):
        encoded = encode_text(tokenizer, prompt.text, f"prompt {number}")
        offsets = np.asarray(encoded.offsets, np.int64).reshape(-1, 2)
        found.append(PromptTokens(np.asarray(encoded.ids, np.int32), prompt.text, offsets))
    return found


def special_tokens(tokenizer: Tokenizer) -> set[int]:
    """Ids that stand for no text: beginning and end, padding, roles of a chat."""
    return {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def with_generated(
    prompt: PromptTokens,
    new_ids: Int[np.ndarray, " n"],
    tokenizer: Tokenizer,
    *,
    show: Collection[str] = (),
) -> PromptTokens:
    """The prompt's tokens and the new ones that were read (all but the last), with their text.

    A character spread over several tokens belongs to the first of them.

    Args:
      prompt: what was read first.
      new_ids: what the model wrote.
      tokenizer: the model's.
      show: texts that are looked for: special tokens that they hold are in the text, others not.
    """
    if prompt.text is None or prompt.offsets is None:
        raise ValueError("prompt has no text or no offsets")
    before, new = prompt.ids.tolist(), new_ids.tolist()
    hidden = hidden_tokens(tokenizer, show)

    def text(ids: list[int]) -> str:
        return tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=False)

    skipped = len(text(before))
    ends = [len(text(before + new[:n])) - skipped for n in range(len(new) + 1)]
    tail = text(before + new)[skipped:]
    # Bytes of an unfinished character may count as several until it is complete.
    edges = np.minimum.accumulate(np.clip(ends, 0, len(tail))[::-1])[::-1] + len(prompt.text)
    offsets = np.stack([edges[:-1], edges[1:]], axis=1)[:-1]
    return PromptTokens(
        np.concatenate([prompt.ids, new_ids[:-1]]),
        prompt.text + tail,
        np.concatenate([prompt.offsets, offsets]),
        prompt_length=len(before),
    )


def token_pieces(prompt: PromptTokens, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The text of each token; of one that stands for none its name."""
    if prompt.text is None or prompt.offsets is None:
        raise ValueError("prompt has no text or no offsets")
    return tuple(
        prompt.text[a:b] or tokenizer.id_to_token(int(i)) or f"[{i}]"
        for i, (a, b) in zip(prompt.ids, prompt.offsets, strict=True)
    )
