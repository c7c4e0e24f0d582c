r"""States averaged within stretches of one subject, over every way to cut a text into stretches.

A window of a few words around a token reaches across the border of its subject. Where the
borders are is not known, but every segmentation of a text has a score, so that a token's state can
be its expected mean over the segmentations:

    gain(a, b)  = ||sum_{a<=i<b} key_i||^2 / (b - a)        keys at unit length: b - a minus the
                                                            scatter about their mean
    p(segments) ~ exp(sharpness * sum_segments (gain - cost))
    x'_i        = sum_j A_ij x_j,   A_ij = E[1(i and j in one segment) / (length of it)]

A is symmetric and its rows sum to 1. The gain is that of kernel change-point detection (Harchaoui
and Cappe 2007), the expectation that of product partition models (Barry and Hartigan 1992). All
is computed in O(s^2) for each text; gradients flow through the states x, not through A.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_NEVER = -1e9
_SHORTEST = 3  # tokens in a segment, unless it touches an end of the text


def pool(
    states: Float[Array, "b s d"],
    keys: Float[Array, "b s h"],
    where: Bool[Array, "b s"],
    *,
    sharpness: float,
    cost: float,
) -> Float[Array, "b s d"]:
    """x': each token's expected segment mean; 0 at padding.

    Args:
      states: x, what is averaged.
      keys: by which segments are told apart; at unit length, 0 at padding.
      where: real tokens, first in each row.
      sharpness: how surely the best segmentation wins; 0 gives all the same weight.
      cost: of one segment, in units of the gain: more means fewer, longer segments.
    """
    mixing = same_segment(keys, where, sharpness=sharpness, cost=cost)
    real = jnp.where(where[..., None], states, 0)
    return jnp.einsum("bst,btd->bsd", mixing, real)


def same_segment(
    keys: Float[Array, "b s h"],
    where: Bool[Array, "b s"],
    *,
    sharpness: float,
    cost: float,
) -> Float[Array, "b s s"]:
    """A of the module's text; rows and columns of padding are 0. No gradient flows through it."""
    keys = jnp.where(where[..., None], jax.lax.stop_gradient(keys), 0)
    length = jnp.sum(where, axis=1)
    score = jnp.where(_allowed(where.shape[1], length), sharpness * (_gains(keys) - cost), _NEVER)
    before, total = _before(score, length)
    log_p = before[:, :, None] + score + _after(score, length)[:, None, :]
    probs = jnp.exp(jnp.minimum(log_p - total[:, None, None], 0))
    size = keys.shape[1] + 1
    per_token = probs / jnp.maximum(jnp.arange(size)[None] - jnp.arange(size)[:, None], 1)
    # Segments [a, b) that hold both i <= j: a <= i and b >= j + 1.
    both = jnp.cumsum(per_token, axis=1)
    both = jnp.cumsum(both[:, :, ::-1], axis=2)[:, :, ::-1][:, :-1, 1:]
    return jnp.triu(both) + jnp.swapaxes(jnp.triu(both, 1), 1, 2)


def _gains(keys: Float[Array, "b s h"]) -> Float[Array, "b t t"]:
    """gain(a, b) for 0 <= a < b <= s; rubbish elsewhere."""
    gram = jnp.einsum("bsh,bth->bst", keys, keys, precision=jax.lax.Precision.HIGHEST)
    area = jnp.pad(jnp.cumsum(jnp.cumsum(gram, axis=1), axis=2), ((0, 0), (1, 0), (1, 0)))
    corner = jnp.diagonal(area, axis1=1, axis2=2)
    inside = corner[:, None, :] + corner[:, :, None] - area - jnp.swapaxes(area, 1, 2)
    place = jnp.arange(area.shape[1])
    return inside / jnp.maximum(place[None, :] - place[:, None], 1)


def _allowed(s: int, length: Array) -> Bool[Array, "b t t"]:
    """Which [a, b) may be a segment."""
    place = jnp.arange(s + 1)
    extent = place[None, :] - place[:, None]
    at_end = (place[:, None] == 0)[None] | (place[None, :] == length[:, None, None])
    inside = place[None, None, :] <= length[:, None, None]
    return inside & (extent > 0)[None] & ((extent >= _SHORTEST)[None] | at_end)


def _before(score: Array, length: Array) -> tuple[Array, Array]:
    """[b t] log of the summed weight of all ways to cut [0, t); and of the whole text."""
    b, size, _ = score.shape
    first = jnp.full((b, size), _NEVER).at[:, 0].set(0.0)

    def step(log_w: Array, at: Array) -> tuple[Array, None]:
        column = jax.lax.dynamic_index_in_dim(score, at, axis=2, keepdims=False)
        value = jnp.maximum(jax.nn.logsumexp(log_w + column, axis=1), _NEVER)
        return log_w.at[:, at].set(value), None

    log_w, _ = jax.lax.scan(step, first, jnp.arange(1, size))
    return log_w, jnp.take_along_axis(log_w, length[:, None], axis=1)[:, 0]


def _after(score: Array, length: Array) -> Array:
    """[b t] log of the summed weight of all ways to cut [t, length)."""
    size = score.shape[1]
    first = jnp.where(jnp.arange(size)[None] == length[:, None], 0.0, _NEVER)

    def step(log_w: Array, at: Array) -> tuple[Array, None]:
        row = jax.lax.dynamic_index_in_dim(score, at, axis=1, keepdims=False)
        value = jnp.maximum(jax.nn.logsumexp(log_w + row, axis=1), _NEVER)
        return log_w.at[:, at].set(jnp.where(at == length, 0.0, value)), None

    log_w, _ = jax.lax.scan(step, first, jnp.arange(size - 2, -1, -1))
    return log_w
