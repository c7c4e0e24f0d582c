"""Where the C kernels come from: compiled once, kept, and said plainly where that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe_kernels import choose
from moe_kernels.c_cpu import library

COMPUTE = """
import jax.numpy as jnp
from moe_kernels import choose, moe_ffn
one = jnp.ones((1, 1, 1))
y = moe_ffn(jnp.ones((2, 1)), jnp.zeros((2, 1), int), jnp.ones((2, 1)), one, one, activation="relu")
print(choose(None), float(y.sum()))
"""


@pytest.fixture
def compiler():
    command = library.compiler()
    assert command is not None
    return command


def test_cc_may_hold_arguments(monkeypatch, compiler):
    monkeypatch.setenv("CC", f"{compiler[0]} -fno-common")
    assert library.compiler() == (compiler[0], "-fno-common")
    monkeypatch.setenv("CC", "")
    assert library.compiler() == compiler


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_machine_with_a_compiler_uses_them_unasked():
    assert choose(None) == "c_cpu"


def test_what_was_compiled_is_kept_and_used_again(tmp_path, compiler, monkeypatch):
    made = library.build(compiler, tmp_path)
    assert list(tmp_path.iterdir()) == [made]
    before = made.stat().st_mtime_ns
    assert library.build(compiler, tmp_path) == made
    assert made.stat().st_mtime_ns == before
    monkeypatch.setattr(library, "_processor", lambda: "another one")
    assert library.build(compiler, tmp_path) != made


def test_a_compiler_that_fails_leaves_nothing_and_its_error_is_told(tmp_path, monkeypatch):
    failing = script(
        tmp_path / "failing",
        'case "$1" in --version) echo 1.0;; *) echo "kernels.c:1: error: no luck" >&2; exit 1;; esac',
    )
    folder = tmp_path / "cache"
    with pytest.raises(subprocess.CalledProcessError):
        library.build((failing,), folder)
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("CC", failing)
    monkeypatch.setenv(library.CACHE, str(folder))
    reason = library.missing.__wrapped__()
    assert reason == (
        f"its C sources could not be compiled with {failing}: kernels.c:1: error: no luck"
    )


def test_the_sources_compile_without_a_warning(tmp_path, compiler, monkeypatch):
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-Wall", "-Wextra", "-Werror"))
    library.build(compiler, tmp_path)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    reason = library.missing.__wrapped__()
    assert reason.startswith("no C compiler was found (cc, gcc, clang, or what CC names); install")


def test_a_folder_that_cannot_be_written(tmp_path, compiler, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CC", compiler[0])
    monkeypatch.setenv(library.CACHE, str(tmp_path / "file" / "folder"))
    assert "could not be compiled" in library.missing.__wrapped__()


@pytest.mark.parametrize(
    "folders, want",
    [
        ({library.CACHE: "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/moe_kernels"),
        ({"HOME": "/c"}, "/c/.cache/moe_kernels"),
    ],
)
def test_the_folder_that_they_are_kept_in(folders, want, monkeypatch):
    for name in (library.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in folders.items():
        monkeypatch.setenv(name, value)
    assert library.cache_folder() == Path(want)


@pytest.mark.parametrize("kind", ["no compiler", "a compiler that fails"])
def test_without_them_the_layer_runs_by_xla(kind, tmp_path):
    failing = script(tmp_path / "failing", "echo error: no luck >&2; exit 1")
    env = {**os.environ, "CC": "none" if kind == "no compiler" else failing}
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["xla", "2.0"]
    warned = "RuntimeWarning: moe_kernels is slower than it could be on this CPU: its C sources"
    assert (warned in done.stderr) == (kind != "no compiler")
