"""A whole layer with its gradients is lowered for CUDA on a machine without a GPU.

Part of `make triton`, where jax_triton and JAX's CUDA plugin can be had (Python 3.12 and later).
"""

import importlib
import importlib.util
import os
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import moe_kernels
import pytest
from moe_kernels import moe_ffn

from tests.kernels.moe_ffn_cases import problem

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


def lowered(backend, platform, t=64, dtype="bfloat16"):
    x, expert, weight, params, _ = problem(0, t=t, d=32, f=48, dtype=dtype)

    def loss(x, weight, params):
        y = moe_ffn(x, expert, weight, **params, backend=backend)
        return jnp.sum(y.astype(jnp.float32))

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(x, weight, params)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("backend", ["triton_gpu", None])
def test_the_program_for_cuda_holds_the_kernels(backend):
    # up, down, combine; hidden_grad, dx, combine, three weight gradients, three bias gradients.
    assert lowered(backend, "cuda").count("@triton_kernel_call") == 12


def compiled_kernels():
    """Kernel -> what jax_triton keeps of it, one entry for each compilation."""
    rooms = ("grouped_matmul", "hidden_grad", "sums", "topk_route", "up", "weight_grad")
    modules = [importlib.import_module(f"moe_kernels.triton_gpu.{room}") for room in rooms]
    own = {n: k for m in modules for n, k in vars(m).items() if hasattr(k, "_jT_kernel_cache")}
    return {name: dict(kernel._jT_kernel_cache) for name, kernel in own.items()}


def test_another_number_of_tokens_compiles_nothing():
    lowered("triton_gpu", "cuda", t=64)
    before = compiled_kernels()
    assert {"_up", "_grouped_matmul", "_hidden_grad", "_weight_grad", "_combine"} <= set(before)
    for t in (48, 63, 65, 70):
        lowered("triton_gpu", "cuda", t=t)
    after = compiled_kernels()
    assert {n: len(c) for n, c in after.items()} == {n: len(c) for n, c in before.items()}


def test_another_number_of_tokens_is_routed_by_the_same_kernel():
    def route(t):
        def call(logits):
            return moe_kernels.topk_route(logits, 2, backend="triton_gpu")

        jax.jit(call).trace(jnp.zeros((t, 8))).lower(lowering_platforms=("cuda",))
        return len(compiled_kernels()["_topk_route"])

    assert [route(t) for t in (512, 513, 640, 7, 8000)] == [1] * 5
    assert route(1) == 2  # the one number that Triton treats as a constant


def test_every_precision_of_float32_is_compiled():
    def call(x, w):
        return moe_kernels.grouped_gemm(x, w, jnp.asarray([0, 8, 16]), backend="triton_gpu")

    found = []
    for setting in (None, "high", "highest"):
        with jax.default_matmul_precision(setting):
            traced = jax.jit(call).trace(jnp.zeros((16, 32)), jnp.zeros((2, 32, 16)))
        traced.lower(lowering_platforms=("cuda",))
        found.append(str(list(compiled_kernels()["_grouped_matmul"])[-1]))
    for text, precision in zip(found, ("tf32", "tf32x3", "ieee"), strict=True):
        assert f"('PRECISION', '{precision}')" in text


def test_a_triton_that_jax_triton_takes_for_one_without_nvidia_is_mended(monkeypatch):
    """What the import of jax_triton 0.4.1 leaves with Triton 3.6."""
    from jax_triton import triton_lib
    from triton.backends.nvidia import compiler, driver

    right = triton_lib._TMA_DTYPE_DEVICE_TO_HOST, triton_lib._TMA_TF32
    stub = SimpleNamespace(CUDAOptions=object, CUDABackend=object, GPUTarget=object)
    monkeypatch.setattr(triton_lib, "cb", stub)
    monkeypatch.setattr(triton_lib, "_TMA_DTYPE_DEVICE_TO_HOST", {})
    monkeypatch.setattr(triton_lib, "_TMA_TF32", 0)
    # Another size than before, or JAX would remember the program.
    assert lowered("triton_gpu", "cuda", t=49).count("@triton_kernel_call") == 12
    assert triton_lib.cb is compiler
    assert right == (triton_lib._TMA_DTYPE_DEVICE_TO_HOST, triton_lib._TMA_TF32)
    assert right[0] is driver.TMA_DTYPE_DEVICE_TO_HOST


def test_a_triton_without_nvidia_is_missing(monkeypatch):
    from jax_triton import triton_lib
    from moe_kernels import gpu_packages
    from triton.backends import nvidia

    monkeypatch.setattr(triton_lib, "cb", SimpleNamespace())
    monkeypatch.delattr(nvidia, "compiler")
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.compiler", None)
    reason = gpu_packages.missing.__wrapped__()
    assert "cannot be imported: ModuleNotFoundError: import of triton.backends.nvidia" in reason


def test_without_tokens_the_program_holds_no_kernel():
    def call(logits):
        kernels = importlib.import_module("moe_kernels.triton_gpu")
        return kernels.topk_route(logits, 2, scores="softmax")

    program = jax.jit(call).trace(jnp.zeros((0, 8))).lower(lowering_platforms=("cuda",))
    assert "triton" not in program.as_text()


def test_the_program_for_cpu_holds_none_of_them():
    assert "triton" not in lowered(None, "cpu")


def test_named_for_cpu_it_is_refused():
    with pytest.raises(ValueError, match="'triton_gpu' runs on cuda, but this program is"):
        lowered("triton_gpu", "cpu")
