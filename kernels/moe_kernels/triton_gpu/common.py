"""What the grouped kernels share: which tile a program has, and the product over one axis."""

from typing import Any

import jax
import triton
import triton.language as tl

from moe_kernels.triton_gpu.tiles import Tile


def columns_of(n: int, tile: Tile) -> int:
    """The number of column tiles."""
    return -(-n // tile.block_n)


def unused_output(dtype: Any) -> jax.ShapeDtypeStruct:
    """What stands for an output that a kernel is not to write."""
    return jax.ShapeDtypeStruct((1,), dtype)


@triton.jit
def tile_of(program, num_tiles, COLUMNS: tl.constexpr):
    """(row tile, column tile) of a program.

    Programs that run together share weights and rows in the cache: 8 row tiles go through one
    column tile before the next column tile starts.
    """
    GROUP: tl.constexpr = 8
    first = program // (GROUP * COLUMNS) * GROUP
    size = min(num_tiles - first, GROUP)
    inside = program % (GROUP * COLUMNS)
    return first + inside % size, inside // size


@triton.jit
def accumulate(
    total,
    x_ptr,
    w_ptr,
    row,
    row_ok,
    column,
    N: tl.constexpr,
    K: tl.constexpr,
    W_K: tl.constexpr,
    W_N: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Total + x[row, :] @ w[:, column], in float32; W_K and W_N are the strides of w.

    Masked rows and columns are read as 0, so whatever lies there stays out of the sum.
    """
    column_ok = column < N
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_ptrs = x_ptr + row[:, None] * K + k[None, :]
        w_ptrs = w_ptr + k[:, None].to(tl.int64) * W_K + column[None, :].to(tl.int64) * W_N
        if K % BLOCK_K == 0:
            x = tl.load(x_ptrs, mask=row_ok[:, None], other=0.0)
            w = tl.load(w_ptrs, mask=column_ok[None, :], other=0.0)
        else:
            k_ok = k < K
            x = tl.load(x_ptrs, mask=row_ok[:, None] & k_ok[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=k_ok[:, None] & column_ok[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    return total
