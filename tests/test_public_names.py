"""What the packages offer by name: all of it is there, and no part needs the packages of another."""

import ast
import importlib
import pathlib
import subprocess
import sys

import lazy_loader
import pytest

import moe_jax

PACKAGES = (
    *("moe_jax", "moe_jax.common", "moe_jax.data", "moe_jax.gating", "moe_jax.layers"),
    *("moe_jax.misrouting", "moe_jax.models", "moe_jax.rationale", "moe_jax.reports"),
    "moe_jax.training",
)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there(name):
    package = importlib.import_module(name)
    assert package.__all__
    for public in package.__all__:
        assert getattr(package, public) is not None
    assert set(package.__all__) <= set(dir(package))


def test_every_package_has_public_names():
    root = pathlib.Path(moe_jax.__file__).parent
    folders = {f"moe_jax.{path.parent.name}" for path in root.glob("*/__init__.py")}
    assert folders == set(PACKAGES) - {"moe_jax"}


def test_the_root_and_its_types_name_the_same():
    _, _, names = lazy_loader.attach_stub("moe_jax", moe_jax.__file__)
    assert sorted(names) == sorted(moe_jax.__all__)


@pytest.mark.parametrize("name", ["training.run", "models.generate", "misrouting.usage"])
def test_a_function_is_not_hidden_by_the_file_of_its_name(name):
    package, function = name.split(".")
    importlib.import_module(f"moe_jax.{name}")
    assert callable(getattr(importlib.import_module(f"moe_jax.{package}"), function))


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="mixture"):
        _ = moe_jax.mixture
    with pytest.raises(ImportError, match="mixture"):
        exec("from moe_jax.models import mixture")


def test_the_core_loads_nothing_that_an_extra_brings():
    extras = ("absl", "gguf", "grain", "jinja2", "matplotlib", "ml_collections", "optax", "orbax")
    extras += ("rich", "safetensors", "sklearn", "tokenizers", "transformers")
    code = (
        "import sys, moe_jax\n"
        "assert 'jax' not in sys.modules\n"
        "moe_jax.MoE, moe_jax.route, moe_jax.losses.router_z\n"
        "import moe_jax.models, moe_jax.training, moe_jax.reports, moe_jax.misrouting\n"
        # Flax itself loads some of them.
        "before = set(sys.modules)\n"
        "import flax.nnx\n"
        f"print([name for name in {extras!r} if name in before])\n"
    )
    alone = f"import sys, flax.nnx\nprint([name for name in {extras!r} if name in sys.modules])"
    given, flax = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
        for text in (code, alone)
    )
    assert set(ast.literal_eval(given.stdout)) <= set(ast.literal_eval(flax.stdout))
