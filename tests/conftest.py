"""Shared settings of the tests: strict ranks, tree-mode Flax, few threads, no time limits.

Most of the tests' time is XLA's, which compiles thousands of programs that run once or twice: it
is told not to optimise, and to write LLVM's code itself instead of by way of MLIR (the fusion
emitters, which jaxlib 0.10 can still do without), unless XLA_FLAGS is set. `XLA_FLAGS= make test`
runs what users run.
"""

import importlib.metadata
import os

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax
import pytest
from flax import nnx

# A test must not fail because its machine is busy.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")
jax.config.update("jax_numpy_rank_promotion", "raise")
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


def pytest_configure(config):
    """Eight devices for the tests of meshes: `-m mesh`."""
    if "mesh" in (config.option.markexpr or ""):
        jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(config, items):
    """Leave out what needs packages or devices of its own, unless asked for: `-m parity`."""
    needs = ("parity", "triton", "gpu", "mesh", "sanitize")
    apart = [m for m in needs if m not in (config.option.markexpr or "")]
    chosen, left_out = [], []
    for item in items:
        (left_out if any(map(item.get_closest_marker, apart)) else chosen).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """A worker of many files would come near the number of compiled programs that it may hold."""
    yield
    # Here, so that no module is read before jaxtyping's hook is in place.
    from moe_jax.models import free_programs

    free_programs()


@pytest.fixture
def key():
    """A PRNG key that is the same in every test."""
    return jax.random.key(0)
