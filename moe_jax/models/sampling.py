"""The next token from its logits: greedy, or drawn by temperature, top-k and top-p.

    found = sample(logits_bv, temperature=0.7, top_p=0.9, key=key)
    found.ids, found.logprob        # [b], [b]

All numbers may be arrays, so that one compiled function serves every setting.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from moe_jax.common.checks import number, whole, wrong

# Below this the temperature would leave the range of float32; 0 says the same.
_LEAST_TEMPERATURE = 1e-6


@dataclasses.dataclass(kw_only=True)
class SamplingConfig:
    """How a token is drawn. The default is greedy.

    Attributes:
      temperature: divides the logits; 0: greedy, and the other fields have no effect.
      top_k: only the k likeliest tokens; None: all.
      top_p: of these the fewest whose probability reaches top_p; 1: all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def validate(self, path: str = "") -> None:
        """Check every field.

        Raises:
          UserError: one is wrong; the message names it as `path.field`.
        """
        number(path, "temperature", self.temperature, low=0, why="0: greedy")
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            must = f"be at least {_LEAST_TEMPERATURE:g}, or 0 (greedy)"
            raise wrong(path, "temperature", self.temperature, must)
        whole(path, "top_k", self.top_k, 1, none="all")
        number(path, "top_p", self.top_p, above=0, high=1)


class Sampled(NamedTuple):
    """Tokens drawn, one a row.

    Attributes:
      ids: token ids [b].
      logprob: of these under softmax(logits), before temperature and cuts [b] float32.
    """

    ids: Int[Array, " b"]
    logprob: Float[Array, " b"]


def sample(
    logits: Float[Array, "b v"],
    *,
    temperature: Float[Array, "#b"] | Float[Array, ""] | float = 0.0,
    top_k: Int[Array, "#b"] | Int[Array, ""] | int = 0,
    top_p: Float[Array, "#b"] | Float[Array, ""] | float = 1.0,
    key: PRNGKeyArray,
) -> Sampled:
    """Draw one token a row from softmax(logits / temperature), cut by top-k, then by top-p.

    Each row draws with its own key, fold_in(key, row): what it gets does not depend on how many
    rows there are.

    Args:
      logits: of the next token.
      temperature: 0: the likeliest token, of equals the lowest id.
      top_k: as in `kept`.
      top_p: as in `kept`.
      key: of the draw; not read where the temperature is 0.

    Returns:
      Ids, and their log-probabilities under the logits as given.
    """
    z, rows = logits.astype(jnp.float32), logits.shape[0]
    heat = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), rows)
    k, p = _per_row(top_k, top_p, rows)
    greedy = jnp.argmax(z, axis=-1).astype(jnp.int32)

    def draw(z: Array) -> Array:
        # The largest becomes 0, so that no temperature makes an infinity.
        scaled = z - jnp.max(z, axis=-1, keepdims=True)
        scaled = scaled / jnp.where(heat > 0, heat, 1)[:, None]
        scaled = jax.lax.cond(
            jnp.any((k > 0) | (p < 1)),
            lambda x: jnp.where(kept(x, top_k=k, top_p=p), x, -jnp.inf),
            lambda x: x,
            scaled,
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
        drawn = jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
        return jnp.where(heat > 0, drawn, greedy)

    ids = jax.lax.cond(jnp.any(heat > 0), draw, lambda z: greedy, z)
    logp = jax.nn.log_softmax(z, axis=-1)
    return Sampled(ids, jnp.take_along_axis(logp, ids[:, None], axis=1)[:, 0])


def kept(
    logits: Float[Array, "b v"],
    *,
    top_k: Int[Array, "#b"] | Int[Array, ""] | int = 0,
    top_p: Float[Array, "#b"] | Float[Array, ""] | float = 1.0,
) -> Bool[Array, "b v"]:
    """Which tokens stay: the top_k likeliest, of these the fewest that reach top_p.

    With the tokens in falling order of p = softmax over the top_k, token j stays if
    p_0 + ... + p_(j-1) < top_p. The first always stays. Of equal tokens the lowest id comes first,
    so that no more than top_k stay.

    Args:
      logits: after the temperature.
      top_k: how many; 0: all.
      top_p: probability to reach, of what top_k leaves (nucleus sampling, Holtzman et al. 2020);
        1: all.

    Returns:
      True at the tokens that stay.
    """
    rows, v = logits.shape
    k, p = _per_row(top_k, top_p, rows)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    falling = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(v)[None]
    stays = (k[:, None] < 1) | (rank < k[:, None])
    probs = jax.nn.softmax(jnp.where(stays, falling, -jnp.inf), axis=-1)
    before = jnp.pad(jnp.cumsum(probs, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    # Rounding must not cut anything where top_p is 1.
    stays = stays & ((p[:, None] >= 1) | (before < p[:, None]) | (rank == 0))
    return jnp.zeros((rows, v), bool).at[jnp.arange(rows)[:, None], order].set(stays)


def _per_row(top_k: Array | int, top_p: Array | float, rows: int) -> tuple[Array, Array]:
    """Both as [b]."""
    k = jnp.broadcast_to(jnp.asarray(top_k, jnp.int32), rows)
    return k, jnp.broadcast_to(jnp.asarray(top_p, jnp.float32), rows)
