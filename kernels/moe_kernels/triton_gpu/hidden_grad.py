"""Hidden gradients: from dy back through W_out and the activation, in one kernel."""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from moe_kernels.plan import make_tiles
from moe_kernels.triton_gpu.activations import activate, slope
from moe_kernels.triton_gpu.common import accumulate, columns_of, tile_of, unused_output
from moe_kernels.triton_gpu.launch import launch
from moe_kernels.triton_gpu.precision import input_precision
from moe_kernels.triton_gpu.tiles import Tile
from moe_kernels.triton_gpu.tuned import choose


def hidden_grad(
    dy_td: Float[Array, "t d"],
    token_s: Int[Array, " s"],
    weight_s: Float[Array, " s"],
    offset: Int[Array, " boundaries"],
    w_out: Float[Array, "e f d"],
    h_in_sf: Float[Array, "s f"],
    h_gate_sf: Float[Array, "s f"] | None,
    *,
    activation: str,
    tile: Tile | None = None,
) -> tuple[Array, Array | None, Array, Array]:
    """`protocols.HiddenGrad`; `tile` replaces the tile sizes that would be chosen."""
    (e, f, d), s, glu = w_out.shape, token_s.size, h_gate_sf is not None
    tile = tile or choose("hidden_grad", s, e, f, d, dy_td.dtype)
    tiles = make_tiles(offset, s, tile.block_m)
    columns = columns_of(f, tile)
    rows = jax.ShapeDtypeStruct((s, f), dy_td.dtype)
    dh_in, dh_gate, wa, parts = launch(
        _hidden_grad,
        (
            *(dy_td, token_s, weight_s, tiles.expert, tiles.row, tiles.rows, w_out, h_in_sf),
            h_in_sf if h_gate_sf is None else h_gate_sf,
        ),
        (
            rows,
            rows if glu else unused_output(dy_td.dtype),
            rows,
            jax.ShapeDtypeStruct((columns, s), jnp.float32),
        ),
        grid=tiles.expert.size * columns,
        tile=tile,
        sizes={"num_tiles": tiles.expert.size, "num_rows": s},
        constants={
            "COLUMNS": columns,
            "D": d,
            "F": f,
            "GLU": glu,
            "ACTIVATION": activation,
            "PRECISION": input_precision(dy_td.dtype),
        },
    )
    own = jnp.arange(s) < offset[-1]
    return dh_in, dh_gate if glu else None, wa, jnp.where(own, jnp.sum(parts, axis=0), 0)


@triton.jit
def _hidden_grad(
    dy_ptr,
    token_ptr,
    weight_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    tile_rows_ptr,
    w_out_ptr,
    h_in_ptr,
    h_gate_ptr,
    dh_in_ptr,
    dh_gate_ptr,
    wa_ptr,
    part_ptr,
    num_tiles,
    num_rows,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    GLU: tl.constexpr,
    ACTIVATION: tl.constexpr,
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
    weight = tl.load(weight_ptr + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    column = part * BLOCK_N + tl.arange(0, BLOCK_N)

    da = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    w_ptr = w_out_ptr + expert * D * F
    da = accumulate(da, dy_ptr, w_ptr, token, row_ok, column, F, D, 1, D, PRECISION, BLOCK_K)
    ok = row_ok[:, None] & (column < F)[None, :]
    at = row[:, None] * F + column[None, :]
    h_in = tl.load(h_in_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if GLU:
        h_gate = tl.load(h_gate_ptr + at, mask=ok, other=0.0).to(tl.float32)
        act = activate(h_gate, ACTIVATION)
        a = act * h_in
        dh_gate = weight * da * h_in * slope(h_gate, ACTIVATION)
        tl.store(dh_gate_ptr + at, dh_gate.to(dh_gate_ptr.dtype.element_ty), mask=ok)
        dh_in = weight * da * act
    else:
        a = activate(h_in, ACTIVATION)
        dh_in = weight * da * slope(h_in, ACTIVATION)
    tl.store(dh_in_ptr + at, dh_in.to(dh_in_ptr.dtype.element_ty), mask=ok)
    tl.store(wa_ptr + at, (weight * a).to(wa_ptr.dtype.element_ty), mask=ok)
    # Unused rows and columns are 0 in da and in h, so they add nothing.
    tl.store(part_ptr + part.to(tl.int64) * num_rows + row, tl.sum(da * a, axis=1), mask=row_ok)
