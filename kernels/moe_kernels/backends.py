"""Which backend runs: the one that is named, or the one for the platform that a program is for."""

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax import lax

BACKENDS = ("reference", "xla")
"""The names that `backend=` takes."""

FOR_PLATFORM: dict[str, str] = {}
"""Platform (as in `lax.platform_dependent`) -> the backend made for it; elsewhere it is "xla"."""


def choose(backend: str | None) -> str:
    """The backend's name that will be used on this machine's default device.

    Raises:
      ValueError: there is no backend of that name, or a package that it needs is missing.
    """
    if backend is None:
        return _present().get(_platform(), "xla")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is none of {', '.join(BACKENDS)} (or None)")
    if reason := missing(backend):
        raise ValueError(f"backend={backend!r} cannot be used here: {reason}")
    return backend


def missing(backend: str) -> str | None:
    """What stands in the way of the backend, as a sentence; None if nothing does."""
    del backend
    return None


def module(backend: str) -> ModuleType:
    """The backend's package, imported when first used."""
    return importlib.import_module(f"moe_kernels.{backend}")


def run(backend: str | None, name: str, arrays: dict[str, Any], **static: Any) -> Any:
    """Calls function `name` of a backend with arrays (or pytrees of them) and static values.

    With None the program holds the version of each platform whose backend is installed, and the
    platform that it is lowered for picks one.
    """

    def function(backend: str) -> Callable[[dict[str, Any]], Any]:
        call = getattr(module(backend), name)
        return lambda arrays: call(**arrays, **static)

    if backend is not None:
        return function(backend)(arrays)
    branches = {platform: function(b) for platform, b in _present().items()}
    if not branches:
        return function("xla")(arrays)
    return lax.platform_dependent(arrays, default=function("xla"), **branches)


def _present() -> dict[str, str]:
    return {platform: b for platform, b in FOR_PLATFORM.items() if missing(b) is None}


def _platform() -> str:
    platform = jax.default_backend()
    return "cuda" if platform == "gpu" else platform
