"""A model from its leaves, within a compiled function."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array


def rebuilt(treedef: Any, leaves: Sequence[Array]) -> Any:
    """The model whose `jax.tree.flatten` gave leaves and treedef, in eval mode.

    A function that is compiled once for each treedef and takes the leaves as a flat list spares
    each call the flattening of a module, which takes longer than a small model's step.
    """
    model: nnx.Module = jax.tree.unflatten(treedef, leaves)
    model.eval()
    return model
