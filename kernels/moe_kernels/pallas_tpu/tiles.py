"""Tile sizes for TPU: what fits the vector memory with two buffers for everything."""

from typing import Any

import jax.numpy as jnp

LANES = 128
BUDGET = 12 * 2**20
"""Bytes for blocks, of 16 MiB that a TPU core gives a kernel by default."""


def matmul_tile(
    rows: int, n: int, k: int, dtype: Any, *, weights: int, outputs: int
) -> tuple[int, int]:
    """(rows, columns) of a tile of [rows, k] x [k, n], with the whole contracted axis in memory.

    256 rows and 512 columns, less where that is too much; a multiple of 128 columns, or all.
    """
    size = jnp.dtype(dtype).itemsize
    height, columns = min(256, _up(rows, 16)), 512

    def bytes_used(height: int, columns: int) -> int:
        blocks = height * k + weights * k * columns + outputs * height * columns
        return 2 * size * blocks + 4 * (weights + outputs) * height * columns

    while bytes_used(height, columns) > BUDGET and (columns > LANES or height > 16):
        if columns > LANES:
            columns //= 2
        else:
            height //= 2
    return height, n if n <= columns else columns


def weight_grad_tile(rows: int, k: int, n: int) -> tuple[int, int, int]:
    """(rows, k, n) of a tile of x^T dy."""
    return min(256, _up(rows, 16)), min(k, 512), min(n, 512)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
