"""The compiled kernels: built on this machine for its processor, once, and known to XLA by name.

The C sources lie beside this file. They are compiled at the first use (about two seconds) with the
machine's C compiler and kept in a folder of the user's, under a name that says for which sources,
compiler, processor and version of XLA's interface they are.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

SOURCES = Path(__file__).parent
KERNELS = (
    "moe_forward",
    "moe_grouped_matmul",
    "moe_hidden_grad",
    "moe_plan",
    "moe_weight_grad",
)
COMPILERS = ("cc", "gcc", "clang")
CACHE = "MOE_KERNELS_CACHE"
"""Environment variable: the folder to keep compiled kernels in; else ~/.cache/moe_kernels."""
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")


@functools.cache
def missing() -> str | None:
    """What stands in the way of the kernels on this machine, as a sentence; None if nothing does.

    Compiles and loads them if that was not done yet.
    """
    command = compiler()
    if command is None:
        return (
            f"no C compiler was found ({', '.join(COMPILERS)}, or what CC names); "
            "install one, such as gcc or clang"
        )
    try:
        library = ctypes.CDLL(str(build(command, cache_folder())))
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        first = next((line for line in said.splitlines() if "error" in line.lower()), said.strip())
        return f"its C sources could not be compiled with {shlex.join(command)}: {first}"
    for name in KERNELS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return None


def compiler() -> tuple[str, ...] | None:
    """The command of the C compiler that will be used; CC may hold arguments ("ccache gcc")."""
    named = shlex.split(os.environ.get("CC", ""))
    for program, *arguments in [named] if named else ([c] for c in COMPILERS):
        if path := shutil.which(program):
            return (path, *arguments)
    return None


def cache_folder() -> Path:
    """The folder that compiled kernels are kept in."""
    if named := os.environ.get(CACHE):
        return Path(named)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "moe_kernels"


def build(command: tuple[str, ...], folder: Path) -> Path:
    """The path of the compiled library, which is made unless it is there.

    A process that is stopped half-way leaves nothing that another would take for it: the file gets
    its name when it is whole.

    Raises:
      OSError: the compiler can't be started, or the folder can't be written.
      subprocess.CalledProcessError: the compiler failed.
    """
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    flags = (*FLAGS, native, "-isystem", jax.ffi.include_dir())
    target = folder / f"{_key(command, flags)}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        fresh = Path(made) / target.name
        _output(*command, *flags, str(SOURCES / "kernels.c"), "-o", str(fresh))
        fresh.replace(target)
    return target


def _key(command: tuple[str, ...], flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(_output(*command, "--version").encode())
    for part in (*command, *flags, jax.lib.__version__, _processor()):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What the processor can do, as far as the operating system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
