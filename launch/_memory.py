"""What a launch script does about memory before it computes."""

import atexit
import gc
import importlib.util
import os

_ACCELERATORS = ("jax_plugins", "libtpu")
"""Packages with which JAX finds a GPU, or a TPU."""


def collect_seldom() -> None:
    """Look for cycles of objects after 100,000 new ones, not after 700, and not at the exit.

    For a short answer: what imports and traces make stays anyway, and looking takes a fifth of it.
    """
    gc.set_threshold(100_000, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def keep_heap_on_cpu() -> bool:
    """`moe_kernels.keep_heap` if JAX will run on CPU; whether it took effect.

    JAX_PLATFORMS says where it runs; unset, it is the CPU where no accelerator's package is
    installed. Elsewhere a host would keep the memory that large checkpoints pass through.
    """
    named = os.environ.get("JAX_PLATFORMS")
    if named:
        on_cpu = named.split(",")[0] == "cpu"
    else:
        on_cpu = all(importlib.util.find_spec(name) is None for name in _ACCELERATORS)
    if not on_cpu:
        return False
    from moe_kernels import keep_heap

    return keep_heap()
