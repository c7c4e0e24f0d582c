"""From the cache, or from the compiler, to the kernels: whatever the cache holds."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from moe_kernels.c_cpu import building, compiler, folders
from moe_kernels.c_cpu.library import KERNELS

from tests.kernels.test_c_folders import NOBODY, needs_root


@pytest.fixture(scope="module")
def library() -> bytes:
    return compiler.compiled(compiler.command(), folders.temporary(None))


@pytest.fixture
def compiled(library, monkeypatch) -> list[float]:
    """When the sources were compiled; what that gave is at hand, so that it takes no time."""
    times: list[float] = []

    def at_once(command, parents):
        times.append(time.monotonic())
        time.sleep(0.02)
        return library

    monkeypatch.setattr(compiler, "compiled", at_once)
    return times


@pytest.fixture
def cache(home, monkeypatch) -> Path:
    folder = home / "cache"
    monkeypatch.setenv(building.CACHE, str(folder))
    return folder


def made(*sources: str, flags: tuple[str, ...] = ()) -> bytes:
    """A library of these C sources."""
    with folders.private(Path("/tmp")) as folder:
        (folder / "source.c").write_text("\n".join(sources))
        command = (*compiler.command(), "-shared", "-fPIC", *flags, "source.c", "-o", "made.so")
        subprocess.run(command, cwd=folder, check=True)
        return (folder / "made.so").read_bytes()


def key_path(cache: Path) -> Path:
    return cache / f"{compiler.key(compiler.command())}.so"


def test_it_is_compiled_once_and_kept(cache, compiled):
    handlers, notice = building.handlers(KERNELS)
    assert set(handlers) == set(KERNELS)
    assert notice is None
    assert building.handlers(KERNELS)[1] is None
    assert len(compiled) == 1
    assert list(cache.iterdir()) == [key_path(cache)]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_it_is_compiled_once_by_many_at_once(cache, compiled):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(building.handlers(KERNELS))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [notice for _, notice in found] == [None] * 4
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[: len(c) // 2],
        lambda c: c[:5000] + bytes([c[5000] ^ 255]) + c[5001:],
        lambda c: b"\0" * len(c),
    ],
)
def test_a_damaged_file_is_compiled_again(damage, cache, compiled):
    building.handlers(KERNELS)
    path = key_path(cache)
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert building.handlers(KERNELS)[1] is None
    assert len(compiled) == 2


@pytest.mark.parametrize("kind", ["no library", "without a kernel", "unresolved"])
def test_a_whole_file_that_does_not_fit_is_compiled_again(kind, cache, compiled):
    source = {
        "no library": None,
        "without a kernel": "int moe_plan(void) { return 0; }",
        "unresolved": "int no_such_function(void); int moe_plan(void) { return no_such_function(); }",
    }[kind]
    cache.mkdir(mode=0o700)
    content = made(source, flags=("-Wl,-z,now",)) if source else b"no library" * 100
    folders.keep(key_path(cache), content)
    for _ in range(2):
        handlers, notice = building.handlers(KERNELS)
        assert set(handlers) == set(KERNELS)
        assert notice is None
    assert len(compiled) == 1


@pytest.fixture
def evil(tmp_path):
    """A library that leaves a mark when it is loaded, and the mark's path."""
    mark = tmp_path / "mark"
    source = (
        "#include <stdio.h>",
        f'__attribute__((constructor)) static void run(void) {{ fopen("{mark}", "w"); }}',
        *(f"int {name}(void) {{ return 0; }}" for name in KERNELS),
    )
    return made(*source), mark


def test_what_marks_its_loading_does_so_from_a_safe_folder(evil, cache, compiled):
    cache.mkdir(mode=0o700)
    folders.keep(key_path(cache), evil[0])
    building.handlers(KERNELS)
    assert evil[1].exists()
    assert not compiled


@pytest.mark.parametrize("mode", [0o777, 0o1777, pytest.param(0o775, marks=needs_root)])
@pytest.mark.parametrize("owner", [None, pytest.param(NOBODY, marks=needs_root)])
def test_code_of_others_in_a_shared_folder_never_runs(mode, owner, evil, cache, compiled):
    cache.mkdir()
    folders.keep(key_path(cache), evil[0])
    if owner:
        os.chown(key_path(cache), owner, owner)
    cache.chmod(mode)
    before = sorted(cache.iterdir())
    handlers, notice = building.handlers(KERNELS)
    assert not evil[1].exists()
    assert set(handlers) == set(KERNELS)
    assert len(compiled) == 1
    assert notice == (
        "the C kernels are compiled again in each process, which takes some seconds, as they cannot "
        f"be kept in {cache}: {cache} can be changed by other users. The environment variable "
        f"{building.CACHE} names another folder"
    )
    assert sorted(cache.iterdir()) == before


@needs_root
def test_code_in_a_folder_of_another_user_never_runs(evil, cache, compiled):
    cache.mkdir(mode=0o755)
    folders.keep(key_path(cache), evil[0])
    os.chown(cache, NOBODY, NOBODY)
    assert f"cannot be kept in {cache}: {cache} belongs to user {NOBODY}." in str(
        building.handlers(KERNELS)[1]
    )
    assert not evil[1].exists()


@pytest.mark.parametrize("kind", ["mode", "link", pytest.param("owner", marks=needs_root)])
def test_a_file_of_others_is_replaced_and_a_notice_tells_it(kind, evil, cache, compiled, tmp_path):
    cache.mkdir(mode=0o700)
    path = key_path(cache)
    folders.keep(path, evil[0])
    if kind == "mode":
        path.chmod(0o664)
    elif kind == "owner":
        os.chown(path, NOBODY, NOBODY)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    what = {"mode": "can be changed by other users", "link": "is a link"}
    want = (
        f"{path} {what.get(kind, f'belongs to user {NOBODY}')}: it was not used but compiled again"
    )
    assert building.handlers(KERNELS)[1] == want
    assert not evil[1].exists()
    assert building.handlers(KERNELS)[1] is None
    assert len(compiled) == 1


def test_without_a_home_they_are_not_kept(compiled, monkeypatch):
    for name in (building.CACHE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def none(uid):
        raise KeyError(uid)

    monkeypatch.setattr(folders.pwd, "getpwuid", none)
    handlers, notice = building.handlers(KERNELS)
    assert set(handlers) == set(KERNELS)
    assert "cannot be kept between processes: no home folder is known. The environment" in notice


@pytest.mark.parametrize(
    "named, code",
    [
        ("/proc/folder", errno.ENOENT),
        ("/dev/null/folder", errno.ENOTDIR),
        ("/dev/null", errno.ENOTDIR),
        ("/tmp/" + "x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_apart_from_a_failed_compiler(
    named, code, compiled, monkeypatch
):
    monkeypatch.setenv(building.CACHE, named)
    handlers, notice = building.handlers(KERNELS)
    assert set(handlers) == set(KERNELS)
    assert f"cannot be kept in {named}: {os.strerror(code)}. The environment" in notice


def test_a_write_that_fails_costs_a_compilation(cache, compiled):
    building.handlers(KERNELS)
    key_path(cache).unlink()
    key_path(cache).mkdir()
    _, notice = building.handlers(KERNELS)
    assert f"cannot be kept in {cache}: Is a directory. The environment" in notice
    assert list(cache.iterdir()) == [key_path(cache)]


def test_where_memory_cannot_be_loaded_from_a_private_file_is(cache, compiled, monkeypatch):
    def refused(name, flags):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(building.os, "memfd_create", refused, raising=False)
    for _ in range(2):
        handlers, notice = building.handlers(KERNELS)
        assert set(handlers) == set(KERNELS)
        assert notice is None
    assert len(compiled) == 1
    assert list(cache.iterdir()) == [key_path(cache)]


def test_a_library_that_loads_nowhere_is_told_apart_from_a_failed_compiler(cache, monkeypatch):
    monkeypatch.setattr(compiler, "compiled", lambda command, parents: b"no library" * 100)
    with pytest.raises(
        building.Unusable, match=r"^its C kernels were compiled with .*, but cannot be"
    ):
        building.handlers(KERNELS)


MOUNTS = """
import errno, json, os, sys
from moe_kernels.c_cpu import building, compiler, folders
from moe_kernels.c_cpu.library import KERNELS
library = open(sys.argv[1], "rb").read()
compiler.compiled = lambda command, parents: library
said = {}
for name in sys.argv[2:]:
    os.environ[building.CACHE] = name
    said[name] = building.handlers(KERNELS)[1]
folders.temporary = lambda folder: [folder]
def refused(*_):
    raise OSError(errno.EACCES, "refused")
os.memfd_create = refused
try:
    building.handlers(KERNELS)
except building.Unusable as error:
    said["unusable"] = str(error)
print(json.dumps(said))
"""


@needs_root
def test_file_systems_read_only_full_and_without_programs(library, tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare here")
    (tmp_path / "library").write_bytes(library)
    options = {"read_only": "ro", "full": "size=8k", "no_programs": "noexec"}
    mounts = [f"mkdir {n} && mount -t tmpfs -o mode=700,{o} none {n}" for n, o in options.items()]
    paths = [str(tmp_path / name) for name in options]
    allowed = subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    if not allowed:
        pytest.skip("this machine lets root mount nothing")
    run = " && ".join([*mounts, 'exec "$@"'])
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", run, "sh", sys.executable, "-c", MOUNTS]
        + [str(tmp_path / "library"), *paths],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert f"cannot be kept in {paths[0]}: Read-only file system." in said[paths[0]]
    assert f"cannot be kept in {paths[1]}: No space left on device." in said[paths[1]]
    assert said[paths[2]] is None
    assert "but cannot be loaded: " in said["unusable"]
    assert "failed to map segment" in said["unusable"]


@pytest.mark.parametrize(
    "variables, want",
    [
        ({building.CACHE: "/a"}, "/a"),
        ({building.CACHE: "~/a", "HOME": "/home"}, "/home/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/moe_kernels"),
        ({"HOME": "/c"}, "/c/.cache/moe_kernels"),
    ],
)
def test_the_folder_that_they_are_kept_in(variables, want, monkeypatch):
    for name in (building.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert building.cache_folder() == Path(want)
