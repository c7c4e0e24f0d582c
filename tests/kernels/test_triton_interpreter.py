"""The Triton kernels in Triton's interpreter, held to the cases that all backends share.

`make triton` runs this file, with TRITON_INTERPRET=1. bfloat16 is left out: the interpreter
multiplies its bit patterns as integers (float16 takes the same paths through the kernels).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.moe_ffn_cases import SMALL, MoeFfnCases, problem, results
from tests.kernels.ops_cases import OpsCases
from tests.kernels.triton_cases import NanRouteCases, WideTileCases
from tests.kernels.triton_interpreter import Interpreter, install

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    install(monkeypatch)


class TestLayer(WideTileCases, MoeFfnCases):
    backend = "triton_gpu"

    @pytest.mark.parametrize("dtype", ["float16"])
    def test_half_precision(self, dtype):
        self.check(problem(9, t=SMALL, dtype=dtype), dtype=dtype)

    def test_double_precision(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="has no float64: cast to"):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_wide_tiles(self, dtype):
        self.check_wide_tiles(dtype)


class TestOps(NanRouteCases, OpsCases):
    backend = "triton_gpu"


def test_without_tokens_nothing_is_launched(monkeypatch):
    from moe_kernels.triton_gpu import KERNELS, launch

    monkeypatch.setattr(launch, "load", lambda: pytest.fail("it was"))
    expert, score, count = KERNELS.topk_route(jnp.zeros((0, 5)), 2, scores="softmax")
    assert (expert.shape, score.shape) == ((0, 2), (0, 2))
    np.testing.assert_array_equal(count, np.zeros(5))
    y = KERNELS.combine(jnp.zeros((0, 8)), jnp.zeros((0, 2), int), jnp.int32(0), None)
    assert y.shape == (0, 8)


@pytest.mark.parametrize(
    "setting, dtype, want",
    [
        (None, "float32", "tf32"),
        ("default", "float32", "tf32"),
        ("bfloat16", "float32", "tf32"),
        ("tensorfloat32", "float32", "tf32"),
        ("TF32_TF32_F32", "float32", "tf32"),
        ("high", "float32", "tf32x3"),
        ("BF16_BF16_F32_X3", "float32", "tf32x3"),
        ("BF16_BF16_F32_X6", "float32", "ieee"),
        ("F32_F32_F32", "float32", "ieee"),
        ("highest", "float32", "ieee"),
        ("float32", "float32", "ieee"),
        (None, "float16", "ieee"),
        ("high", "float16", "ieee"),
    ],
)
def test_every_product_has_the_precision_that_jax_was_told(monkeypatch, setting, dtype, want):
    from moe_kernels.triton_gpu import launch

    found = {}

    class Recorder(Interpreter):
        def triton_call(self, *inputs, kernel, **more):
            found.setdefault(kernel.fn.__name__, set()).add(more.get("PRECISION"))
            return super().triton_call(*inputs, kernel=kernel, **more)

    monkeypatch.setattr(launch, "load", Recorder)
    x, expert, weight, params, dy = problem(0, t=4, extras=("w_gate",), dtype=dtype)
    with jax.default_matmul_precision(setting):
        jax.eval_shape(lambda: results("triton_gpu", "silu", x, expert, weight, params, dy))
    products = ("_up", "_grouped_matmul", "_hidden_grad", "_weight_grad")
    assert found == {"_combine": {None}, **{name: {want} for name in products}}
