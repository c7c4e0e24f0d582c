"""The machine's C compiler: which one it is, and what it makes of the sources."""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax

from moe_kernels.c_cpu import folders

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
TIMEOUT = 120.0
"""Seconds that the compiler may take; two is usual."""


class Unusable(Exception):
    """Why there are no C kernels on this machine, as a sentence."""


def command() -> tuple[str, ...]:
    """The command of the C compiler that will be used; CC may hold arguments ("ccache gcc").

    Raises:
      Unusable: there is none, or CC doesn't name one.
    """
    named = os.environ.get("CC", "")
    try:
        program, *arguments = shlex.split(named) or [""]
    except ValueError as error:
        raise Unusable(
            f"CC={named!r} is not a command ({error}); name a C compiler, such as gcc or clang"
        ) from None
    if named.strip():
        if path := shutil.which(program):
            return (path, *arguments)
        raise Unusable(
            f"CC={named!r} names no program that can be run; name a C compiler, such as gcc or "
            "clang, or unset CC"
        )
    for program in COMPILERS:
        path = shutil.which(program)
        if path and not _opens_a_window(path):
            return (path,)
    raise Unusable(
        f"no C compiler was found ({', '.join(COMPILERS)}, or what CC names); "
        "install one, such as gcc or clang"
    )


def _opens_a_window(path: str) -> bool:
    """Whether it is macOS' stand-in for a compiler, which offers to install one."""
    if sys.platform != "darwin" or os.path.dirname(path) != "/usr/bin":
        return False
    return subprocess.run(["xcode-select", "-p"], capture_output=True).returncode != 0


def key(command: tuple[str, ...]) -> str:
    """A name for what this compiler makes of these sources on this processor.

    Raises:
      Unusable: the compiler doesn't tell its version.
    """
    digest = hashlib.sha256(_run((*command, "--version"), command).encode())
    for part in (*command, *_flags(), jax.lib.__version__, _processor()):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.rglob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def compiled(command: tuple[str, ...], parents: list[Path]) -> bytes:
    """The compiled library; whatever the compiler writes is in a private folder, which is removed.

    Args:
      command: the compiler's.
      parents: folders that may hold the private one, the best first.

    Raises:
      Unusable: the compiler fails, or there is no room for its files.
    """
    said = "no folder for temporary files can be used"
    for parent in parents:
        try:
            with folders.private(parent) as made:
                return _compiled_in(made, command)
        except OSError as error:
            said = f"{parent}: {error.strerror}"
    raise Unusable(f"its C sources could not be compiled: {said}")


def _compiled_in(folder: Path, command: tuple[str, ...]) -> bytes:
    to = folder / "kernels.so"
    source = str(SOURCES / "kernels.c")
    _run((*command, *_flags(), source, "-o", str(to)), command, folder)
    if not to.is_file() or not to.stat().st_size:
        raise _failure(command, "it ended without an error but made no library")
    return to.read_bytes()


def _flags() -> tuple[str, ...]:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return (*FLAGS, native, "-isystem", jax.ffi.include_dir())


def _processor() -> str:
    """What the processor can do, as far as the operating system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _failure(command: tuple[str, ...], said: str) -> Unusable:
    return Unusable(f"its C sources could not be compiled with {shlex.join(command)}: {said}")


def _run(call: tuple[str, ...], command: tuple[str, ...], folder: Path | None = None) -> str:
    """What the call of the compiler prints; its temporary files go to the folder."""
    env = os.environ | {"LC_ALL": "C"} | ({"TMPDIR": str(folder)} if folder else {})
    try:
        process = subprocess.Popen(
            call,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise _failure(command, f"it cannot be started: {error.strerror}") from error
    with process:
        try:
            printed, errors = process.communicate(timeout=TIMEOUT)
        except BaseException as error:
            # With whatever it started, which would go on, and keep the pipes open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _failure(command, f"it was not done after {TIMEOUT:g} seconds") from None
            raise
    if process.returncode:
        raise _failure(command, _reason(errors.strip(), process.returncode))
    return printed


def _reason(errors: str, code: int) -> str:
    """The first line of a compiler's messages that tells of an error."""
    lines = errors.splitlines()
    ended = f"signal {-code} ended it" if code < 0 else f"it ended with exit code {code}"
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else ended)
