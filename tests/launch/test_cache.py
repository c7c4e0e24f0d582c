"""Compiled programs on disk: kept, found again, and never in a folder that others can change."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from launch import _cache as cache

ROOT = Path(__file__).resolve().parents[2]

# A layer of the C kernels (where there is a compiler), and how often a program was found on disk.
PROGRAM = """
import json
from launch import _cache
_cache.keep_programs()
import jax, jax.numpy as jnp
import moe_kernels
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.rsplit("/")[-1]))
x, w = jnp.linspace(-1, 1, 4 * 8).reshape(4, 8), jnp.linspace(-1, 1, 2 * 8 * 16).reshape(2, 8, 16)
layer = jax.jit(lambda x, w: moe_kernels.moe_ffn(
    x, jnp.array([[0], [1], [1], [0]]), jnp.ones((4, 1)), w, w.transpose(0, 2, 1), activation="relu"))
y = layer(x, w)
print(json.dumps({"y": y.tolist(), "program": layer.lower(x, w).as_text(),
    **{name: hits.count(name) for name in ("cache_hits", "cache_misses")}}))
"""


def process(program, **environment):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    mine = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
    mine |= {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"} | environment
    # jax_triton, where it is installed, makes a folder when it is imported.
    quiet = ["-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning"]
    command = [sys.executable, *quiet, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=mine, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_next_process_finds_the_programs_also_those_with_c_kernels(tmp_path):
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe_kernels"
    kernels = os.environ.get("MOE_KERNELS_CACHE") or str(home)
    folders = {"XDG_CACHE_HOME": str(tmp_path), "MOE_KERNELS_CACHE": kernels}
    first, second = (json.loads(process(PROGRAM, **folders)) for _ in range(2))
    assert second["y"] == first["y"]
    assert first["cache_hits"] == 0 < first["cache_misses"]
    assert second["cache_misses"] == 0 < second["cache_hits"]
    if cache_has_c_kernels():
        assert "custom_call" in first["program"]
    (folder,) = (tmp_path / "moe_jax").iterdir()
    assert folder.name.startswith("programs-")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("*-cache"))) == first["cache_misses"]


def cache_has_c_kernels():
    import moe_kernels

    return moe_kernels.resolve_backend(None) == "c_cpu"


@pytest.fixture
def updated(monkeypatch, tmp_path):
    """What of JAX's settings is changed; the cache's folder is below tmp_path."""
    seen = {}
    monkeypatch.setattr(jax.config, "update", seen.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


def test_a_folder_for_each_kind_of_processor(updated, monkeypatch, tmp_path):
    cache.keep_programs()
    first = updated["jax_compilation_cache_dir"]
    assert Path(first).parent == tmp_path / "cache" / "moe_jax"
    assert updated["jax_persistent_cache_min_compile_time_secs"] == 0.0
    cache.keep_programs()
    assert updated["jax_compilation_cache_dir"] == first
    monkeypatch.setattr(cache.platform, "machine", lambda: "another")
    cache.keep_programs()
    assert updated["jax_compilation_cache_dir"] != first


@pytest.mark.parametrize(
    "name, value",
    [
        ("JAX_COMPILATION_CACHE_DIR", "/mine"),
        ("JAX_COMPILATION_CACHE_DIR", ""),
        ("JAX_ENABLE_COMPILATION_CACHE", "false"),
        ("JAX_ENABLE_COMPILATION_CACHE", "0"),
    ],
)
def test_what_the_user_says_counts(updated, monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    cache.keep_programs()
    assert updated == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["", "relative/folder"])
def test_the_users_home_where_no_folder_is_named(updated, monkeypatch, tmp_path, root):
    monkeypatch.setenv("XDG_CACHE_HOME", root)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    cache.keep_programs()
    assert updated["jax_compilation_cache_dir"].startswith(str(tmp_path / "me/.cache/moe_jax/"))


def test_a_folder_that_others_can_change_is_not_used(updated, tmp_path):
    folder = tmp_path / "cache" / "moe_jax"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="programs can't be kept: .*can be changed by other users"):
        cache.keep_programs()
    assert updated == {}


def test_a_folder_that_cannot_be_made_is_no_error(updated, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="compiled programs can't be kept: .*Not a directory"):
        cache.keep_programs()
    assert updated == {}


def test_a_full_disk_is_no_error(updated, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    with pytest.warns(UserWarning, match="compiled programs can't be kept: .*No space left"):
        cache.keep_programs()
    assert updated == {}


def test_old_programs_make_room(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}-cache").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{i}-cache", (1000 + i, 1000 + i))
    (tmp_path / "folder").mkdir()
    cache._make_room(tmp_path, 600)
    assert len(list(tmp_path.glob("*-cache"))) == 6
    cache._make_room(tmp_path, 599)
    assert sorted(p.name for p in tmp_path.glob("*-cache")) == ["4-cache", "5-cache"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache._make_room(tmp_path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
