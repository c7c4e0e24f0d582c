"""A model reads prompts: the tokens of each, and the experts that took them.

for reading in read(lm, prompts, subset=TokenSubset.parse("after:Answer:"), generate=40): ...

Prompts are read in batches of like lengths and given as they are done, so that what is kept of a
large study is up to the caller (`collect` in `profile`). Letters: t tokens, l layers with experts,
k choices, e experts.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.subsets import PromptTokens, TokenSubset
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.generate import Generation, ReadRouting, generate
from moe_jax.models.tokenizer import encode_text

_STRIDE = 32  # lengths are padded to multiples of it, so that few programs are compiled

# (prompts done, of how many); parts of a batch count as parts of its prompts.
OnProgress = Callable[[float, int], None]


class Reading(NamedTuple):
    """One prompt as the model read it, what it generated included.

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


class ReadingProgress:
    """Prompts read so far, on stderr: a line rewritten on a terminal, else one every few seconds.

    Silent where all is done within three seconds.
    """

    def __init__(self, verb: str = "reading"):
        self._verb, self._began, self._shown = verb, time.monotonic(), False
        self._last = self._began

    def __call__(self, done: float | int, total: int) -> None:
        """So many prompts of the total are done."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        early = now - self._began < 3 or now - self._last < (0.2 if terminal else 5)
        if early and not (self._shown and done >= total):
            return
        self._last, self._shown = now, True
        line = f"{self._verb} {int(done):,} of {total:,} prompts"
        if done >= 0.05 * total:  # what comes before is mostly compilation
            line += f", {(now - self._began) * (total - done) / done:.0f} s left"
        end = "" if terminal and done < total else "\n"
        print(f"{chr(13) if terminal else ''}{line:<60}", end=end, file=sys.stderr, flush=True)


def read(
    lm: PretrainedLM,
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
      lm: the model and its tokenizer.
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
    check_reading(
        lm.config, lm.name, subset, generate_tokens=generate_tokens, batch_size=batch_size
    )
    tokens = tokenise(lm.tokenizer, prompts)
    _check_lengths(tokens, lm.config, generate_tokens)
    special = special_tokens(lm.tokenizer) | set(lm.stop_ids)
    if not generate_tokens:
        for number, prompt in enumerate(tokens):
            subset.mask(prompt, special=special, number=number)
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids))
    size = min(batch_size, len(order))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        # The last batch is filled up, so that it runs through the same program.
        rows = [tokens[i].ids for i in (batch + batch[-1:] * size)[:size]]
        if generate_tokens:
            tick = (
                None if on_progress is None else _Tick(on_progress, start, len(batch), len(order))
            )
            found = _generate(lm, rows, generate_tokens, stop, tick)
            routings = [_known(g.routing) for g in found]
            read_tokens = [
                with_generated(tokens[i], g, lm.tokenizer)
                for i, g in zip(batch, found, strict=False)
            ]
        else:
            read_tokens, routings = [tokens[i] for i in batch], _forward(lm, rows)
        for i, prompt, routing in zip(batch, read_tokens, routings, strict=False):
            where = subset.mask(prompt, special=special, number=i)
            length = len(tokens[i].ids)
            pieces = token_pieces(prompt, lm.tokenizer)
            yield Reading(i, prompt.text or "", prompt.ids, pieces, length, where, *routing)
        if on_progress is not None:
            on_progress(start + len(batch), len(order))


def check_reading(
    config: CausalConfig, name: str, subset: TokenSubset, *, generate_tokens: int, batch_size: int
) -> None:
    """Raises a UserError that names the first setting that can't be, or a model without experts."""
    if not config.expert_layers:
        raise UserError(
            f"model {name!r}: this model has no experts, so there is no routing to read"
        )
    if generate_tokens < 0 or batch_size < 1:
        least = "generate must be at least 0" if generate_tokens < 0 else "batch_size at least 1"
        raise UserError(f"generate={generate_tokens}, batch_size={batch_size}: {least}")
    if subset.kind == "generated" and generate_tokens < 2:
        raise UserError(
            f"tokens='generated' needs generate of at least 2, not {generate_tokens}: the last new "
            "token is never read"
        )


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
    prompt: PromptTokens, generation: Generation, tokenizer: Tokenizer
) -> PromptTokens:
    """The prompt's tokens and the new ones that were read (all but the last), with their text.

    A character spread over several tokens belongs to the first of them.
    """
    if prompt.text is None or prompt.offsets is None:
        raise ValueError("prompt has no text or no offsets")
    before, new = prompt.ids.tolist(), generation.ids.tolist()
    skipped = len(tokenizer.decode(before))
    ends = [len(tokenizer.decode(before + new[:n])) - skipped for n in range(len(new) + 1)]
    tail = tokenizer.decode(before + new)[skipped:]
    # Bytes of an unfinished character may count as several until it is complete.
    edges = np.minimum.accumulate(np.clip(ends, 0, len(tail))[::-1])[::-1] + len(prompt.text)
    offsets = np.stack([edges[:-1], edges[1:]], axis=1)[:-1]
    return PromptTokens(
        np.concatenate([prompt.ids, generation.ids[:-1]]),
        prompt.text + tail,
        np.concatenate([prompt.offsets, offsets]),
        prompt_length=len(before),
    )


@functools.lru_cache(maxsize=8)
def _program(treedef: Any) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Routing of models of one structure, compiled once per shape; see `generate`."""

    @jax.jit
    def routes(
        leaves: list[jax.Array], ids_bs: jax.Array, where_bs: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = jax.tree.unflatten(treedef, leaves)
        model.eval()
        found = model(ids_bs, where_bs, last_only=True).routing
        return found.expert, found.weight, found.probs

    return routes


def _forward(lm: PretrainedLM, rows: list[np.ndarray]) -> list[ReadRouting]:
    """Token ids of several prompts -> their routings."""
    leaves, treedef = jax.tree.flatten(lm.model)
    s = -(-max(map(len, rows)) // _STRIDE) * _STRIDE
    ids_bs, where_bs = np.zeros((len(rows), s), np.int32), np.zeros((len(rows), s), bool)
    for b, row in enumerate(rows):
        ids_bs[b, : len(row)], where_bs[b, : len(row)] = row, True
    found = _program(treedef)(leaves, jnp.asarray(ids_bs), jnp.asarray(where_bs))
    arrays = jax.device_get(found)
    return [ReadRouting(*(a[b, : len(row)] for a in arrays)) for b, row in enumerate(rows)]


class _Tick(NamedTuple):
    """Tells the progress within a batch, token by token."""

    tell: OnProgress
    before: int
    prompts: int
    total: int

    def at(self, share: float) -> None:
        self.tell(self.before + share * self.prompts, self.total)


def _generate(
    lm: PretrainedLM, rows: list[np.ndarray], most: int, stop: str, tick: _Tick | None
) -> list[Generation]:
    return generate(
        lm.model,
        rows,
        max_new_tokens=most,
        stop_ids=lm.stop_ids,
        stop_texts=[stop] if stop else [],
        decode=lm.tokenizer.decode,
        on_token=None if tick is None else lambda step, _: tick.at(step / most),
    )


def _known(routing: ReadRouting | None) -> ReadRouting:
    if routing is None:
        raise ValueError("the model gave no routing")
    return routing


def token_pieces(prompt: PromptTokens, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The text of each token; of one that stands for none its name."""
    if prompt.text is None or prompt.offsets is None:
        raise ValueError("prompt has no text or no offsets")
    return tuple(
        prompt.text[a:b] or tokenizer.id_to_token(int(i)) or f"[{i}]"
        for i, (a, b) in zip(prompt.ids, prompt.offsets, strict=True)
    )


def _check_lengths(tokens: Sequence[PromptTokens], config: CausalConfig, more: int) -> None:
    for number, prompt in enumerate(tokens):
        length = len(prompt.ids)
        if not length:
            raise UserError(f"prompt {number}: the tokenizer makes no token of its text")
        if length + more > config.max_length:
            new = f" and {more} new ones" if more else ""
            raise UserError(
                f"prompt {number} has {length} tokens{new}: more than the model's context of "
                f"{config.max_length}"
            )
