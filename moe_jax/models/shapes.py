"""The structure of a model without its numbers, for those who bring the numbers."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


class _OneKey(nnx.Rngs):
    """Random numbers of which nobody needs any: every request gets the same key."""

    def __init__(self) -> None:
        super().__init__(0)
        object.__setattr__(self, "_key", jax.random.key(0))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self

    def __call__(self) -> Any:
        return self._key


def shapes_of(make: Callable[[nnx.Rngs], Model]) -> Model:
    """The model that `make(rngs)` gives, shapes and dtypes only: nothing is allocated.

    As `nnx.eval_shape(lambda: make(nnx.Rngs(0)))`, but no keys are derived, which takes most of its
    time. So `make` may only draw from `rngs`, not keep it, as modules with dropout do.
    """
    return nnx.eval_shape(lambda: make(_OneKey()))
