"""The Triton kernels on a GPU, held to the cases that all backends share.

Left out where there is no GPU. On one, `python kernels/benchmarks/gpu.py` runs them before it times
the kernels (its docstring says what it needs), or by hand, with
pip install -e ./kernels -e ".[gpu,test]":
python -m pytest -m gpu tests/kernels -o addopts="--strict-markers --import-mode=importlib"
They need neither Flax nor moe_jax, nor the settings of tests/conftest.py.
"""

import jax
import numpy as np
import pytest

from tests.kernels import moe_ffn_oracle
from tests.kernels.moe_ffn_cases import SMALL, MoeFfnCases, jitted, problem
from tests.kernels.ops_cases import OpsCases
from tests.kernels.triton_cases import NanRouteCases, WideTileCases

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact():
    """JAX's default product on GPUs is less exact than float32, which the limits assume."""
    with jax.default_matmul_precision("highest"):
        yield


class TestLayer(WideTileCases, MoeFfnCases):
    backend = "triton_gpu"

    def test_double_precision(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="has no float64: cast to"):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("t, d, f, e, k", [(300, 256, 384, 8, 2), (64, 1000, 136, 24, 6)])
    def test_several_tiles(self, dtype, t, d, f, e, k):
        args = problem(15, t=t, k=k, d=d, f=f, e=e, dtype=dtype)
        self.check(args, dtype=dtype)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_wide_tiles(self, dtype):
        self.check_wide_tiles(dtype)

    @pytest.mark.parametrize("precision, limit", [("default", 5e-3), ("high", 2e-5)])
    def test_precision_of_float32(self, precision, limit):
        args = problem(17, t=300, k=2, d=256, f=384, e=4)
        with jax.default_matmul_precision(precision):
            got = jitted(self.backend, "silu")(*args)
        for name, right in moe_ffn_oracle.moe_ffn("silu", *args).items():
            error = np.max(np.abs(np.asarray(got[name], np.float64) - right))
            assert error <= limit * np.max(np.abs(right)), name


class TestOps(NanRouteCases, OpsCases):
    backend = "triton_gpu"


def test_none_picks_the_kernels():
    x, expert, weight, params, _ = problem(0, dtype="bfloat16")
    from moe_kernels import moe_ffn, resolve_backend

    assert resolve_backend(None) == "triton_gpu"
    lowered = jax.jit(lambda x: moe_ffn(x, expert, weight, **params)).lower(x).as_text()
    assert lowered.count("@triton_kernel_call") == 3
