"""Combine and the pool: weighted sums of rows, without products of matrices or atomics."""

import jax
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from moe_kernels.triton_gpu.common import columns_of
from moe_kernels.triton_gpu.launch import launch
from moe_kernels.triton_gpu.tiles import row_tile


def combine(
    y_sd: Float[Array, "s d"],
    row_tk: Int[Array, "t k"],
    kept: Int[Array, ""],
    weight_tk: Float[Array, "t k"] | None,
) -> Float[Array, "t d"]:
    """`protocols.Combine`: one program for each token and up to 1,024 columns."""
    (t, k), d = row_tk.shape, y_sd.shape[1]
    tile = row_tile(d)
    columns = columns_of(d, tile)
    (out,) = launch(
        _combine,
        (y_sd, row_tk, kept.reshape(1), y_sd if weight_tk is None else weight_tk),
        (jax.ShapeDtypeStruct((t, d), y_sd.dtype),),
        grid=t * columns,
        tile=tile,
        constants={"COLUMNS": columns, "D": d, "CHOICES": k, "WEIGHTED": weight_tk is not None},
    )
    return out


def segment_pool(
    x: Float[Array, "rows d"],
    offset: Int[Array, " boundaries"],
    *,
    index: Int[Array, " s"] | None = None,
    weight_s: Float[Array, " s"] | None = None,
) -> Float[Array, "e d"]:
    """`protocols.SegmentPool`: one program for each expert and up to 128 columns."""
    e, d = offset.size - 1, x.shape[1]
    tile = row_tile(d)
    tile = tile._replace(block_n=min(tile.block_n, 128))
    columns = columns_of(d, tile)
    optional = (x if a is None else a for a in (index, weight_s))
    (z,) = launch(
        _segment_pool,
        (x, offset, *optional),
        (jax.ShapeDtypeStruct((e, d), x.dtype),),
        grid=e * columns,
        tile=tile,
        constants={
            "COLUMNS": columns,
            "D": d,
            "INDEX": index is not None,
            "WEIGHTED": weight_s is not None,
        },
    )
    return z


@triton.jit
def _combine(
    y_ptr,
    row_ptr,
    kept_ptr,
    weight_ptr,
    out_ptr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    CHOICES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = (tl.program_id(0) // COLUMNS).to(tl.int64)
    column = tl.program_id(0) % COLUMNS * BLOCK_N + tl.arange(0, BLOCK_N)
    kept = tl.load(kept_ptr)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for choice in range(CHOICES):
        row = tl.load(row_ptr + token * CHOICES + choice).to(tl.int64)
        own = tl.where(row < kept, D, 0)  # columns to read: none of a dropped choice
        y = tl.load(y_ptr + row * D + column, mask=column < own, other=0.0).to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weight_ptr + token * CHOICES + choice).to(tl.float32)
            y *= tl.where(own > 0, weight, 0.0)
        total += y
    tl.store(out_ptr + token * D + column, total.to(out_ptr.dtype.element_ty), mask=column < D)


@triton.jit
def _segment_pool(
    x_ptr,
    offset_ptr,
    index_ptr,
    weight_ptr,
    z_ptr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    INDEX: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    expert = tl.program_id(0) // COLUMNS
    column = tl.program_id(0) % COLUMNS * BLOCK_N + tl.arange(0, BLOCK_N)
    column_ok = column < D
    first = tl.load(offset_ptr + expert)
    last = tl.load(offset_ptr + expert + 1)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        row_ok = row < last
        source = row.to(tl.int64)
        if INDEX:
            source = tl.load(index_ptr + row, mask=row_ok, other=0).to(tl.int64)
        x = tl.load(
            x_ptr + source[:, None] * D + column[None, :],
            mask=row_ok[:, None] & column_ok[None, :],
            other=0.0,
        ).to(tl.float32)
        if WEIGHTED:
            x *= tl.load(weight_ptr + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
        total += tl.sum(x, axis=0)
    at = expert.to(tl.int64) * D + column
    tl.store(z_ptr + at, total.to(z_ptr.dtype.element_ty), mask=column_ok)
