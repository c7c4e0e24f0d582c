"""Packages of versions that don't work together count as missing, and never break a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe_kernels import backends, gpu_packages

ROOT = Path(__file__).parents[2]
NEEDED = "needed is jax-triton>=0.4.1,<0.5 with triton>=3.6,<3.10 with jax>=0.11"


def put(folder, package, version, source="", brings=None):
    """A package of that version, as pip leaves it."""
    module = brings or package.replace("-", "_")
    (folder / module).mkdir(exist_ok=True)
    (folder / module / "__init__.py").write_text(source)
    notes = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (notes / "RECORD").write_text(f"{module}/__init__.py,,\n")
    (notes / "top_level.txt").write_text(f"{module}\n")


def forget():
    gpu_packages.missing.cache_clear()
    gpu_packages.installed.cache_clear()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that Python searches first; what is known of packages is forgotten."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("triton", "jax_triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(gpu_packages.jax, "__version__", "0.12.0")
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    "package, version, right",
    [
        ("triton", "3.5.1", False),
        ("triton", "3.6.0", True),
        ("triton", "3.6.0+git9844da95", True),
        ("triton", "3.9.0.post1", True),
        ("triton", "3.10.0", False),
        ("triton", "4", False),
        ("jax-triton", "0.3.1", False),
        ("jax-triton", "0.4.0", False),
        ("jax-triton", "0.4.1", True),
        ("jax-triton", "0.4.12", True),
        ("jax-triton", "0.5.0", False),
        ("jax", "0.10.2", False),
        ("jax", "0.11.0.dev20260701", True),
        ("jax", "0.12.0.1", True),
        ("triton", gpu_packages.UNKNOWN, False),
        ("triton", "main", False),
    ],
)
def test_versions_that_fit(package, version, right):
    assert gpu_packages.fits(package, version) == right


def test_the_ranges_are_those_that_the_extra_installs():
    import tomllib

    for folder, extra in (("kernels", "gpu"), (".", "triton")):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        wanted = " ".join(project["optional-dependencies"][extra])
        assert "jax-triton>=0.4.1,<0.5;" in wanted
        assert "triton>=3.6,<3.10;" in wanted


@pytest.mark.parametrize(
    "triton, jax_triton, jax",
    [("3.9.0", "0.3.1", "0.12.0"), ("3.5.1", "0.4.1", "0.12.0"), ("3.6.0", "0.4.1", "0.10.2")],
)
def test_an_unfit_pair_is_missing_and_named(site, monkeypatch, triton, jax_triton, jax):
    monkeypatch.setattr(gpu_packages.jax, "__version__", jax)
    broken = "raise AssertionError('imported')"
    put(site, "triton", triton, broken)
    put(site, "jax-triton", jax_triton, broken)
    reason = gpu_packages.missing()
    assert f"jax-triton {jax_triton}, triton {triton}, jax {jax} do not fit; {NEEDED}; " in reason
    assert "AssertionError" not in reason
    with pytest.raises(ValueError, match="backend='triton_gpu' cannot be used here: the packages"):
        backends.resolve_backend("triton_gpu")


def test_a_build_of_triton_of_another_name_is_found(site, monkeypatch):
    elsewhere = [folder for folder in sys.path if "site-packages" not in folder]
    monkeypatch.setattr(sys, "path", elsewhere)
    put(site, "pytorch-triton", "3.5.0+git7", brings="triton")
    put(site, "jax-triton", "0.4.1")
    assert gpu_packages.version("triton") == "3.5.0+git7"
    assert "triton 3.5.0+git7, jax 0.12.0 do not fit" in gpu_packages.missing()
    (site / "pytorch_triton-3.5.0+git7.dist-info" / "METADATA").unlink()
    assert gpu_packages.version("triton") == gpu_packages.UNKNOWN


@pytest.mark.parametrize("missing", ["triton", "jax_triton"])
def test_a_missing_one_is_named_and_a_bare_folder_is_none(site, monkeypatch, missing):
    monkeypatch.setattr(sys, "path", [str(site)])
    monkeypatch.setattr(gpu_packages.importlib.util, "find_spec", only(site, missing))
    assert gpu_packages.missing() == f"the package {missing} is missing; {gpu_packages.INSTALL}"


def only(site, missing):
    """`find_spec` of a folder that has packages, and one folder without an __init__."""
    from importlib.machinery import PathFinder

    for module in ("triton", "jax_triton"):
        (site / module).mkdir()
        if module != missing:
            (site / module / "__init__.py").write_text("")
    return lambda module: PathFinder.find_spec(module, [str(site)])


def test_damaged_notes_are_an_unknown_version(site):
    put(site, "triton", "3.6.0")
    put(site, "jax-triton", "0.4.1")
    (site / "triton-3.6.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe")
    assert gpu_packages.version("triton") == gpu_packages.UNKNOWN
    assert f"triton {gpu_packages.UNKNOWN}" in gpu_packages.missing()


PROGRAM = """
import sys, types, warnings
import jax, jax.numpy as jnp
jax.__version__ = "0.12.0"
from moe_kernels import moe_ffn, resolve_backend
args = (jnp.ones((4, 2)), jnp.zeros((4, 1), int), jnp.ones((4, 1)), jnp.ones((2, 2, 3)), jnp.ones((2, 3, 2)))
with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert float(jax.jit(moe_ffn)(*args)[0, 0]) > 0
try:
    resolve_backend("triton_gpu")
except ValueError as error:
    print(error)
jax.default_backend = lambda: "gpu"
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    print([resolve_backend(None), resolve_backend(None, "bfloat16")])
    jax.make_jaxpr(moe_ffn)(*args)
print(*(f"{w.category.__name__}: {w.message}" for w in found), sep="\\n")
"""


@pytest.mark.parametrize(
    "versions, source, reason",
    [
        (
            ("3.9.0", "0.3.1"),
            "raise AssertionError('imported')",
            "do not fit; needed is jax-triton",
        ),
        (("3.9.0", "0.4.1"), "import no_such_part", "cannot be imported: ModuleNotFoundError: No"),
    ],
)
def test_a_cpu_program_runs_silently_and_a_gpu_is_told_once(tmp_path, versions, source, reason):
    put(tmp_path, "triton", versions[0], source)
    put(tmp_path, "jax-triton", versions[1], source)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "kernels")])
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named, picked, *warned = done.stdout.splitlines()
    start = f"the packages jax-triton {versions[1]}, triton {versions[0]}, jax 0.12.0 "
    assert named.startswith(f"backend='triton_gpu' cannot be used here: {start}{reason}")
    assert picked == "['xla', 'xla']"
    text = "RuntimeWarning: moe_kernels is slower than it could be on this GPU: "
    assert len(warned) == 1
    assert warned[0].startswith(text + start + reason)


def test_amd_is_not_picked(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(gpu_packages, "missing", lambda: None)
    monkeypatch.setattr(backends.jax, "default_backend", lambda: "gpu")
    for platform, want in (("rocm 70000", "xla"), ("cuda 13000", "triton_gpu")):
        client = SimpleNamespace(platform_version=f"PJRT C API\n{platform}")
        monkeypatch.setattr(
            backends.jax, "devices", lambda client=client: [SimpleNamespace(client=client)]
        )
        assert backends.resolve_backend(None) == want
    assert "rocm" not in backends.RUNS_ON["triton_gpu"]
