"""Calls of the compiled kernels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from moe_kernels.varying import match_axes


def call(
    kernel: str,
    arrays: Sequence[Array | None],
    results: Sequence[tuple[int, ...] | None],
    aliases: dict[int, int] | None = None,
    dtype: Any = jnp.float32,
    **attribute: Any,
) -> Sequence[Array]:
    """Results of these shapes and one dtype; what is None, on either side, is an empty array."""
    given = match_axes([jnp.zeros((0,), jnp.float32) if a is None else _narrow(a) for a in arrays])
    types = [jax.ShapeDtypeStruct(shape or (0,), dtype) for shape in results]
    found = jax.ffi.ffi_call(kernel, types, input_output_aliases=aliases)(*given, **attribute)
    # A call of a foreign function knows nothing of values that differ over a shard_map's devices.
    return match_axes((given, found))[1]


def _narrow(array: Array) -> Array:
    """Integers as int32, which the kernels read."""
    return array.astype(jnp.int32) if jnp.issubdtype(array.dtype, jnp.integer) else array
