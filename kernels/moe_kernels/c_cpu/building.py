"""From the C sources to functions that XLA can call, by way of the cache."""

import ctypes
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from moe_kernels.c_cpu import compiler, folders
from moe_kernels.c_cpu.compiler import Unusable as Unusable

CACHE = "MOE_KERNELS_CACHE"
"""Environment variable: the folder to keep compiled kernels in; else ~/.cache/moe_kernels."""

Handlers = dict[str, Any]


def handlers(names: Iterable[str]) -> tuple[Handlers, str | None]:
    """The compiled functions of these names, and what the user should be told, or None.

    What the cache has is taken if it is whole and nobody else can have written it. Else the sources
    are compiled, and kept if they can be.

    Raises:
      Unusable: there is no compiler, it fails, or what it made can't be loaded.
    """
    command = compiler.command()
    file_name = f"{compiler.key(command)}.so"
    folder, refusal = _cache()
    if folder is None:
        return _compiled(names, command, None)[0], _not_kept(refusal)
    path = folder / file_name
    found, _ = _kept(names, path)
    if found:
        return found, None
    with folders.locked(folder, seconds=compiler.TIMEOUT):
        # Another process may have made it meanwhile.
        found, notice = _kept(names, path)
        if found:
            return found, None
        found, library = _compiled(names, command, folder)
        try:
            folders.keep(path, library)
        except OSError as error:
            notice = _not_kept(f"in {folder}: {error.strerror}")
    return found, notice


def cache_folder() -> Path:
    """The folder that compiled kernels are kept in.

    Raises:
      RuntimeError: no variable names one, and no home folder is known.
    """
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "moe_kernels"


def _cache() -> tuple[Path | None, str]:
    """The cache's folder, made and safe; or None, and where kernels can't be kept and why."""
    try:
        named = cache_folder()
    except RuntimeError:
        return None, "between processes: no home folder is known"
    try:
        folder = named.absolute()
        refusal = folders.unfit(folder)
    except OSError as error:
        return None, f"in {named}: {error.strerror}"
    return (None, f"in {folder}: {refusal}") if refusal else (folder, "")


def _not_kept(where: str) -> str:
    return (
        "the C kernels are compiled again in each process, which takes some seconds, as they "
        f"cannot be kept {where}. The environment variable {CACHE} names another folder"
    )


def _kept(names: Iterable[str], path: Path) -> tuple[Handlers | None, str | None]:
    """What the cache has, unless it is missing or damaged; if others may have made it, a notice."""
    try:
        library = folders.read(path)
    except folders.Untrusted as error:
        return None, f"{path} {error}: it was not used but compiled again"
    if library is None:
        return None, None
    try:
        return _loaded(names, library, path.parent), None
    except (OSError, AttributeError):
        return None, None  # of another C library, or without one of the kernels


def _compiled(
    names: Iterable[str], command: tuple[str, ...], folder: Path | None
) -> tuple[Handlers, bytes]:
    library = compiler.compiled(command, folders.temporary(folder))
    try:
        return _loaded(names, library, folder), library
    except (OSError, AttributeError) as error:
        raise Unusable(
            f"its C kernels were compiled with {shlex.join(command)}, but cannot be loaded: {error}"
        ) from error


def _loaded(names: Iterable[str], library: bytes, folder: Path | None) -> Handlers:
    """The library's functions.

    Raises:
      OSError: it can't be loaded from anywhere.
      AttributeError: it lacks one.
    """
    loaded = _in_memory(library) or _from_a_file(library, folders.temporary(folder))
    return {name: jax.ffi.pycapsule(getattr(loaded, name)) for name in names}


def _in_memory(library: bytes) -> ctypes.CDLL | None:
    """Loads these very bytes, which no file holds; None where the system doesn't let that be."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        handle = os.memfd_create("moe_kernels", os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(library)
        # Left open: the loader takes a second file of this name for the first. The dot is for
        # others that load files of such names, and close them.
        return ctypes.CDLL(f"/proc/self/./fd/{handle}")
    except OSError:
        os.close(handle)
        return None


def _from_a_file(library: bytes, parents: list[Path]) -> ctypes.CDLL:
    """Loads it from a private folder, which is removed, of the first parent that allows that."""
    failure = OSError("there is no folder for a temporary file")
    for parent in parents:
        try:
            with folders.private(parent) as made:
                path = made / "kernels.so"
                path.write_bytes(library)
                return ctypes.CDLL(str(path))
        except OSError as error:
            failure = error
    raise failure
