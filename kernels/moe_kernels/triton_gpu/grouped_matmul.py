"""Sorted rows, each through the matrix of its expert: down, rows of dx, single operations."""

import jax
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from moe_kernels.plan import make_tiles
from moe_kernels.triton_gpu.common import accumulate, columns_of, tile_of
from moe_kernels.triton_gpu.launch import launch
from moe_kernels.triton_gpu.precision import input_precision
from moe_kernels.triton_gpu.tiles import Tile
from moe_kernels.triton_gpu.tuned import choose


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
    tile: Tile | None = None,
) -> Float[Array, "s n_out"]:
    """`protocols.GroupedMatmul`; `tile` replaces the tile sizes that would be chosen."""
    k, n = (w.shape[2], w.shape[1]) if transposed else (w.shape[1], w.shape[2])
    s = x.shape[0] if index is None else index.size
    name = "grouped_matmul_transposed" if transposed else "grouped_matmul"
    tile = tile or choose(name, s, w.shape[0], n, k, x.dtype)
    tiles = make_tiles(offset, s, tile.block_m)
    columns = columns_of(n, tile)
    optional = (x if a is None else a for a in (index, bias, x2, w2))
    (y,) = launch(
        _grouped_matmul,
        (x, w, tiles.expert, tiles.row, tiles.rows, *optional),
        (jax.ShapeDtypeStruct((s, n), x.dtype),),
        grid=tiles.expert.size * columns,
        tile=tile,
        sizes={"num_tiles": tiles.expert.size},
        constants={
            "COLUMNS": columns,
            "N": n,
            "K": k,
            "W_K": 1 if transposed else n,
            "W_N": k if transposed else 1,
            "INDEX": index is not None,
            "BIAS": bias is not None,
            "SECOND": x2 is not None,
            "PRECISION": input_precision(x.dtype),
        },
    )
    return y


@triton.jit
def _grouped_matmul(
    x_ptr,
    w_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    tile_rows_ptr,
    index_ptr,
    bias_ptr,
    x2_ptr,
    w2_ptr,
    y_ptr,
    num_tiles,
    COLUMNS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    W_K: tl.constexpr,
    W_N: tl.constexpr,
    INDEX: tl.constexpr,
    BIAS: tl.constexpr,
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, part = tile_of(tl.program_id(0), num_tiles, COLUMNS)
    rows = tl.load(tile_rows_ptr + tile)
    if rows == 0:
        return
    expert = tl.load(tile_expert_ptr + tile).to(tl.int64)
    i = tl.arange(0, BLOCK_M)
    row_ok = i < rows
    row = tl.load(tile_row_ptr + tile).to(tl.int64) + i
    source = row
    if INDEX:
        source = tl.load(index_ptr + row, mask=row_ok, other=0).to(tl.int64)
    column = part * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix = expert * N * K

    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    w_ptr += matrix
    y = accumulate(y, x_ptr, w_ptr, source, row_ok, column, N, K, W_K, W_N, PRECISION, BLOCK_K)
    if SECOND:
        # A loop of its own: on Blackwell, Triton up to 3.8 miscompiles two products that one loop
        # adds to the same sum (triton-lang/triton#10821).
        w2_ptr += matrix
        y = accumulate(
            y, x2_ptr, w2_ptr, source, row_ok, column, N, K, W_K, W_N, PRECISION, BLOCK_K
        )
    column_ok = column < N
    if BIAS:
        y += tl.load(bias_ptr + expert * N + column, mask=column_ok, other=0.0)[None, :]
    at = row[:, None] * N + column[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=row_ok[:, None] & column_ok[None, :])
