"""Tile sizes: how much of a problem one program of a kernel works on."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_kernels.triton_gpu.precision import EXACT


class Tile(NamedTuple):
    """Block sizes (rows, columns, contracted axis), warps, and stages of the load pipeline."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def matmul_tile(
    rows: int,
    num_experts: int,
    n: int,
    k: int,
    dtype: Any,
    *,
    held: int = 1,
    precision: str = EXACT,
    compute_capability: int | None = None,
) -> Tile:
    """For products of an expert's rows with its matrix, [rows of e, k] x [k, n].

    Few rows an expert take a small row tile, or most of it would be padding: 16, 32 or 64 rows up
    to a mean load of 16, 48 and 96, else 128. Columns are as many as registers allow, found by
    compiling (`scripts/compile_triton.py`): float32 products and GPUs before Hopper allow fewer.

    Args:
      rows: (token, choice) pairs.
      num_experts: experts that share them.
      n: columns of the product.
      k: length of the contracted axis.
      dtype: of the factors.
      held: tiles of float32 that a program holds at once, accumulators and what its epilogue
        needs: 1, 2 or 4.
      precision: of products of float32, as `input_precision` gives it.
      compute_capability: of the GPU, 80, 90 or 100; None for the first one here, or 90.
    """
    mean = -(-rows // num_experts)
    block_m = 16 if mean <= 16 else 32 if mean <= 48 else 64 if mean <= 96 else 128
    hopper = (compute_capability or capability()) >= 90
    if jnp.dtype(dtype).itemsize > 2:
        block_m = min(block_m, 64) if held > 1 else block_m
        columns, depth = 128 if precision == "tf32" and held == 1 else 64, 32
    else:
        columns = 256 // held if hopper and block_m == 128 else max(64, 128 // held)
        depth = 64
    block_n, block_k = min(columns, _power(n)), min(depth, _power(k))
    num_warps = 8 if block_m * block_n * held > 128 * depth else 4
    return Tile(block_m, block_n, block_k, num_warps, 3)


def weight_grad_tile(k: int, n: int, dtype: Any) -> Tile:
    """For dW[e] = x^T dy: block_m rows are contracted at a time, [k, n] is cut into blocks."""
    wide = jnp.dtype(dtype).itemsize > 2
    block_k, block_n = min(64 if wide else 128, _power(k)), min(64 if wide else 128, _power(n))
    return Tile(32 if wide else 64, block_n, block_k, 4 if wide else 8, 3)


def row_tile(d: int) -> Tile:
    """For sums over rows without products: up to 1,024 columns at a time."""
    return Tile(16, min(1024, _power(d)), 16, 4, 2)


def topk_tile(num_experts: int) -> Tile:
    """For routing: whole rows of logits, about 1,024 at a time."""
    block_n = _power(num_experts)
    return Tile(max(1, 1024 // block_n), block_n, 16, 4, 1)


@functools.cache
def capability() -> int:
    """Ten times the compute capability of the first GPU; Hopper's where there is no GPU.

    Kernels are compiled for it, so all GPUs of a process must be of one kind.
    """
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        return 90
    return int(10 * float(device.compute_capability))


def _power(n: int) -> int:
    """The least power of two that is at least n and 16, the least side of a product."""
    return max(16, 1 << (n - 1).bit_length())
