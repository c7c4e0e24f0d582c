"""Products that the backend "xla" is made of."""

from jax import lax
from jaxtyping import Array

from moe_kernels.arguments import wide as wide


def product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The matrix product over one axis of each, summed in the wide dtype, which it has."""
    return lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=wide(a.dtype)
    )


def linear(x: Array, w: Array, b: Array | None) -> Array:
    """X w + b, in the wide dtype."""
    y = product(x, w, 1, 0)
    return y if b is None else y + b.astype(y.dtype)[None]
