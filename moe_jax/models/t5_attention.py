"""T5's attention: no scaling, no biases, and a learned bias for each bucket of relative positions.

Source: Raffel et al. 2020 (T5), section 2.1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int


def relative_buckets(
    longest: int, *, both_sides: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, " n"]:
    """The bucket of each distance key - query from -(longest - 1) to longest - 1.

    With n buckets for a side and exact = n // 2: distance a < exact has its own bucket, others

        min(exact + floor(log(a / exact) / log(max_distance / exact) * (n - exact)), n - 1).

    Both sides: half of the buckets are for keys after the query. One side: keys after the query
    have distance 0 (causal attention does not see them).

    Args:
      longest: positions of the longest sequence.
      both_sides: as above.
      num_buckets: of all distances together.
      max_distance: from here on there is one bucket.

    Returns:
      [2 * longest - 1]; the bucket of distance x is at x + longest - 1.
    """
    distance = np.arange(-(longest - 1), longest)
    sides = 2 if both_sides else 1
    count = num_buckets // sides
    offset = np.where(distance > 0, count, 0) if both_sides else np.zeros_like(distance)
    away = np.abs(distance) if both_sides else np.maximum(-distance, 0)
    exact = count // 2
    share = np.log(np.maximum(away, exact) / exact) / np.log(max_distance / exact)
    # Rounding must not take a distance on the border of two buckets below it.
    far = np.minimum(exact + np.floor(share * (count - exact) + 1e-6).astype(int), count - 1)
    return offset + np.where(away < exact, away, far)


class PositionBias(nnx.Module):
    """What is added to the scores of each head; one table for all self-attentions of a stack."""

    def __init__(
        self,
        heads: int,
        *,
        both_sides: bool,
        num_buckets: int,
        max_distance: int,
        std: float,
        rngs: nnx.Rngs,
    ):
        """Make the table, normal(std); the other arguments as in `relative_buckets`."""
        self.both_sides, self.num_buckets = both_sides, num_buckets
        self.max_distance = max_distance
        draw = jax.random.normal(rngs.params(), (num_buckets, heads), jnp.float32)
        self.table_nh = nnx.Param(std * draw)

    def __call__(self, queries: Int[Array | np.ndarray, " s"], slots: int) -> Float[Array, "h s m"]:
        """[h s m] float32, for queries at these positions and keys at 0, ..., slots - 1.

        Args:
          queries: positions below `slots`.
          slots: m.
        """
        bucket = relative_buckets(
            slots,
            both_sides=self.both_sides,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        distance = jnp.arange(slots)[None] - queries[:, None]
        table = self.table_nh[...].astype(jnp.float32)
        return jnp.moveaxis(table[jnp.asarray(bucket)[distance + slots - 1]], -1, 0)


class Attention(nnx.Module):
    """out(softmax(q k^T + bias) v) over heads; self-attention or cross-attention.

    Keys and values are made apart (`keys_values`), so that a decoder can keep them.
    """

    def __init__(
        self, d_model: int, heads: int, head_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        """Make the matrices; their scale keeps scores without 1/sqrt(head_dim) small."""
        self.heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        dense = functools.partial(nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs)
        normal = nnx.initializers.normal
        self.q = dense(d_model, inner, kernel_init=normal((d_model * head_dim) ** -0.5))
        self.k = dense(d_model, inner, kernel_init=normal(d_model**-0.5))
        self.v = dense(d_model, inner, kernel_init=normal(d_model**-0.5))
        self.out = dense(inner, d_model, kernel_init=normal(inner**-0.5))

    def keys_values(
        self, x: Float[Array, "b m d"]
    ) -> tuple[Float[Array, "b m h w"], Float[Array, "b m h w"]]:
        """Keys and values of states."""
        shape = (*x.shape[:2], self.heads, self.head_dim)
        return self.k(x).reshape(shape), self.v(x).reshape(shape)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        keys: Float[Array, "b m h w"],
        values: Float[Array, "b m h w"],
        mask: Bool[Array, "#b #s m"],
        bias: Float[Array, "h s m"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Attend from x.

        Args:
          x: states that ask.
          keys: of what is attended to.
          values: of the same.
          mask: what may be seen; who sees nothing gets the mean of all values, without meaning.
          bias: added to the scores of each head; None: nothing.
        """
        q = self.q(x).reshape(*x.shape[:2], self.heads, self.head_dim)
        scores = jnp.einsum("bshw,bmhw->bhsm", q, keys, preferred_element_type=jnp.float32)
        if bias is not None:
            scores = scores + bias[None]
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        mixed = jnp.einsum("bhsm,bmhw->bshw", weights, values)
        return self.out(mixed.reshape(*x.shape[:2], -1))
