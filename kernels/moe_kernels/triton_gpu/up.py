"""Up: gathered rows of x through W_in and W_gate, biases, and the activation, in one kernel."""

import jax
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from moe_kernels.plan import make_tiles
from moe_kernels.triton_gpu.activations import activate
from moe_kernels.triton_gpu.common import accumulate, columns_of, tile_of, unused_output
from moe_kernels.triton_gpu.launch import launch
from moe_kernels.triton_gpu.precision import input_precision
from moe_kernels.triton_gpu.tiles import Tile
from moe_kernels.triton_gpu.tuned import choose


def up(
    x_td: Float[Array, "t d"],
    token_s: Int[Array, " s"],
    offset: Int[Array, " boundaries"],
    w_in: Float[Array, "e d f"],
    w_gate: Float[Array, "e d f"] | None,
    b_in: Float[Array, "e f"] | None,
    b_gate: Float[Array, "e f"] | None,
    *,
    activation: str,
    keep: bool,
    tile: Tile | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """`protocols.Up`; `tile` replaces the tile sizes that would be chosen."""
    (e, d, f), s, glu = w_in.shape, token_s.size, w_gate is not None
    tile = tile or choose("up_glu" if glu else "up", s, e, f, d, x_td.dtype)
    tiles = make_tiles(offset, s, tile.block_m)
    columns = columns_of(f, tile)
    rows, unused = jax.ShapeDtypeStruct((s, f), x_td.dtype), unused_output(x_td.dtype)
    # A kernel has all its pointers: those that it does not use point anywhere.
    optional = (x_td if a is None else a for a in (w_gate, b_in, b_gate))
    a_sf, h_in, h_gate = launch(
        _up,
        (x_td, token_s, tiles.expert, tiles.row, tiles.rows, w_in, *optional),
        (rows, rows if keep else unused, rows if keep and glu else unused),
        grid=tiles.expert.size * columns,
        tile=tile,
        sizes={"num_tiles": tiles.expert.size},
        constants={
            "COLUMNS": columns,
            "D": d,
            "F": f,
            "GLU": glu,
            "BIAS_IN": b_in is not None,
            "BIAS_GATE": b_gate is not None,
            "ACTIVATION": activation,
            "KEEP": keep,
            "PRECISION": input_precision(x_td.dtype),
        },
    )
    return a_sf, h_in if keep else None, h_gate if keep and glu else None


@triton.jit
def _up(
    x_ptr,
    token_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    tile_rows_ptr,
    w_in_ptr,
    w_gate_ptr,
    b_in_ptr,
    b_gate_ptr,
    a_ptr,
    h_in_ptr,
    h_gate_ptr,
    num_tiles,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    GLU: tl.constexpr,
    BIAS_IN: tl.constexpr,
    BIAS_GATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    KEEP: tl.constexpr,
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
    token = tl.load(token_ptr + row, mask=row_ok, other=0).to(tl.int64)
    column = part * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix = expert * D * F

    h_in = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    h_gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if GLU:
        h_in, h_gate = accumulate_two(
            h_in,
            h_gate,
            x_ptr,
            w_in_ptr + matrix,
            w_gate_ptr + matrix,
            token,
            row_ok,
            column,
            F,
            D,
            PRECISION,
            BLOCK_K,
        )
    else:
        h_in = accumulate(
            h_in, x_ptr, w_in_ptr + matrix, token, row_ok, column, F, D, F, 1, PRECISION, BLOCK_K
        )
    column_ok = column < F
    if BIAS_IN:
        h_in += tl.load(b_in_ptr + expert * F + column, mask=column_ok, other=0.0)[None, :]
    if BIAS_GATE:
        h_gate += tl.load(b_gate_ptr + expert * F + column, mask=column_ok, other=0.0)[None, :]
    a = activate(h_gate, ACTIVATION) * h_in if GLU else activate(h_in, ACTIVATION)
    ok = row_ok[:, None] & column_ok[None, :]
    at = row[:, None] * F + column[None, :]
    tl.store(a_ptr + at, a.to(a_ptr.dtype.element_ty), mask=ok)
    if KEEP:
        tl.store(h_in_ptr + at, h_in.to(h_in_ptr.dtype.element_ty), mask=ok)
        if GLU:
            tl.store(h_gate_ptr + at, h_gate.to(h_gate_ptr.dtype.element_ty), mask=ok)


@triton.jit
def accumulate_two(
    first,
    second,
    x_ptr,
    w_ptr,
    v_ptr,
    row,
    row_ok,
    column,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(first + x[row] @ w[:, column], second + x[row] @ v[:, column]): x is read once.

    Two sums stay two: on Blackwell, Triton up to 3.8 miscompiles two products that one loop adds to
    the same sum (triton-lang/triton#10821).
    """
    column_ok = column < N
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_ptrs = x_ptr + row[:, None] * K + k[None, :]
        at = k[:, None].to(tl.int64) * N + column[None, :]
        if K % BLOCK_K == 0:
            x = tl.load(x_ptrs, mask=row_ok[:, None], other=0.0)
            ok = column_ok[None, :]
        else:
            x = tl.load(x_ptrs, mask=row_ok[:, None] & (k < K)[None, :], other=0.0)
            ok = (k < K)[:, None] & column_ok[None, :]
        w = tl.load(w_ptr + at, mask=ok, other=0.0)
        v = tl.load(v_ptr + at, mask=ok, other=0.0)
        first = tl.dot(x, w, first, input_precision=PRECISION)
        second = tl.dot(x, v, second, input_precision=PRECISION)
    return first, second
