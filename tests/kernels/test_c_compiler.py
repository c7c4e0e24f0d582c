"""The C compiler: which one, and plain words where it fails."""

import os
import shutil
import time
from pathlib import Path

import pytest
from moe_kernels.c_cpu import compiler, folders

from tests.kernels.test_c_library import script

VERSION = 'case "$1" in --version) echo 1.0; exit 0;; esac'


@pytest.fixture
def own(monkeypatch):
    """The compiler that is used where CC names none."""
    monkeypatch.delenv("CC", raising=False)
    return compiler.command()


def made(*command: str) -> bytes:
    compiler.key(command)
    return compiler.compiled(command, folders.temporary(None))


def test_cc_may_hold_arguments(monkeypatch, own):
    monkeypatch.setenv("CC", f"{own[0]} -fno-common")
    assert compiler.command() == (own[0], "-fno-common")


@pytest.mark.parametrize("empty", ["", "  ", "\t"])
def test_an_empty_cc_names_none(empty, monkeypatch, own):
    monkeypatch.setenv("CC", empty)
    assert compiler.command() == own


@pytest.mark.parametrize(
    "named, reason",
    [
        ('gcc "', "CC='gcc \"' is not a command (No closing quotation); name a C compiler"),
        ("gcc \\", "CC='gcc \\\\' is not a command (No escaped character); name a C compiler"),
        ("no-such-compiler -O2", "CC='no-such-compiler -O2' names no program that can be run"),
        ("''", "CC=\"''\" names no program that can be run; name a C compiler, such as gcc"),
        ("/", "CC='/' names no program that can be run; name a C compiler, such as gcc or clang"),
        ("/etc/passwd", "CC='/etc/passwd' names no program that can be run; name a C compiler"),
    ],
)
def test_a_cc_that_names_no_program(named, reason, monkeypatch):
    monkeypatch.setenv("CC", named)
    with pytest.raises(compiler.Unusable) as error:
        compiler.command()
    assert str(error.value).startswith(reason)


def test_no_compiler_at_all(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(compiler.Unusable, match=r"^no C compiler was found \(cc, gcc, clang, or"):
        compiler.command()


def test_macos_is_asked_for_its_tools_before_a_compiler_opens_a_window(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiler.sys, "platform", "darwin")
    monkeypatch.setattr(compiler.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script(tmp_path / "xcode-select", "exit 2")
    with pytest.raises(compiler.Unusable, match="no C compiler was found"):
        compiler.command()
    script(tmp_path / "xcode-select", "echo /Library/Developer")
    assert compiler.command() == ("/usr/bin/cc",)


@pytest.mark.parametrize(
    "text, reason",
    [
        (f'{VERSION}\necho "In file x:" >&2; echo "k.c:1: error: no luck" >&2; exit 1', "k.c:1: error: no luck"),
        (f"{VERSION}\necho no luck >&2; exit 1", "no luck"),
        ("printf '\\377 odd \\n' >&2; exit 1", "� odd"),
        ("exit 0", "it ended without an error but made no library"),
        ("exit 3", "it ended with exit code 3"),
        (f"{VERSION}\nkill -9 $$", "signal 9 ended it"),
        (f'{VERSION}\nfor last; do :; done; : > "$last"', "it ended without an error but made no library"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails(text, reason, tmp_path):
    failing = script(tmp_path / "failing", text)
    with pytest.raises(compiler.Unusable) as error:
        made(failing)
    assert str(error.value) == f"its C sources could not be compiled with {failing}: {reason}"


def test_a_program_that_cannot_be_started(tmp_path):
    path = tmp_path / "program"
    path.write_bytes(b"\x7fELF of no machine")
    path.chmod(0o755)
    with pytest.raises(compiler.Unusable, match="program: it cannot be started: Exec format error"):
        made(str(path))


@pytest.mark.parametrize("text", ["", VERSION])
def test_a_compiler_that_hangs_is_stopped_with_all_it_started(text, monkeypatch, tmp_path):
    hanging = script(tmp_path / "hanging", f"{text}\nsleep 60 & echo $! > {tmp_path}/id; wait")
    monkeypatch.setattr(compiler, "TIMEOUT", 0.5)
    with pytest.raises(compiler.Unusable, match=r"hanging: it was not done after 0\.5 seconds"):
        made(hanging)
    child = Path(f"/proc/{(tmp_path / 'id').read_text().strip()}/stat")
    end = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.01)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_what_a_compiler_leaves_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    messy = script(tmp_path / "messy", f'{VERSION}\n: > "$TMPDIR/rest"; exit 1')
    with pytest.raises(compiler.Unusable):
        made(messy)
    assert [path.name for path in tmp_path.iterdir()] == ["messy"]


def test_the_key_is_for_one_compiler_processor_and_jax(monkeypatch, own):
    first = compiler.key(own)
    assert compiler.key(own) == first
    assert compiler.key((*own, "-O1")) != first
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_processor", lambda: "another one")
        assert compiler.key(own) != first
    monkeypatch.setattr(compiler.jax.lib, "__version__", "0.0")
    assert compiler.key(own) != first


def test_the_key_is_for_every_source(monkeypatch, tmp_path, own):
    sources = tmp_path / "sources"
    shutil.copytree(compiler.SOURCES, sources, ignore=shutil.ignore_patterns("*.py", ".*"))
    monkeypatch.setattr(compiler, "SOURCES", sources)
    paths = [path for path in sources.rglob("*") if path.is_file()]
    assert sources / "amx" / "tiles.h" in paths
    keys = {compiler.key(own)}
    for path in paths:
        path.write_text(path.read_text() + "\n")
        keys.add(compiler.key(own))
    assert len(keys) == 1 + len(paths)


def test_the_sources_compile_without_a_warning(own, monkeypatch):
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-Wall", "-Wextra", "-Werror"))
    assert made(*own).startswith(b"\x7fELF") or compiler.sys.platform != "linux"
