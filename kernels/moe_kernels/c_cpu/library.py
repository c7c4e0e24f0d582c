"""The compiled kernels: built on this machine for its processor, once, and known to XLA by name.

The C sources lie beside this file. They are compiled at the first use (about two seconds) with the
machine's C compiler (`compiler.py`) and kept in a folder of the user's (`folders.py`), under a name
that says for which sources, compiler, processor and version of XLA's interface they are.
"""

import functools
import os
import threading
import warnings

import jax

KERNELS = (
    "moe_forward",
    "moe_grouped_matmul",
    "moe_hidden_grad",
    "moe_plan",
    "moe_weight_grad",
)

_ONE_AT_A_TIME = threading.Lock()


def missing() -> str | None:
    """What stands in the way of the kernels on this machine, as a sentence; None if nothing does.

    Compiles and loads them if that was not done yet. Where they can't be kept for the next process,
    a warning tells it, once.
    """
    with _ONE_AT_A_TIME:
        reason, notice = _outcome()
        _tell(notice)
    return reason


@functools.cache
def _outcome() -> tuple[str | None, str | None]:
    """What stands in the way, and what the user should be told."""
    if os.name != "posix":
        return "its C kernels are for Linux and macOS", None
    # Here, because it needs modules that only these have.
    from moe_kernels.c_cpu import building

    try:
        handlers, notice = building.handlers(KERNELS)
    except building.Unusable as error:
        return str(error), None
    for name, handler in handlers.items():
        _register(name, handler)
    return None, notice


@functools.cache
def _tell(notice: str | None) -> None:
    if notice:
        warnings.warn(f"moe_kernels: {notice}", RuntimeWarning, stacklevel=3)


def _register(name: str, handler: object) -> None:
    try:
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except jax.errors.JaxRuntimeError as error:
        # An import of this module before this one did it: its kernels stay.
        if "Duplicate" not in str(error):
            raise
