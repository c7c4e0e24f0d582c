"""Sorted rows, each through the matrix of its expert, with an epilogue."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from moe_kernels.pallas_tpu.tiles import matmul_tile
from moe_kernels.pallas_tpu.visits import make_visits
from moe_kernels.varying import match_axes, struct

Epilogue = Callable[..., Sequence[Array]]
"""epilogue(products, biases, row_blocks): the blocks to write, float32 in, any dtype out."""


def grouped_matmul(
    x: Float[Array, "rows n_in"],
    w: Float[Array, "e a b"],
    offset: Int[Array, " boundaries"],
    *,
    index: Int[Array, " s"] | None = None,
    bias: Float[Array, "e n_out"] | None = None,
    x2: Float[Array, "rows n_in"] | None = None,
    w2: Float[Array, "e a b"] | None = None,
    transposed: bool = False,
) -> Float[Array, "s n_out"]:
    """`protocols.GroupedMatmul`: rows are gathered by XLA, then one kernel."""

    def sum_up(products: Sequence[Array], biases: Sequence[Array], blocks: Any) -> list[Array]:
        return [sum([*products, *biases][1:], products[0])]

    pairs = [(x, w)] if x2 is None or w2 is None else [(x, w), (x2, w2)]
    if index is not None:
        pairs = [(rows[index], matrix) for rows, matrix in pairs]
    biases = [] if bias is None else [bias]
    (y,) = tiled(sum_up, pairs, biases, (), offset, (x.dtype,), transposed=transposed)
    return y


def tiled(
    epilogue: Epilogue,
    pairs: Sequence[tuple[Array, Array]],
    biases: Sequence[Array],
    row_blocks: Sequence[Array],
    offset: Array,
    dtypes: Sequence[Any],
    *,
    transposed: bool,
    row_sum: bool = False,
) -> Sequence[Array]:
    """One kernel: the products x W[e] of every pair, and what `epilogue` makes of them.

    Args:
      epilogue: see `Epilogue`.
      pairs: (x [s, k], w [e, k, n]), or w [e, n, k] if `transposed`.
      biases: [e, n] each, handed to the epilogue as [1, n] blocks.
      row_blocks: [s, n] or [s, 1] each, handed to the epilogue tile by tile.
      offset: expert e owns rows offset[e]:offset[e+1].
      dtypes: of the outputs, [s, n] each.
      transposed: how w lies.
      row_sum: the last output is one column for each column tile, [columns, s, 1].

    Returns:
      The outputs; unused rows hold anything.
    """
    x, w = pairs[0]
    (s, k), n = x.shape, w.shape[1 if transposed else 2]
    height, width = matmul_tile(s, n, k, x.dtype, weights=len(pairs), outputs=len(dtypes) + 2)
    visits = make_visits(offset, s, height, empty=False)
    columns = pl.cdiv(n, width)

    def rows(column: Any, visit: Any, of: Any, tile: Any, *_: Any) -> tuple[Any, ...]:
        return tile[visit], 0

    def block(column: Any, visit: Any, of: Any, tile: Any, *_: Any) -> tuple[Any, ...]:
        return tile[visit], column

    def matrix(column: Any, visit: Any, of: Any, *_: Any) -> tuple[Any, ...]:
        return (of[visit], column, 0) if transposed else (of[visit], 0, column)

    def own(column: Any, visit: Any, of: Any, *_: Any) -> tuple[Any, ...]:
        return of[visit], 0, column

    def part(column: Any, visit: Any, of: Any, tile: Any, *_: Any) -> tuple[Any, ...]:
        return column, tile[visit], 0

    in_specs = [
        *(pl.BlockSpec((height, k), rows) for _ in pairs),
        *(pl.BlockSpec((1, width, k) if transposed else (1, k, width), matrix) for _ in pairs),
        *(pl.BlockSpec((1, 1, width), own) for _ in biases),
        *(
            pl.BlockSpec((height, 1), rows)
            if b.shape[1] == 1
            else pl.BlockSpec((height, width), block)
            for b in row_blocks
        ),
    ]
    arrays: list[Any] = [
        *(a for a, _ in pairs),
        *(b for _, b in pairs),
        *(b[:, None, :] for b in biases),
        *row_blocks,
    ]
    visits, arrays = match_axes((visits, arrays))
    shapes = [struct((s, n), d, arrays[0]) for d in dtypes]
    out_specs = [pl.BlockSpec((height, width), block) for _ in dtypes]
    if row_sum:
        shapes[-1] = struct((columns, s, 1), dtypes[-1], arrays[0])
        out_specs[-1] = pl.BlockSpec((1, height, 1), part)
    return pl.pallas_call(
        partial(_kernel, epilogue, len(pairs), len(biases), len(row_blocks), transposed, height),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(visits),
            grid=(columns, visits.expert.size),
            in_specs=in_specs,
            out_specs=out_specs,
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(*visits, *arrays)


def _kernel(
    epilogue: Epilogue,
    num_pairs: int,
    num_biases: int,
    num_blocks: int,
    transposed: bool,
    height: int,
    *refs: Any,
) -> None:
    _, tile, first, last, _, _ = refs[:6]
    refs = refs[6:]
    xs, ws = refs[:num_pairs], refs[num_pairs : 2 * num_pairs]
    biases = refs[2 * num_pairs : 2 * num_pairs + num_biases]
    blocks = refs[2 * num_pairs + num_biases :][:num_blocks]
    outs = refs[2 * num_pairs + num_biases + num_blocks :]
    visit = pl.program_id(1)
    row = tile[visit] * height + lax.broadcasted_iota(jnp.int32, (height, 1), 0)
    own = (row >= first[visit]) & (row < last[visit])

    def product(x: Any, w: Any) -> Array:
        return lax.dot_general(
            x[...],
            w[0],
            (((1,), (1 if transposed else 0,)), ((), ())),
            precision=precision(x.dtype),
            preferred_element_type=jnp.float32,
        )

    products = [product(x, w) for x, w in zip(xs, ws, strict=True)]
    bias_rows = [b[0].astype(jnp.float32) for b in biases]
    values = epilogue(products, bias_rows, [b[...].astype(jnp.float32) for b in blocks])
    for out, value in zip(outs, values, strict=True):
        # Rows of the tile that others own keep what their visit wrote, or is yet to write.
        if out.ndim == 3:
            out[0] = jnp.where(own, value.astype(out.dtype), out[0])
        else:
            out[...] = jnp.where(own, value.astype(out.dtype), out[...])


def precision(dtype: Any) -> lax.Precision:
    """Float32 products in full float32; half precision as it is."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize > 2 else lax.Precision.DEFAULT
