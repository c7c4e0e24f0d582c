"""Compiled programs, kept on disk: the next process with the same ones need not compile them."""

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import warnings
from pathlib import Path

LARGEST = 1 << 30
"""Bytes that the programs of one kind of machine may take."""

_ROOM = 64 << 20  # bytes that must be free
_OFF = ("0", "false", "f", "no", "n", "off")


def keep_programs() -> None:
    """Have JAX keep every program that it compiles, and look there before it compiles one.

    They are in $XDG_CACHE_HOME/moe_jax (~/.cache/moe_jax), in a folder for machines with the same
    processor: programs for CPU need its instructions. Who names a folder
    (JAX_COMPILATION_CACHE_DIR) or wants none (JAX_ENABLE_COMPILATION_CACHE=false) gets that. They
    are code, so the folder must be one that no other user can change. Where it isn't, or can't be
    made, a warning says so, and nothing is kept.
    """
    wanted = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() not in _OFF
    if not wanted or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    try:
        folder = _folder()
        _make_room(folder, LARGEST)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(
            f"compiled programs can't be kept: {_reason(error)} "
            "(JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false "
            "none)",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _reason(error: OSError | RuntimeError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error).rstrip(".")


def _folder() -> Path:
    """The folder for this machine's programs, made for this user alone.

    Raises:
      OSError: it can't be made or written to, or others can change it.
    """
    from moe_kernels.c_cpu import folders

    cache = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
    if not cache.is_absolute():  # where it is not to count
        cache = Path.home() / ".cache"
    folder = cache / "moe_jax" / f"programs-{_machine()}"
    if reason := folders.unfit(folder):
        raise PermissionError(None, reason, str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(None, "it can't be written to", str(folder))
    if shutil.disk_usage(folder).free < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    return folder


def _machine() -> str:
    """A name for the processor's kind and instructions."""
    lines = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                lines.append(line)
            elif not line:
                break  # the first core's lines end here
    text = "\n".join([platform.machine(), platform.processor(), *lines])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _make_room(folder: Path, largest: int) -> None:
    """If they take more than `largest`, remove those that were made first, down to half of it."""
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another process removes them, too
            if entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                files.append((found.st_mtime, found.st_size, entry.path))
    total = sum(size for _, size, _ in files)
    if total <= largest:
        return
    for _, size, path in sorted(files):
        if total <= largest // 2:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= size
