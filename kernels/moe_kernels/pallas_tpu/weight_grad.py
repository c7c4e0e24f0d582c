"""Weight gradients and the pool: an expert's rows contracted with each other, x^T dy."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from moe_kernels.pallas_tpu.grouped_matmul import precision
from moe_kernels.pallas_tpu.tiles import weight_grad_tile
from moe_kernels.pallas_tpu.visits import make_visits
from moe_kernels.varying import match_axes, struct


def weight_grad(
    x: Float[Array, "rows n_in"],
    dy: Float[Array, "dy_rows n_out"],
    offset: Int[Array, " boundaries"],
    *,
    x_index: Int[Array, " s"] | None = None,
    dy_index: Int[Array, " s"] | None = None,
) -> Float[Array, "e n_in n_out"]:
    """`protocols.WeightGrad`: rows are gathered by XLA, then one kernel."""
    x = x if x_index is None else x[x_index]
    dy = dy if dy_index is None else dy[dy_index]
    (s, k), n, e = x.shape, dy.shape[1], offset.size - 1
    height, k_tile, n_tile = weight_grad_tile(s, k, n)
    visits = make_visits(offset, s, height, empty=True)
    visits, x, dy = match_axes((visits, x, dy))
    return pl.pallas_call(
        partial(_kernel, height),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(pl.cdiv(k, k_tile), pl.cdiv(n, n_tile), visits.expert.size),
            in_specs=[
                pl.BlockSpec((height, k_tile), lambda i, j, v, of, tile, *_: (tile[v], i)),
                pl.BlockSpec((height, n_tile), lambda i, j, v, of, tile, *_: (tile[v], j)),
            ],
            out_specs=pl.BlockSpec((1, k_tile, n_tile), lambda i, j, v, of, *_: (of[v], i, j)),
            scratch_shapes=[pltpu.VMEM((k_tile, n_tile), jnp.float32)],
        ),
        out_shape=struct((e, k, n), x.dtype, x),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
    )(*visits, x, dy)


def segment_pool(
    x: Float[Array, "rows d"],
    offset: Int[Array, " boundaries"],
    *,
    index: Int[Array, " s"] | None = None,
    weight_s: Float[Array, " s"] | None = None,
) -> Float[Array, "e d"]:
    """`protocols.SegmentPool`: the weights, one column, contracted with the rows."""
    s = x.shape[0] if index is None else index.size
    weight = jnp.ones((s,), x.dtype) if weight_s is None else weight_s
    # In float32, for the weights have more digits than rows of half precision.
    rows = (x if index is None else x[index]).astype(jnp.float32)
    return weight_grad(weight.astype(jnp.float32)[:, None], rows, offset)[:, 0].astype(x.dtype)


def _kernel(
    height: int,
    of: Any,
    tile: Any,
    first: Any,
    last: Any,
    opens: Any,
    closes: Any,
    x_ref: Any,
    dy_ref: Any,
    dw_ref: Any,
    total_ref: Any,
) -> None:
    del of
    visit = pl.program_id(2)
    row = tile[visit] * height + lax.broadcasted_iota(jnp.int32, (height, 1), 0)
    own = (row >= first[visit]) & (row < last[visit])

    @pl.when(opens[visit] == 1)
    def _() -> None:
        total_ref[...] = jnp.zeros_like(total_ref)

    # Rows of others are zeroed on both sides: they may hold NaN.
    total_ref[...] += lax.dot_general(
        jnp.where(own, x_ref[...], 0),
        jnp.where(own, dy_ref[...], 0),
        (((0,), (0,)), ((), ())),
        precision=precision(x_ref.dtype),
        preferred_element_type=jnp.float32,
    )

    @pl.when(closes[visit] == 1)
    def _() -> None:
        dw_ref[0] = total_ref[...].astype(dw_ref.dtype)
