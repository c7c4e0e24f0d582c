"""The Triton kernels on a GPU, held to the cases that all backends share.

Left out where there is no GPU. On one: pip install -e ".[gpu,test]", then
python -m pytest -m gpu tests/kernels -o addopts="--strict-markers --import-mode=importlib"
"""

import jax
import pytest
from moe_ffn_cases import SMALL, MoeFfnCases, problem
from ops_cases import OpsCases

pytestmark = pytest.mark.gpu


class TestLayer(MoeFfnCases):
    backend = "triton_gpu"

    def test_double_precision(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="has no float64: cast to"):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("t, d, f, e, k", [(300, 256, 384, 8, 2), (64, 1000, 136, 24, 6)])
    def test_several_tiles(self, dtype, t, d, f, e, k):
        args = problem(15, t=t, k=k, d=d, f=f, e=e, dtype=dtype)
        self.check(args, dtype=dtype)


class TestOps(OpsCases):
    backend = "triton_gpu"


def test_none_picks_the_kernels():
    x, expert, weight, params, _ = problem(0, dtype="bfloat16")
    from moe_kernels import choose, moe_ffn

    assert choose(None) == "triton_gpu"
    lowered = jax.jit(lambda x: moe_ffn(x, expert, weight, **params)).lower(x).as_text()
    assert lowered.count("@triton_kernel_call") == 3
