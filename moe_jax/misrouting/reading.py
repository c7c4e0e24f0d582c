"""A model reads prompts: the tokens of each, and the experts that took them.

for reading in read(lm, prompts, subset=TokenSubset.parse("after:Answer:"), generate=40): ...

Prompts are read in batches of like lengths and given as they are done, so that what is kept of a
large study is up to the caller (`collect` in `profile`). Letters: t tokens, l layers with experts,
k choices, e experts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.errors import UserError
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.readers import Read, Reader, make_reader
from moe_jax.misrouting.reading_tokens import token_pieces, tokenise
from moe_jax.misrouting.subsets import PromptTokens, TokenSubset, check_reading
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.generate import OnToken
from moe_jax.models.pieces import check_shown
from moe_jax.models.switch_pretrained import PretrainedSwitch

# (prompts done, of how many); parts of a batch count as parts of its prompts.
OnProgress = Callable[[float, int], None]


class Reading(NamedTuple):
    """One prompt as the model read it, what it generated included.

    Of an encoder-decoder that writes, it is what the decoder read: its first token, then the text
    that it wrote, without the prompt.

    Attributes:
      number: of the prompt in its data set.
      text: the prompt, and what was generated after it.
      ids: of the tokens that were read; the last one generated never is.
      pieces: the text of each; of a token that stands for none its name.
      prompt_length: how many are the prompt's.
      where: the tokens to count.
      expert: chosen experts, best first; num_experts where no expert took the choice.
      weight: combine weights; None where they are not known.
      probs: scores before the cut; None where they are not known.
    """

    number: int
    text: str
    ids: Int[np.ndarray, " t"]
    pieces: tuple[str, ...]
    prompt_length: int
    where: Bool[np.ndarray, " t"]
    expert: Int[np.ndarray, "t l k"]
    weight: Float[np.ndarray, "t l k"] | None
    probs: Float[np.ndarray, "t l e"] | None


def read(
    lm: PretrainedLM | PretrainedSwitch,
    prompts: Sequence[Prompt],
    *,
    subset: TokenSubset | None = None,
    generate_tokens: int = 0,
    stop: str = "",
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> Iterator[Reading]:
    """Read every prompt, and what the model writes after it, greedily.

    Args:
      lm: the model and its tokenizer. An encoder-decoder's encoder is read while it reads prompts,
        its decoder where it writes.
      prompts: `Prompt.text` is read.
      subset: which tokens count; None: all but special ones.
      generate_tokens: most new tokens; 0: only the prompts are read.
      stop: text that ends the new tokens, besides the model's stop ids; "": none.
      batch_size: prompts read at once.
      on_progress: called now and then.

    Yields:
      A reading of each prompt, once, in order of length.

    Raises:
      UserError: the model has no experts, a prompt is empty or doesn't fit into the context (names
        its number), the subset picks no token of a prompt, or a setting is wrong.
    """
    subset = TokenSubset() if subset is None else subset
    check_reading(subset, generate_tokens=generate_tokens, batch_size=batch_size)
    reader = make_reader(lm, writes=generate_tokens > 0)
    tokens = tokenise(reader.tokenizer, prompts)
    if stop:
        check_shown(reader.tokenizer, stop, "stop")
    _check_lengths(tokens, reader.max_length, generate_tokens)
    if not generate_tokens:
        for number, prompt in enumerate(tokens):
            subset.mask(prompt, special=reader.special, number=number)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids))
    size = min(batch_size, len(order))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        # The last batch is filled up, so that it runs through the same program.
        mine = [tokens[i] for i in (batch + batch[-1:] * size)[:size]]
        if generate_tokens:
            tick = _within(on_progress, start, len(batch), len(order), generate_tokens)
            found = reader.write(mine, generate_tokens, stop, subset.delimiter, tick)
        else:
            found = reader.forward(mine)
        for i, one in zip(batch, found, strict=False):
            yield _reading(reader, subset, i, one)
        if on_progress is not None:
            on_progress(start + len(batch), len(order))


def _reading(reader: Reader, subset: TokenSubset, number: int, read: Read) -> Reading:
    tokens, routing = read
    where = subset.mask(tokens, special=reader.special, number=number)
    pieces = token_pieces(tokens, reader.tokenizer)
    before = len(tokens.ids) if tokens.prompt_length is None else tokens.prompt_length
    return Reading(number, tokens.text or "", tokens.ids, pieces, before, where, *routing)


def _within(
    tell: OnProgress | None, before: int, prompts: int, total: int, most: int
) -> OnToken | None:
    """Tells the progress within a batch, token by token."""
    if tell is None:
        return None
    return lambda step, _: tell(before + step / most * prompts, total)


def _check_lengths(tokens: Sequence[PromptTokens], most: int | None, more: int) -> None:
    for number, prompt in enumerate(tokens):
        length = len(prompt.ids)
        if not length:
            raise UserError(f"prompt {number}: the tokenizer makes no token of its text")
        if most is not None and length + more > most:
            new = f" and {more} new ones" if more else ""
            raise UserError(
                f"prompt {number} has {length} tokens{new}: more than the model's context of {most}"
            )
