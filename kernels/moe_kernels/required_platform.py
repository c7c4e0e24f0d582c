"""A mark in a program: lowering it for another platform is an error that says why."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array

_mark = Primitive("required_platform")
_mark.def_abstract_eval(lambda x, **_: x)


def require(tree: Any, platforms: tuple[str, ...], *, asked: str, instead: str) -> Any:
    """The arrays as they are, in a program that can only be lowered for `platforms`.

    While tracing nobody knows the platform (a program for a GPU may be lowered on a machine that
    has none), so the check is made when the program is lowered.

    Args:
      tree: arrays; those of floats must not be differentiated.
      platforms: where the program may run.
      asked: what the user asked for, such as "backend='triton'".
      instead: what would be right elsewhere.

    Raises:
      ValueError: when lowered for another platform.
    """

    @jax.jit
    def marked(array: Array) -> Array:
        return _mark.bind(array, platforms=platforms, asked=asked, instead=instead)

    # Every array, for those that turn out unused take their mark with them.
    return jax.tree.map(marked, tree)


def _lower(ctx: Any, x: Any, *, platforms: tuple[str, ...], asked: str, instead: str) -> Any:
    targets = ctx.platforms or ctx.module_context.platforms
    if wrong := [p for p in targets if p not in platforms]:
        raise ValueError(
            f"{asked} runs on {' and '.join(platforms)}, but this program is for {wrong[0]}: "
            f"use {instead}"
        )
    return [x]


mlir.register_lowering(_mark, _lower)
