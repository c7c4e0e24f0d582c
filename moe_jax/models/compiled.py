"""Compiled functions of models: one for each structure of a model, and the limit on their number.

A program that XLA compiled for a CPU holds some hundred memory maps, of which Linux gives a process
65,530 (vm.max_map_count). Beyond, LLVM aborts: "Unable to allocate section memory".
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from flax import nnx

R = TypeVar("R")

_MAPS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def free_programs(*, share: float = 0.5) -> bool:
    """Drop all compiled programs if they hold more than a share of the maps; True if it did so.

    Programs that are still needed are compiled again. Does nothing where the system doesn't tell
    (it isn't Linux).
    """
    if not (_MAPS.exists() and _LIMIT.exists()):
        return False
    with _MAPS.open("rb") as lines:
        used = sum(1 for _ in lines)
    if used <= share * int(_LIMIT.read_text()):
        return False
    jax.clear_caches()
    return True


class FlatModel(NamedTuple):
    """The leaves of a model and its structure, as `jax.tree.flatten` gives them."""

    leaves: list[Any]
    structure: Any


def flat_model(model: nnx.Module) -> FlatModel:
    """Flatten a model, which takes longer than a step of a small one: once before many steps."""
    return FlatModel(*jax.tree.flatten(model))


class PerStructure(Generic[R]):
    """A function of a model, compiled once for each structure of the model and shapes of the rest.

    Models of one structure with other weights share the programs. A model comes to them as a flat
    list of arrays: `jax.jit` would flatten a module in every call, and compare its structure. The
    programs of the last 8 structures are kept.
    """

    def __init__(self, function: Callable[..., R], **jit_options: Any):
        functools.update_wrapper(self, function)

        @functools.lru_cache(maxsize=8)
        def program(structure: Any) -> Callable[..., R]:
            # `wraps` shows `jax.jit` the names of the arguments, which its options use.
            @functools.wraps(function)
            def run(leaves: list[Any], *args: Any, **kwargs: Any) -> R:
                model: nnx.Module = jax.tree.unflatten(structure, leaves)
                model.eval()
                return function(model, *args, **kwargs)

            return jax.jit(run, **jit_options)

        self._program = program

    def of(self, model: FlatModel) -> Callable[..., R]:
        """The program of a model, which takes the other arguments, to be called many times."""
        return functools.partial(self._program(model.structure), model.leaves)

    def __call__(self, model: nnx.Module, *args: Any, **kwargs: Any) -> R:
        """Flatten the model and run its program."""
        return self.of(flat_model(model))(*args, **kwargs)


def per_structure(**jit_options: Any) -> Callable[[Callable[..., R]], PerStructure[R]]:
    """Make a `PerStructure` of a function whose first argument is a model; there in eval mode.

        @per_structure(static_argnames="slots")
        def _prefill(model, ids, slots): ...

        _prefill(model, ids, 32)                          # once
        prefill = _prefill.of(flat_model(model))          # many times: prefill(ids, 32)

    Args:
      jit_options: of `jax.jit`, such as static_argnames and donate_argnames.
    """
    return functools.partial(PerStructure, **jit_options)
