"""Overlapping windows of a text, and token states from windows that are encoded alone."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from moe_jax.errors import UserError
from moe_jax.models.bert import Encoder
from moe_jax.rationale.config import ContextConfig


def spans(num_tokens: int, width: int, stride: int) -> Int[np.ndarray, "n 2"]:
    """Windows [start, stop) over a text, so that every token is in some.

    Windows `width` long start every `stride` tokens, from half a window before the text to half
    a window before its end, and are cut off at its ends: so the first and last tokens are in as
    many windows, nearly, as the others. Width 0 is the whole text.
    """
    if width == 0 or num_tokens <= width // 2:
        return np.array([[0, num_tokens]])
    start = np.arange(-(width // 2), num_tokens - width // 2 + 1, stride)
    both = np.stack([np.maximum(start, 0), np.minimum(start + width, num_tokens)], axis=1)
    last = np.array([[max(0, num_tokens - width // 2 - width % 2), num_tokens]])
    return np.unique(np.concatenate([both, last]), axis=0)


def layer_index(layer: int, num_layers: int) -> int:
    """The layer counted from 0, the embeddings; UserError if there is none of that number."""
    if not -num_layers - 1 <= layer <= num_layers:
        raise UserError(
            f"context.layer={layer} is outside the encoder's 0 (embeddings) to {num_layers}"
        )
    return layer % (num_layers + 1)


def pooled(
    encoder: Encoder, ids: Int[Array, "b s"], where: Bool[Array, "b s"], layer: int
) -> tuple[Float[Array, "b d"], Float[Array, "b s d"]]:
    """Mean state of each row (special tokens included) at unit length, and the states."""
    states = encoder.hidden_states(ids, where)[layer]
    real = where[..., None]
    mean = jnp.where(real, states, 0).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)
    return mean * jax.lax.rsqrt(jnp.sum(mean**2, axis=-1, keepdims=True) + 1e-12), states


def window_states(
    encoder: Encoder,
    ids: Int[Array, "b s"],
    where: Bool[Array, "b s"],
    *,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    pad_id: int,
    config: ContextConfig,
) -> Float[Array, "b s d"]:
    """`contextualise`'s states as a differentiable function of the encoder, in one batch.

    Args:
      encoder: any encoder of the BERT family.
      ids: token ids without special ones [b s]; real tokens first.
      where: real tokens.
      prefix: special tokens before a text.
      suffix: special tokens after it.
      pad_id: id for what is masked.
      config: windows, stride, layer, pool.

    Returns:
      [b s d]; 0 at padding.
    """
    layer = layer_index(config.layer, len(encoder.layers))
    scales = [
        _window_states(
            encoder,
            ids,
            where,
            width,
            config.stride,
            layer,
            config.pool,
            (prefix, suffix, pad_id),
        )
        for width in config.windows
    ]
    return jnp.mean(jnp.stack(scales), axis=0)


def _window_states(
    encoder: Encoder,
    ids: Array,
    where: Array,
    width: int,
    stride: int,
    layer: int,
    pool: str,
    special: tuple[tuple[int, ...], tuple[int, ...], int],
) -> Array:
    b, s = ids.shape
    length = where.sum(axis=1)
    if width == 0:
        start, stop = jnp.zeros((b, 1), int), length[:, None]
        exists, width = jnp.ones((b, 1), bool), s
    else:
        start, stop, exists = _traced_spans(length, s, width, stride)
    rows, real, at = _rows(ids, start, stop, exists, min(width, s), special)
    b, n, r = rows.shape
    mean, states = pooled(encoder, rows.reshape(b * n, r), real.reshape(b * n, r), layer)
    mean, states = mean.reshape(b, n, 1, -1), states.reshape(b, n, r, -1)
    own = jnp.broadcast_to(mean, states.shape) if pool == "window" else states
    # Places that are no token of the text (special tokens, padding) add to a place past its end.
    place = jnp.where(at < 0, s, at)
    batch = jnp.arange(b)[:, None, None]
    held = jnp.zeros((b, s + 1), own.dtype).at[batch, place].add(1.0)[:, :s, None]
    total = jnp.zeros((b, s + 1, own.shape[-1]), own.dtype).at[batch, place].add(own)[:, :s]
    return total / jnp.maximum(held, 1)


def _rows(
    ids: Array,
    start: Array,
    stop: Array,
    exists: Array,
    width: int,
    special: tuple[tuple[int, ...], tuple[int, ...], int],
) -> tuple[Array, Array, Array]:
    """Rows [b n r] for the encoder (prefix, tokens, suffix, padding), which positions are real,
    and the place in the text of each position, -1 for those that hold no token of it.
    """
    prefix, suffix, pad_id = special
    s = ids.shape[1]
    position = jnp.arange(len(prefix) + width + len(suffix))[None, None]
    inner = (stop - start)[..., None]
    at = start[..., None] + position - len(prefix)
    row = jax.vmap(lambda i, j: i[j])(ids, jnp.clip(at, 0, s - 1))
    for j, special_id in enumerate(prefix):
        row = jnp.where(position == j, special_id, row)
    for j, special_id in enumerate(suffix):
        row = jnp.where(position == len(prefix) + inner + j, special_id, row)
    there = exists[..., None]
    real = (position < len(prefix) + inner + len(suffix)) & there
    token = (position >= len(prefix)) & (position < len(prefix) + inner) & there
    return jnp.where(real, row, pad_id), real, jnp.where(token, at, -1)


def _traced_spans(length_b: Array, s: int, width: int, stride: int) -> tuple[Array, Array, Array]:
    """`spans` for lengths known only at run time: starts, stops [b n] and which of them exist."""
    half = width // 2
    first = jnp.arange(-half, max(s - half, -half) + 1, stride)[None]
    short = (length_b <= half)[:, None]
    start = jnp.maximum(first, 0)
    stop = jnp.minimum(first + width, length_b[:, None])
    ok = (first <= length_b[:, None] - half) & ~short
    last = jnp.maximum(0, length_b - half - width % 2)[:, None]
    last = jnp.where(short, 0, last)
    start = jnp.concatenate([jnp.broadcast_to(start, stop.shape), last], axis=1)
    stop = jnp.concatenate([stop, length_b[:, None]], axis=1)
    ok = jnp.concatenate([ok, jnp.ones_like(short)], axis=1)
    # `spans` counts equal windows once.
    same = (start[:, :, None] == start[:, None]) & (stop[:, :, None] == stop[:, None])
    earlier = jnp.tril(jnp.ones((1, start.shape[1], start.shape[1]), bool), -1)
    again = jnp.any(same & earlier & ok[:, None, :], axis=2)
    return start, stop, ok & ~again
