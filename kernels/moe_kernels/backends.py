"""Backend selection: by name, or by the platform that a program is lowered for."""

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jax import lax

from moe_kernels import gpu_packages
from moe_kernels.c_cpu import library
from moe_kernels.required_platform import require

BACKENDS = ("reference", "xla", "c_cpu", "triton_gpu", "pallas_tpu")
"""The names that `backend=` takes."""

RUNS_ON: dict[str, tuple[str, ...]] = {
    "c_cpu": ("cpu",),
    "triton_gpu": ("cuda",),
    "pallas_tpu": ("tpu",),
}
"""Backend -> the platforms (as in `lax.platform_dependent`) that it is made for; the others run on
every platform."""

RUNTIME = {"pallas_tpu": "libtpu"}
"""Backend -> package without which no program picks it unasked: tracing its kernels takes time."""

LACKS = {
    "c_cpu": ("float64", "float16", "bfloat16"),
    "triton_gpu": ("float64",),
    "pallas_tpu": ("float64", "float16"),
}
"""Backend -> dtypes that its hardware, its compiler or its kernels do not have."""


def resolve_backend(backend: str | None, dtype: str = "float32") -> str:
    """The name of the backend that arrays of that dtype will use on this machine's default device.

    Raises:
      ValueError: there is no backend of that name, or a package or compiler that it needs is
        missing.
    """
    if backend is None:
        found = _present().get(_platform(), "xla")
        return "xla" if dtype in LACKS.get(found, ()) else found
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is none of {', '.join(BACKENDS)} (or None)")
    if reason := missing(backend):
        raise ValueError(f"backend={backend!r} cannot be used here: {reason}")
    return backend


def missing(backend: str) -> str | None:
    """What stands in the way of the backend, as a sentence; None if nothing does."""
    if backend == "triton_gpu":
        return gpu_packages.missing()
    return library.missing() if backend == "c_cpu" else None


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

    dtypes = {a.dtype.name for a in jax.tree.leaves(arrays)}
    if backend is not None:
        if backend in RUNS_ON:
            for dtype in dtypes.intersection(LACKS[backend]):
                raise ValueError(
                    f"backend={backend!r} has no {dtype}: cast to float32, or use backend='xla'"
                )
            arrays = require(
                arrays,
                RUNS_ON[backend],
                asked=f"backend={backend!r}",
                instead="backend='xla', or None to pick by platform",
            )
        return function(backend)(arrays)
    branches = {
        platform: function(b)
        for platform, b in _present().items()
        if not dtypes.intersection(LACKS[b])
    }
    if not branches:
        return function("xla")(arrays)
    return lax.platform_dependent(arrays, default=function("xla"), **branches)


def only_once(backend: str | None) -> str:
    """What to tell who asks a backend for more than first derivatives in reverse mode."""
    asked = "backend=None (picked by platform)" if backend is None else f"backend={backend!r}"
    return (
        f"{asked} has first derivatives in reverse mode only (jax.grad, jax.vjp); for jax.jvp, "
        "jax.hessian and other second derivatives use backend='reference'"
    )


def _present() -> dict[str, str]:
    """Platform -> the backend made for it, where what it needs is installed."""
    installed = {b: platforms for b, platforms in RUNS_ON.items() if _unasked(b)}
    return {platform: b for b, platforms in installed.items() for platform in platforms}


def _unasked(backend: str) -> bool:
    """Whether this backend may be selected by default on this machine."""
    if backend == "c_cpu":
        # Its kernels are compiled here at the first use: in vain where programs are for a GPU.
        return _platform() == "cpu" and not _warned(missing(backend))
    reason = missing(backend)
    if reason and backend == "triton_gpu" and _platform() == "cuda":
        _warn_of_packages(reason)
    runtime = RUNTIME.get(backend)
    return reason is None and (runtime is None or gpu_packages.installed(runtime))


@functools.cache
def _warn_of_packages(reason: str) -> None:
    """Tells the reason, once, unless it is only that jax_triton is not installed."""
    if gpu_packages.installed("jax_triton"):
        text = f"moe_kernels is slower than it could be on this GPU: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


@functools.cache
def _warned(reason: str | None) -> bool:
    """Whether there is a reason; tells it, once."""
    if reason is not None:
        text = f"moe_kernels is slower than it could be on this CPU: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return reason is not None


def _platform() -> str:
    platform = jax.default_backend()
    if platform != "gpu":
        return platform
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"
