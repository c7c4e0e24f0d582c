"""Text continued by a causal language model, with the routing of every token that was read.

found = generate(model, [[5, 7, 9], [3]], max_new_tokens=20, stop_ids=(2,))
found[0].ids                    # new tokens
found[0].routing.expert         # [t l k], prompt first, then the new tokens that were read

Prompts are read together, padded on the left; then one token of each at a time, with a cache.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from moe_jax.gating import RoutingEdit
from moe_jax.models.causal_lm import Cache, CausalLM, Output
from moe_jax.models.compiled import flat_model, per_structure
from moe_jax.models.generate_checks import (
    Decode,
    Prompt,
    check_edit,
    check_settings,
    checked_masks,
    checked_prompts,
)
from moe_jax.models.new_texts import NewTexts
from moe_jax.models.rows import (
    Edits,
    at_position,
    by_position,
    for_positions,
    padded,
    padded_masks,
    rounded,
)
from moe_jax.models.sampling import SamplingConfig, sample

# (step from 0, ids [b]) after every token; -1 in rows that had stopped before.
OnToken = Callable[[int, Int[np.ndarray, " b"]], None]


class ReadRouting(NamedTuple):
    """Routing of the tokens that the model read, without padding. l: layers with a mixture.

    Attributes:
      expert: chosen experts [t l k], best first; num_experts marks a slot without one.
      weight: combine weights [t l k].
      probs: scores before the cut [t l e].
    """

    expert: Int[np.ndarray, "t l k"]
    weight: Float[np.ndarray, "t l k"]
    probs: Float[np.ndarray, "t l e"]


class Generation(NamedTuple):
    """What one prompt led to.

    The last new token was drawn but never read, so t = prompt_tokens + len(ids) - 1: `routing` has
    the prompt's tokens first, then ids[:-1].

    Attributes:
      ids: new tokens [n], the one that stopped it included; n >= 1.
      logprob: of each under the model's softmax, before temperature and cuts [n].
      finish: "stop", or "length" where max_new_tokens came first.
      stopped_by: the stop id or stop text; None with "length".
      prompt_tokens: tokens of the prompt.
      routing: of every token read; None for a dense model.
    """

    ids: Int[np.ndarray, " n"]
    logprob: Float[np.ndarray, " n"]
    finish: Literal["stop", "length"]
    stopped_by: int | str | None
    prompt_tokens: int
    routing: ReadRouting | None

    @property
    def content(self) -> Int[np.ndarray, " m"]:
        """The new tokens without a stop id; a stop text stays."""
        return self.ids[:-1] if isinstance(self.stopped_by, int) else self.ids


def generate(
    model: CausalLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    stop_ids: Collection[int] = (),
    stop_texts: Sequence[str] = (),
    decode: Decode | None = None,
    seed: int = 0,
    pad_id: int = 0,
    edit_prompt: Edits | None = None,
    edit_where: Sequence[Bool[np.ndarray, " _"]] | None = None,
    edit_generated: Edits | None = None,
    on_token: OnToken | None = None,
) -> list[Generation]:
    """Continue prompts together, each as if it were alone.

    Gates have no noise here, whatever mode the model is in. A capacity counts within one reading:
    the prompt's tokens together, each new token by itself.

    Args:
      model: the model; it is not changed.
      prompts: token ids of each, of any lengths.
      max_new_tokens: most new tokens of a prompt.
      sampling: how tokens are drawn; None: greedy.
      stop_ids: a prompt is done at the first of these.
      stop_texts: a prompt is done at the first token that completes one of these in the text of
        its new tokens; ids end with this token, which may carry text past the stop text.
      decode: gives that text; called with all new ids of one prompt after each of its tokens. With
        the `decode` of a `tokenizers.Tokenizer`, which leaves special tokens out, those that a stop
        text holds are found all the same; a function of your own must show them.
      seed: of the draws. What a prompt gets depends on its place among the prompts.
      pad_id: read, and ignored, before short prompts.
      edit_prompt: interventions on the gates while the prompts are read. Each leaf is [l 1 ...],
        the same for all, or [l b ...], one for each prompt. Or a list: an edit for each prompt,
        leaves [l 1 ...] or [l t ...], a row for each of its tokens. `seed` is [l] and `stand_in`
        [l e #d], the same in all of a list.
      edit_where: for each prompt, at which of its tokens [t] edit_prompt acts (among those that its
        own `tokens` has); None: at all. Without edit_prompt it has no effect.
      edit_generated: the same, while new tokens are read; edits of a list have a row for each of
        the max_new_tokens - 1 that may be. `seed` grows by 1 with each token, so that random
        experts differ between them.
      on_token: called after each step.

    Returns:
      For each prompt its new tokens, why they end, and the routing.

    Raises:
      UserError: no room in the context, ids that the model does not have, or a wrong setting; the
        message names it. Logits that are not numbers.
      ValueError: stop_texts without decode, an edit of the wrong shape, or masks that don't fit
        the prompts.
    """
    sampling = SamplingConfig() if sampling is None else sampling
    sampling.validate("sampling")
    check_settings(model.config.vocab_size, max_new_tokens, stop_ids, stop_texts, decode, pad_id)
    rows = checked_prompts(prompts, model.config, max_new_tokens)
    lengths, later = [len(row) for row in rows], [max_new_tokens - 1] * len(rows)
    check_edit("edit_prompt", edit_prompt, len(rows), lengths)
    check_edit("edit_generated", edit_generated, len(rows), later)
    masks = checked_masks("edit_where", edit_where, lengths)
    if not rows:
        return []
    flat = flat_model(model)
    prefill, step = _prefill.of(flat), _decode.of(flat)
    ids_bs, where_bs = padded(rows, pad_id)
    on_bs = padded_masks(masks, ids_bs.shape[1])
    room = rounded(max_new_tokens - 1)
    slots = ids_bs.shape[1] + room
    if edit_prompt is not None and not isinstance(edit_prompt, RoutingEdit):
        edit_prompt = by_position(edit_prompt, lengths, ids_bs.shape[1])
    if edit_generated is not None and not isinstance(edit_generated, RoutingEdit):
        edit_generated = by_position(edit_generated, later, room, left=False)
    draw = _Draw(
        jax.random.key(seed),
        jnp.float32(sampling.temperature),
        jnp.int32(sampling.top_k or 0),
        jnp.float32(sampling.top_p),
    )
    texts = NewTexts("prompt", len(rows), frozenset(stop_ids), tuple(stop_texts), decode, rows)
    out = prefill(ids_bs, where_bs, edit_prompt, on_bs, draw, slots)
    routings = []
    for number in range(max_new_tokens):
        if number:
            out = step(out.cache, out.ids, texts.live.copy(), edit_generated, draw, number)
        routings.append(out.routing)
        new, logprob = jax.device_get((out.ids, out.logprob))
        shown = texts.add(new, logprob)
        if on_token is not None:
            on_token(number, shown)
        if not texts.live.any():
            break
    return _generations(texts, lengths, jax.device_get(routings), where_bs.shape[1])


class _Draw(NamedTuple):
    """What `sample` needs."""

    key: Array
    temperature: Array
    top_k: Array
    top_p: Array


class _Step(NamedTuple):
    """Tokens drawn, their log-probabilities, the routing [b s l ...] of what was read."""

    ids: Int[Array, " b"]
    logprob: Float[Array, " b"]
    routing: tuple[Array, Array, Array] | None
    cache: Cache


@per_structure(static_argnames="slots")
def _prefill(
    model: CausalLM,
    ids_bs: Array,
    where_bs: Array,
    edit: RoutingEdit | None,
    on_bs: Array,
    draw: _Draw,
    slots: int,
) -> _Step:
    """Read the prompts and draw the first token of each."""
    out = model(
        ids_bs,
        where_bs,
        cache=model.empty_cache(len(ids_bs), slots),
        edit=for_positions(edit, on_bs),
        last_only=True,
    )
    return _drawn(out, draw, jnp.int32(0))


@per_structure(donate_argnames="cache")
def _decode(
    model: CausalLM,
    cache: Cache,
    ids_b: Array,
    live_b: Array,
    edit: RoutingEdit | None,
    draw: _Draw,
    number: Array,
) -> _Step:
    """Read the token of each prompt that was drawn last, and draw the next."""
    if edit is not None:
        edit = edit._replace(seed=edit.seed + jnp.asarray(number).astype(edit.seed.dtype))
    edit = at_position(edit, number - 1)
    out = model(ids_b[:, None], live_b[:, None], cache=cache, edit=edit)
    return _drawn(out, draw, number)


def _drawn(out: Output, draw: _Draw, number: Array) -> _Step:
    key = jax.random.fold_in(draw.key, number)
    found = sample(
        out.logits[:, -1],
        temperature=draw.temperature,
        top_k=draw.top_k,
        top_p=draw.top_p,
        key=key,
    )
    r = out.routing
    routing = None if r is None else (r.expert, r.weight, r.probs)
    if out.cache is None:
        raise ValueError("the model gave no cache")
    return _Step(found.ids, found.logprob, routing, out.cache)


def _generations(
    texts: NewTexts,
    prompt_lengths: Sequence[int],
    routings: list[tuple[np.ndarray, ...] | None],
    length: int,
) -> list[Generation]:
    """Cut what belongs to each prompt; `length` is the prompts' padded length."""
    found = []
    first, *rest = routings
    later = None if first is None or not rest else jax.tree.map(_joined, *rest)
    for row, prompt_tokens in enumerate(prompt_lengths):
        pad, new = length - prompt_tokens, len(texts.ids[row])
        mine = None
        if first is not None:
            parts = [[a[row, pad:]] for a in first]
            if later is not None:
                parts = [[p, a[row, : new - 1]] for (p,), a in zip(parts, later, strict=True)]
            mine = ReadRouting(*(np.concatenate(p) for p in parts))
        found.append(Generation(*texts.row(row), prompt_tokens, mine))
    return found


def _joined(*steps: np.ndarray) -> np.ndarray:
    return np.concatenate(steps, axis=1)
