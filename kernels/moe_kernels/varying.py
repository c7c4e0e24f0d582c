"""Typing of values inside `jax.shard_map`, where each is the same on every device or varies."""

from typing import Any, TypeVar

import jax
from jax import lax
from jaxtyping import Array

Tree = TypeVar("Tree")


def match_axes(tree: Tree) -> Tree:
    """Marks every array as varying over all the mesh axes that any of them varies over.

    Loops need it: their state keeps one type. The derivative of the mark is the sum over devices,
    so a parameter that all devices share gets its whole gradient. Outside shard_map, the identity.
    """
    axes = frozenset[str]().union(*(_varying(a) for a in jax.tree.leaves(tree)))

    def mark(a: Array) -> Array:
        missing = tuple(sorted(axes - _varying(a)))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(mark, tree)


def struct(shape: tuple[int, ...], dtype: Any, like: Array) -> jax.ShapeDtypeStruct:
    """The type of a kernel's output that varies over the axes that `like` varies over."""
    axes = jax.typeof(like).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes)


def _varying(a: Array) -> frozenset[str]:
    return jax.typeof(a).manual_axis_type.varying
