"""Weight gradients: an expert's rows contracted with each other, x^T dy."""

import jax
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from moe_kernels.triton_gpu.launch import launch
from moe_kernels.triton_gpu.precision import input_precision
from moe_kernels.triton_gpu.tiles import Tile
from moe_kernels.triton_gpu.tuned import choose


def weight_grad(
    x: Float[Array, "rows n_in"],
    dy: Float[Array, "dy_rows n_out"],
    offset: Int[Array, " boundaries"],
    *,
    x_index: Int[Array, " s"] | None = None,
    dy_index: Int[Array, " s"] | None = None,
    tile: Tile | None = None,
) -> Float[Array, "e n_in n_out"]:
    """`protocols.WeightGrad`; `tile` replaces the tile sizes that would be chosen."""
    e, k, n = offset.size - 1, x.shape[1], dy.shape[1]
    rows = dy.shape[0] if dy_index is None else dy_index.size
    tile = tile or choose("weight_grad", rows, e, n, k, x.dtype)
    k_parts, n_parts = -(-k // tile.block_k), -(-n // tile.block_n)
    optional = (x if a is None else a for a in (x_index, dy_index))
    (dw,) = launch(
        _weight_grad,
        (x, dy, offset, *optional),
        (jax.ShapeDtypeStruct((e, k, n), x.dtype),),
        grid=e * k_parts * n_parts,
        tile=tile,
        constants={
            "K_PARTS": k_parts,
            "N_PARTS": n_parts,
            "K": k,
            "N": n,
            "X_INDEX": x_index is not None,
            "DY_INDEX": dy_index is not None,
            "PRECISION": input_precision(x.dtype),
        },
    )
    return dw


@triton.jit
def _weight_grad(
    x_ptr,
    dy_ptr,
    offset_ptr,
    x_index_ptr,
    dy_index_ptr,
    dw_ptr,
    K_PARTS: tl.constexpr,
    N_PARTS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    X_INDEX: tl.constexpr,
    DY_INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    expert = program // (K_PARTS * N_PARTS)
    inside = program % (K_PARTS * N_PARTS)
    k = inside // N_PARTS * BLOCK_K + tl.arange(0, BLOCK_K)
    n = inside % N_PARTS * BLOCK_N + tl.arange(0, BLOCK_N)
    k_ok, n_ok = k < K, n < N
    first = tl.load(offset_ptr + expert)
    last = tl.load(offset_ptr + expert + 1)

    dw = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        row_ok = row < last
        x_row, dy_row = row.to(tl.int64), row.to(tl.int64)
        if X_INDEX:
            x_row = tl.load(x_index_ptr + row, mask=row_ok, other=0).to(tl.int64)
        if DY_INDEX:
            dy_row = tl.load(dy_index_ptr + row, mask=row_ok, other=0).to(tl.int64)
        x = tl.load(
            x_ptr + x_row[:, None] * K + k[None, :],
            mask=row_ok[:, None] & k_ok[None, :],
            other=0.0,
        )
        dy = tl.load(
            dy_ptr + dy_row[:, None] * N + n[None, :],
            mask=row_ok[:, None] & n_ok[None, :],
            other=0.0,
        )
        dw = tl.dot(tl.trans(x), dy, dw, input_precision=PRECISION)
    at = expert.to(tl.int64) * K * N + k[:, None].to(tl.int64) * N + n[None, :]
    tl.store(dw_ptr + at, dw.to(dw_ptr.dtype.element_ty), mask=k_ok[:, None] & n_ok[None, :])
