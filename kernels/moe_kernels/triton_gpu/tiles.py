"""Tile sizes: how much of a problem one program of a kernel works on."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Tile(NamedTuple):
    """Block sizes (rows, columns, contracted axis), warps, and stages of the load pipeline."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def matmul_tile(
    rows: int, num_experts: int, n: int, k: int, dtype: Any, *, accumulators: int = 1
) -> Tile:
    """For products of an expert's rows with its matrix, [rows of e, k] x [k, n].

    Few rows an expert take a small row tile, or most of it would be padding: 16, 32 or 64 rows up
    to a mean load of 16, 48 and 96, else 128. Float32 takes half the depth, and two accumulators
    (a gate beside the up-projection) half the columns, to stay within registers.
    """
    mean = -(-rows // num_experts)
    block_m = 16 if mean <= 16 else 32 if mean <= 48 else 64 if mean <= 96 else 128
    wide = jnp.dtype(dtype).itemsize > 2
    full = 64 if wide else 256 if block_m == 128 and accumulators == 1 else 128
    block_n = min(full, _power(n))
    block_k = min(32 if wide else 64, _power(k))
    big = block_m * block_n * accumulators >= 128 * 128
    return Tile(block_m, block_n, block_k, 8 if big else 4, 3)


def weight_grad_tile(k: int, n: int, dtype: Any) -> Tile:
    """For dW[e] = x^T dy: block_m rows are contracted at a time, [k, n] is cut into blocks."""
    wide = jnp.dtype(dtype).itemsize > 2
    block_k, block_n = min(64 if wide else 128, _power(k)), min(64 if wide else 128, _power(n))
    return Tile(32 if wide else 64, block_n, block_k, 4 if wide else 8, 3)


def row_tile(d: int) -> Tile:
    """For sums over rows without products: up to 1,024 columns at a time."""
    return Tile(16, min(1024, _power(d)), 16, 4, 2)


def _power(n: int) -> int:
    """The least power of two that is at least n and 16, the least side of a product."""
    return max(16, 1 << (n - 1).bit_length())
