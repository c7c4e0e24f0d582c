"""Arguments on a mesh with Explicit axes (those of `jax.make_mesh`): each device its own tokens.

The type of such an array says how it is sharded, so the way into `jax.shard_map` and out of it can
be made from the arguments. Under Auto axes the compiler shards, and nothing is known while tracing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jaxtyping import Array

Tree = TypeVar("Tree")


class Place(NamedTuple):
    """Where tokens lie."""

    mesh: AbstractMesh
    explicit: tuple[str, ...]  # axes of the mesh
    tokens: tuple[str, ...]  # those of them that tokens are sharded over, the major one first

    def rows(self, ndim: int) -> NamedSharding:
        """Of an array with an axis of tokens, then others."""
        return self._sharding(self.tokens or None, *(None,) * (ndim - 1))

    def whole(self, ndim: int) -> NamedSharding:
        """Of an array that every device has all of."""
        return self._sharding(*(None,) * ndim)

    def _sharding(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self.mesh, jax.P(*axes))


def place_of(tokens: Any, shared: Any = ()) -> Place | None:
    """Where the arrays lie; None if that is no mesh with Explicit axes.

    Args:
      tokens: pytree of arrays whose first axis is that of tokens; the first one that is sharded
        over it decides.
      shared: pytree of other arrays.
    """
    for array in jax.tree.leaves((tokens, shared)):
        mesh = jax.typeof(array).sharding.mesh
        if explicit := _explicit(mesh):
            axes = (_names(array)[0] for array in jax.tree.leaves(tokens))
            return Place(mesh, explicit, next((a for a in axes if a), ()))
    return None


def whole_where(tree: Tree, tokens: Any) -> Tree:
    """The arrays, each device having all of them, on the mesh that the tokens lie on.

    As they are where that mesh has no Explicit axes. The gradient goes back as they came.
    """
    place = place_of(tokens)
    return tree if place is None else _resharded(tree, tokens, place.whole)


def rows_where(tree: Tree, tokens: Any) -> Tree:
    """The arrays, whose first axis is that of tokens, sharded as the tokens are."""
    place = place_of(tokens)
    return tree if place is None else _resharded(tree, tokens, place.rows)


# With the tokens, which bring the devices of the mesh: the arrays may lie on another one.
@partial(jax.jit, static_argnames="to", keep_unused=True)
def _resharded(tree: Tree, tokens: Any, to: Callable[[int], NamedSharding]) -> Tree:
    return jax.tree.map(lambda a: jax.sharding.reshard(a, to(a.ndim)), tree)


def per_device(
    function: Callable[..., Any],
    place: Place,
    tokens: Any,
    shared: Any,
    *,
    options: Any,
    whole: tuple[bool, ...] = (False,),
) -> Any:
    """function(tokens, shared, options) of each device's own tokens, by `jax.shard_map`.

    Whatever else is sharded is gathered first, and its gradient goes back as it came: a weight that
    is sharded (as in FSDP) gets its part of the sum over devices.

    Args:
      function: gives a tuple of arrays.
      place: of the arguments.
      tokens: pytree of arrays whose first axis is that of tokens.
      shared: pytree of arrays that every device needs all of.
      options: static and hashable, for the function.
      whole: for each result, whether every device has all of it, not its tokens' part.

    Raises:
      ValueError: this is under a vmap over an axis that is itself sharded over an Explicit one.
    """
    try:
        return _per_device(function, place, tokens, shared, options=options, whole=whole)
    except ValueError as error:
        if "axis_names=" not in str(error) and "explicit mesh axis" not in str(error):
            raise
        raise ValueError(
            "jax.vmap maps an axis that is sharded over an Explicit axis of the mesh: give each "
            "device its own part of it by"
            + _three_lines(place.explicit, "function(x, w) is what vmap gives")
        ) from None


@partial(jax.jit, static_argnames=("function", "place", "options", "whole"))
def _per_device(
    function: Callable[..., Any],
    place: Place,
    tokens: Any,
    shared: Any,
    *,
    options: Any,
    whole: tuple[bool, ...],
) -> Any:
    shared = jax.tree.map(lambda a: jax.sharding.reshard(a, place.whole(a.ndim)), shared)
    tokens = jax.tree.map(lambda a: jax.sharding.reshard(a, place.rows(a.ndim)), tokens)
    rows = place.rows(1).spec
    return jax.shard_map(
        partial(function, options=options),
        mesh=place.mesh,
        in_specs=(rows, jax.P()),
        out_specs=tuple(jax.P() if w else rows for w in whole),
        axis_names=set(place.explicit),
    )(tokens, shared)


def refuse_sharded(operation: str, **arrays: Any) -> None:
    """For operations on all rows of a plan, which no device has alone.

    Raises:
      ValueError: an array is sharded over an Explicit axis; shows the way through shard_map.
    """
    for name, tree in arrays.items():
        for array in jax.tree.leaves(tree):
            if axes := sum(_names(array), ()):
                raise ValueError(
                    f"{name} is sharded over the mesh axis {_written(axes)}, but {operation} needs "
                    "all rows of a plan on one device: give each device its own tokens and plan by"
                    + _three_lines(axes, f"function(x, w) makes the plan and calls {operation}")
                )


def _three_lines(axes: tuple[str, ...], comment: str) -> str:
    return (
        f"\n  rows, whole = jax.P({_written(axes)}), jax.P()"
        "\n  own = jax.shard_map(function, mesh=mesh, in_specs=(rows, whole), out_specs=rows)"
        f"\n  y = own(x, w)  # {comment}"
    )


def _written(axes: tuple[str, ...]) -> str:
    return repr(axes[0] if len(axes) == 1 else axes)


def _explicit(mesh: AbstractMesh) -> tuple[str, ...]:
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Explicit)


def _names(array: Array) -> list[tuple[str, ...]]:
    """For each axis of the array the mesh axes that it is sharded over."""
    spec = jax.typeof(array).sharding.spec
    given = [(s,) if isinstance(s, str) else tuple(s or ()) for s in spec]
    return given + [()] * (array.ndim - len(given))
