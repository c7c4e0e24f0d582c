"""The C kernels' library as a whole: what a user sees where something stands in its way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe_kernels import resolve_backend
from moe_kernels.c_cpu import building, library

COMPUTE = """
import jax.numpy as jnp
from moe_kernels import moe_ffn, resolve_backend
one = jnp.ones((1, 1, 1))
y = moe_ffn(jnp.ones((2, 1)), jnp.zeros((2, 1), int), jnp.ones((2, 1)), one, one, activation="relu")
print(resolve_backend(None), resolve_backend(None), float(y.sum()))
"""


def run(**variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **variables}
    command = [sys.executable, "-c", COMPUTE]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_machine_with_a_compiler_uses_them_unasked():
    assert resolve_backend(None) == "c_cpu"


def test_a_folder_that_cannot_be_used_costs_a_compilation_and_one_warning():
    done = run(**{building.CACHE: "/dev/null/folder"})
    assert done.stdout.split() == ["c_cpu", "c_cpu", "2.0"]
    assert done.stderr.count("RuntimeWarning") == 1
    assert (
        "RuntimeWarning: moe_kernels: the C kernels are compiled again in each process, which takes "
        "some seconds, as they cannot be kept in /dev/null/folder: Not a directory. The environment "
        f"variable {building.CACHE} names another folder\n"
    ) in done.stderr


@pytest.mark.parametrize(
    "kind, reason",
    [
        ('gcc "', "CC='gcc \"' is not a command (No closing quotation); name a C compiler"),
        ("failing", "its C sources could not be compiled with {}: error: no luck\n"),
    ],
)
def test_without_a_compiler_the_layer_runs_by_xla_and_one_warning_says_why(kind, reason, tmp_path):
    failing = script(tmp_path / "failing", "echo error: no luck >&2; exit 1")
    done = run(CC=failing if kind == "failing" else kind)
    assert done.stdout.split() == ["xla", "xla", "2.0"]
    assert done.stderr.count("RuntimeWarning") == 1
    start = "RuntimeWarning: moe_kernels is slower than it could be on this CPU: "
    assert start + reason.format(failing) in done.stderr


def test_a_named_backend_without_a_compiler_is_an_error_that_says_why(monkeypatch):
    monkeypatch.setattr(library, "_outcome", lambda: ("no C compiler was found", None))
    with pytest.raises(ValueError, match="backend='c_cpu' cannot be used here: no C compiler was"):
        resolve_backend("c_cpu")


def test_where_there_are_no_posix_modules(monkeypatch):
    monkeypatch.setattr(library.os, "name", "nt")
    assert library._outcome.__wrapped__() == ("its C kernels are for Linux and macOS", None)


def test_kernels_that_xla_knows_already_stay():
    assert library.missing() is None
    # As when the module is imported again: the same kernels, loaded a second time.
    assert library._outcome.__wrapped__()[0] is None


NO_MEMORY = """
import ctypes, resource
import jax, jax.numpy as jnp
from moe_kernels import moe_ffn

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
x, ids, weight = jnp.ones((40, 8)), jnp.zeros((40, 1), int), jnp.ones((40, 1))
w_in, w_out = jnp.ones((1, 8, 8)), jnp.ones((1, 8, 8))
def layer(x):
    return moe_ffn(x, ids, weight, w_in, w_out, activation="relu", backend="c_cpu")
layer = jax.jit(layer).lower(x).compile()
before = resource.getrlimit(resource.RLIMIT_AS)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
taken = []
while piece := libc.malloc(1 << 20):
    taken.append(piece)
try:
    layer(x).block_until_ready()
except jax.errors.JaxRuntimeError as error:
    print(error)
for piece in taken:
    libc.free(piece)
resource.setrlimit(resource.RLIMIT_AS, before)
print(float(layer(x)[0, 0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_out_of_memory_is_an_error_of_the_call():
    env = os.environ | {"MALLOC_ARENA_MAX": "1"}  # one heap for all threads
    command = [sys.executable, "-c", NO_MEMORY]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, result = done.stdout.splitlines()
    assert said.startswith("RESOURCE_EXHAUSTED: moe_kernels: out of memory: ")
    assert float(result) == 64
