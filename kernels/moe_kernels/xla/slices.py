"""Parts of arrays, read and written in loops.

XLA for CPU doesn't move bfloat16: to slice or to update an array it widens all of it to float32,
before a loop if nothing in it changes, else in each step. So bfloat16 is moved as its bits.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def stored(dtype: Any) -> Any:
    """The dtype that values of a dtype are moved in: uint16 for bfloat16, else the same."""
    return jnp.uint16 if dtype == jnp.bfloat16 else dtype


def to_stored(values: Array) -> Array:
    """The values' bits, if they are moved as such."""
    return _as_bits_of(values, stored(values.dtype))


def from_stored(values: Array, dtype: Any) -> Array:
    """What `to_stored` was given, of this dtype."""
    return _as_bits_of(values, dtype)


def entry(values: Array, index: Array) -> Array:
    """values[index] along the first axis."""
    bits, index = _in_place(values, index)
    return from_stored(lax.dynamic_index_in_dim(bits, index, keepdims=False), values.dtype)


def block(values: Array, start: Array, size: int) -> Array:
    """values[start : start + size]."""
    bits, start = _in_place(values, start)
    return from_stored(lax.dynamic_slice_in_dim(bits, start, size), values.dtype)


def rows_of(values: Array, index: Array) -> Array:
    """values[index], for indices known to be in range."""
    bits, index = _in_place(values, index)
    rows = bits.at[index].get(mode="promise_in_bounds")
    return from_stored(rows, values.dtype)


def _in_place(values: Array, where: Array) -> tuple[Array, Array]:
    """The values as they are moved, without a copy of all of them.

    The barrier ties them to a place that changes from step to step: XLA would otherwise make the
    bits of the whole array before the loop.
    """
    if stored(values.dtype) != values.dtype:
        values, where = lax.optimization_barrier((values, where))
    return to_stored(values), where


def _as_bits_of(values: Array, dtype: Any) -> Array:
    return values if values.dtype == dtype else lax.bitcast_convert_type(values, dtype)
