"""The two wheels: what they carry and need, and that they work where there is no checkout."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.models import small_encoders

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "a b c a b g h i g", "h i h b c a c", "d e d f d", "g i g h b"


def build(folder, to):
    """The wheel of the project in the folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(to)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = to.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return build(ROOT / "kernels", tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def moe_jax(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("moe_jax"))


@pytest.fixture(scope="module")
def site(tmp_path_factory, kernels, moe_jax):
    """A folder with the two wheels, unpacked."""
    folder = tmp_path_factory.mktemp("site")
    for wheel in (kernels, moe_jax):
        wheel.extractall(folder)
    return folder


def contents(wheel):
    """The names of its files, those of its metadata left out."""
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def in_tree(package):
    """The files of a package in the checkout, as a wheel names them."""
    paths = (p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(package.parent).as_posix() for p in paths if p.name[0] != "."}


def about(wheel, name):
    """A file of its metadata, as text."""
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def metadata(wheel):
    return email.message_from_string(about(wheel, "METADATA"))


def needs(wheel, extra=None):
    """Package -> requirement, of those without an extra, or of those of one."""
    every = [Requirement(text) for text in metadata(wheel).get_all("Requires-Dist")]
    named = {r: re.findall(r'extra == "(\w+)"', str(r.marker)) for r in every}
    return {r.name: r for r, extras in named.items() if extras == ([extra] if extra else [])}


def test_the_kernels_wheel_is_the_package_and_nothing_else(kernels):
    names = contents(kernels)
    assert names == in_tree(ROOT / "kernels" / "moe_kernels")
    assert {"moe_kernels/py.typed", "moe_kernels/c_cpu/kernels.c"} <= names
    assert "moe_kernels/c_cpu/amx/tiles.h" in names
    assert {Path(name).suffix for name in names} == {".py", ".c", ".h", ".typed"}


def test_the_wheel_of_moe_jax_is_the_package_without_kernels(moe_jax):
    names = contents(moe_jax)
    assert names == in_tree(ROOT / "moe_jax")
    assert {"moe_jax/py.typed", "moe_jax/reports/templates/page.html"} <= names


def test_both_wheels_carry_the_licence(kernels, moe_jax):
    for wheel in (kernels, moe_jax):
        assert metadata(wheel)["License-Expression"] == "Apache-2.0"
        assert about(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_the_kernels_need_jax_jaxtyping_and_numpy_only(kernels, moe_jax):
    own, theirs = needs(kernels), needs(moe_jax)
    assert set(own) == {"jax", "jaxtyping", "numpy"}
    assert {name: theirs[name] for name in own} == own
    assert set(needs(kernels, "gpu")) == {"jax", "jax-triton", "triton"}
    assert metadata(kernels)["Requires-Python"] == metadata(moe_jax)["Requires-Python"]


def test_moe_jax_needs_these_kernels(kernels, moe_jax):
    name, version = metadata(kernels)["Name"], metadata(kernels)["Version"]
    assert str(needs(moe_jax)[name]) == f"{name}=={version}"
    assert metadata(moe_jax)["Version"] == version
    assert needs(moe_jax, "gpu")[name].extras == {"gpu"}


def example(readme, index=0):
    """A Python example of a README."""
    return re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)[index]


def outside(site, folder, code):
    """What the code prints with the wheels and the installed packages, but no checkout."""
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(site), *installed)),
        "MOE_KERNELS_CACHE": str(folder / "cache"),
    }
    check = (
        "import importlib.util as util\n"
        f"for name in ('moe_jax', 'moe_kernels'):\n"
        f"    assert util.find_spec(name).origin.startswith({str(site)!r})\n"
        "assert util.find_spec('configs') is None\n"
    )
    # -S: an installed checkout is on no path; -P: nor is the folder that this runs in.
    command = [sys.executable, "-S", "-P", "-c", check + code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernels_readme_runs_outside_a_checkout(site, tmp_path):
    readme = ROOT / "kernels" / "README.md"
    code = example(readme) + example(readme, 1)
    code += """
import numpy as np
print(y.shape, z.shape)
for backend in ("c_cpu", "xla"):
    again = moe_ffn(x, expert, weight, w_in, w_out, w_gate=w_gate, backend=backend)
    want = moe_ffn(x, expert, weight, w_in, w_out, w_gate=w_gate, backend="reference")
    np.testing.assert_allclose(again, want, rtol=1e-4, atol=1e-4)
"""
    assert outside(site, tmp_path, code).splitlines() == ["(6, 16) (4, 16)"]
    assert list((tmp_path / "cache").glob("*.so"))


def test_the_first_example_runs_outside_a_checkout(site, tmp_path):
    """With a small encoder, few texts and two steps, as the example says how to set them."""
    encoder = small_encoders.write(tmp_path / "encoder", small_encoders.CONFIGS["bert"])
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in LETTERS * 4))
    code = example(ROOT / "README.md")
    settings = {
        "data.path": str(texts),
        "context.encoder": str(encoder),
        "context.windows": (4,),
        "context.max_tokens": 20,
        "model.num_factors": 2,
        "batch_size": 4,
        "train.steps": 2,
    }
    assert code.count("\ntask = ") == 1
    before, task, after = code.partition("\ntask = ")
    lines = (f"\nconfig.{name} = {value!r}" for name, value in settings.items())
    shown = outside(site, tmp_path, "".join((before, *lines, task, after)))
    words = [line.split() for line in shown.splitlines()]
    assert [word for word, _, _ in words] == ["A", "lock", "guards", "the", "queue", "."]
    assert all(factor in "01" and 0.5 <= float(prob) <= 1 for _, factor, prob in words)
    assert (tmp_path / "runs" / "python" / "metrics.jsonl").is_file()
