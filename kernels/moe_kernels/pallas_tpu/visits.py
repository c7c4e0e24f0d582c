"""Which rows a grid step works on: row tiles at fixed places, visited once by each owner of a part.

A tile of rows lies at a multiple of its height, where the memory system wants it, so it may hold
rows of several experts. It is then visited once for each of them, one visit after the other, and
every visit keeps to its own rows (the scheme of MegaBlocks' kernels for TPU, Gale et al. 2022).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class Visits(NamedTuple):
    """One entry a grid step, int32; steps after the last real one repeat its tile with no rows."""

    expert: Int[Array, " visits"]
    tile: Int[Array, " visits"]  # rows tile * height to (tile + 1) * height
    first: Int[Array, " visits"]  # own rows: first <= row < last
    last: Int[Array, " visits"]
    opens: Int[Array, " visits"]  # 1 on an expert's first visit
    closes: Int[Array, " visits"]  # 1 on an expert's last visit


def make_visits(
    offset: Int[Array, " boundaries"], num_rows: int, height: int, *, empty: bool
) -> Visits:
    """Visits in the order of experts, and so of rows.

    Args:
      offset: expert e owns rows offset[e]:offset[e+1].
      num_rows: all rows, unused ones included.
      height: rows of a tile.
      empty: whether experts without rows have a visit too (without rows).
    """
    tiles, num_experts = -(-num_rows // height), offset.shape[0] - 1
    start_e, end_e = offset[:-1], offset[1:]
    # The tile of an empty expert is that of the row before it: no step back in the order.
    first_e = jnp.minimum(start_e // height, tiles - 1)
    last_e = jnp.maximum(end_e - 1, 0) // height
    visits_e = jnp.where(end_e > start_e, last_e - first_e + 1, 1 if empty else 0)
    upto_e = jnp.cumsum(visits_e, dtype=jnp.int32)
    step = jnp.arange(tiles + num_experts, dtype=jnp.int32)
    real = step < upto_e[-1]
    step = jnp.minimum(step, jnp.maximum(upto_e[-1] - 1, 0))
    expert = jnp.searchsorted(upto_e, step, side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, num_experts - 1)
    nth = step - (upto_e - visits_e)[expert]
    tile = jnp.clip(first_e[expert] + nth, 0, tiles - 1).astype(jnp.int32)

    def only_real(values: Array) -> Array:
        return jnp.where(real, values, 0).astype(jnp.int32)

    return Visits(
        expert,
        tile,
        only_real(start_e[expert]),
        only_real(end_e[expert]),
        only_real(nth == 0),
        only_real(nth == visits_e[expert] - 1),
    )
