"""The activations that the kernels know by name."""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def relu2(h: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(h, 0)^2, elementwise (So et al. 2021, "Primer")."""
    return jnp.square(jax.nn.relu(h))


ACTIVATIONS: MappingProxyType[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "silu": jax.nn.silu,
        "gelu": partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": partial(jax.nn.gelu, approximate=True),
        "relu": jax.nn.relu,
        "relu2": relu2,
    }
)
"""Name -> elementwise function. "gelu" is the exact one (erf), "gelu_tanh" its approximation."""
