"""Single operations in plain XLA, for arguments checked already: see `protocols` for each."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_kernels.plan import PADDING, below
from moe_kernels.varying import match_axes
from moe_kernels.xla.blocks import block_sizes, run_blocks
from moe_kernels.xla.products import product, wide
from moe_kernels.xla.slices import block, rows_of


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
    """y[row] = x[row] W[e] + x2[row] W2[e] + bias[e]; unused rows hold anything."""
    num_rows = x.shape[0] if index is None else index.size
    read, read2 = _reader(x, index), None if x2 is None else _reader(x2, index)
    axis = 1 if transposed else 0

    def work(own: Any, row: Array, rows: Array, size: int) -> tuple[Array, tuple[()]]:
        y = product(read(row, size), own[0], 1, axis)
        if read2 is not None:
            y += product(read2(row, size), own[1], 1, axis)
        if bias is not None:
            y += own[2].astype(y.dtype)[None]
        return y.astype(x.dtype), ()

    per_row = jax.ShapeDtypeStruct((w.shape[1 if transposed else 2],), x.dtype)
    sizes = block_sizes(num_rows, w.shape[0])
    y, _ = run_blocks(work, offset, num_rows, (w, w2, bias), sizes, per_row, ())
    return y[:num_rows]


def weight_grad(
    x: Float[Array, "rows n_in"],
    dy: Float[Array, "dy_rows n_out"],
    offset: Int[Array, " boundaries"],
    *,
    x_index: Int[Array, " s"] | None = None,
    dy_index: Int[Array, " s"] | None = None,
) -> Float[Array, "e n_in n_out"]:
    """dw[e] = x[rows of e]^T dy[rows of e], zeros for experts without rows."""
    num_rows = x.shape[0] if x_index is None else x_index.size
    read_x, read_dy = _reader(x, x_index), _reader(dy, dy_index)

    def work(own: Any, row: Array, rows: Array, size: int) -> tuple[tuple[()], Array]:
        real = (jnp.arange(size) < rows)[:, None]
        left, right = (jnp.where(real, read(row, size), 0) for read in (read_x, read_dy))
        return (), product(left, right, 0, 0)

    return _sums(work, offset, num_rows, (x.shape[1], dy.shape[1]), x.dtype)


def segment_pool(
    x: Float[Array, "rows d"],
    offset: Int[Array, " boundaries"],
    *,
    index: Int[Array, " s"] | None = None,
    weight_s: Float[Array, " s"] | None = None,
) -> Float[Array, "e d"]:
    """z[e] = sum over the rows of e of weight[row] * x[row], zeros for experts without rows."""
    num_rows = x.shape[0] if index is None else index.size
    read, weight = _reader(x, index), None if weight_s is None else _reader(weight_s, None)

    def work(own: Any, row: Array, rows: Array, size: int) -> tuple[tuple[()], Array]:
        real = jnp.arange(size) < rows
        values = jnp.where(real[:, None], read(row, size), 0).astype(wide(x.dtype))
        if weight is None:
            return (), jnp.sum(values, axis=0)
        scale = jnp.where(real, weight(row, size), 0).astype(values.dtype)
        return (), product(scale[None], values, 1, 0)[0]

    return _sums(work, offset, num_rows, (x.shape[1],), x.dtype)


def combine(
    y_sd: Float[Array, "rows d"],
    row_tk: Int[Array, "t k"],
    kept: Int[Array, ""],
    weight_tk: Float[Array, "t k"] | None,
) -> Float[Array, "t d"]:
    """sum_k weight_tk * y[row_tk] over the choices with row_tk < kept; None for weights of 1."""
    kept_tk = row_tk < kept
    sum_dtype = wide(y_sd.dtype)
    if weight_tk is not None:
        weight_tk = jnp.where(kept_tk, weight_tk, 0).astype(sum_dtype)

    def add(j: Array, y_td: Array) -> Array:
        values = jnp.where(kept_tk[:, j, None], rows_of(y_sd, row_tk[:, j]), 0).astype(sum_dtype)
        return y_td + (values if weight_tk is None else weight_tk[:, j, None] * values)

    t, k = row_tk.shape
    y_td, *_ = match_axes((jnp.zeros((t, y_sd.shape[1]), sum_dtype), y_sd))
    return lax.fori_loop(0, k, add, y_td, unroll=min(k, 16)).astype(y_sd.dtype)


def topk_route(
    logits_te: Float[Array, "t e"], k: int, *, scores: str
) -> tuple[Int[Array, "t k"], Float[Array, "t k"], Int[Array, " e"]]:
    """The ids and scores of the k best experts of each token, and each expert's count."""
    logits_te = logits_te.astype(jnp.float32)
    scores_te = jax.nn.softmax(logits_te) if scores == "softmax" else jax.nn.sigmoid(logits_te)
    # By the logits: they order experts where scores round to the same number. lax.top_k takes NaN
    # for the largest number, and -0.0 for less than 0.0.
    ranked_te = jnp.where(jnp.isnan(logits_te), -jnp.inf, logits_te)
    ranked_te = jnp.where(ranked_te == 0, 0, ranked_te)
    expert_tk = lax.top_k(ranked_te, k)[1].astype(jnp.int32)
    score_tk = jnp.take_along_axis(scores_te, expert_tk, axis=1)
    sorted_s = jnp.sort(expert_tk.reshape(-1))
    boundary = below(sorted_s, jnp.arange(logits_te.shape[1] + 1, dtype=jnp.int32))
    return expert_tk, score_tk, jnp.diff(boundary)


def _reader(values: Array, index: Array | None) -> Any:
    """(row, size) -> the values of rows row:row+size, gathered through the index where given.

    The slice may reach PADDING rows past the last one; what is read there counts for nothing.
    """
    if index is None:
        padded = jnp.pad(values, [(0, PADDING)] + [(0, 0)] * (values.ndim - 1))
        return lambda row, size: block(padded, row, size)
    padded = jnp.pad(index, (0, PADDING))
    return lambda row, size: rows_of(values, block(padded, row, size))


def _sums(work: Any, offset: Array, num_rows: int, shape: tuple[int, ...], dtype: Any) -> Array:
    num_experts = offset.size - 1
    sizes = block_sizes(num_rows, num_experts)
    entry = jax.ShapeDtypeStruct(shape, dtype)
    return run_blocks(work, offset, num_rows, (), sizes, (), entry)[1]
