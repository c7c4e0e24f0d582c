"""Compiled functions of models: one for each structure of a model, and the limit on their number.

A program that XLA compiled for a CPU holds some hundred memory maps, of which Linux gives a process
65,530 (vm.max_map_count). Beyond, LLVM aborts: "Unable to allocate section memory".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

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


def rebuilt(treedef: Any, leaves: Sequence[Array]) -> Any:
    """The model whose `jax.tree.flatten` gave leaves and treedef, in eval mode.

    A function that is compiled once for each treedef and takes the leaves as a flat list spares
    each call the flattening of a module, which takes longer than a small model's step.
    """
    model: nnx.Module = jax.tree.unflatten(treedef, leaves)
    model.eval()
    return model
