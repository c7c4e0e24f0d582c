"""A whole layer with its gradients is lowered for CUDA on a machine without a GPU.

Part of `make triton`, where jax_triton and JAX's CUDA plugin can be had (Python 3.12 and later).
"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest
from moe_ffn_cases import problem
from moe_kernels import moe_ffn

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for p in ("jax_triton", "jax_cuda13_plugin")),
        reason="needs jax_triton and jax_cuda13_plugin, which are for Python 3.12 and later",
    ),
]


@pytest.fixture(autouse=True)
def compiled():
    """Kernels of this file are for the compiler; where they are for the interpreter, see below."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("run without TRITON_INTERPRET, as `make triton` does in a second step")


def lowered(backend, platform):
    x, expert, weight, params, _ = problem(0, t=64, d=32, f=48, dtype="bfloat16")

    def loss(x, weight, params):
        y = moe_ffn(x, expert, weight, **params, backend=backend)
        return jnp.sum(y.astype(jnp.float32))

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(x, weight, params)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("backend", ["triton_gpu", None])
def test_the_program_for_cuda_holds_the_kernels(backend):
    # up, down, combine; hidden_grad, dx, combine, three weight gradients, three bias gradients.
    assert lowered(backend, "cuda").count("@triton_kernel_call") == 12


def test_the_program_for_cpu_holds_none_of_them():
    assert "triton" not in lowered(None, "cpu")


def test_named_for_cpu_it_is_refused():
    with pytest.raises(ValueError, match="'triton_gpu' runs on cuda and rocm, but this program is"):
        lowered("triton_gpu", "cpu")
