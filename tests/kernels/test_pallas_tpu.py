"""The TPU kernels in Pallas' interpreter for TPUs, held to the cases that all backends share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import callback as jax_callback
from jax.experimental.pallas import tpu as pltpu
from moe_kernels import backends, moe_ffn

from tests.kernels.moe_ffn_cases import SMALL, MoeFfnCases, problem
from tests.kernels.ops_cases import OpsCases


def call_back(*args, callback, **_):
    """`io_callback_impl` less the way of each number to the device and back."""
    return jax.tree.map(np.asarray, callback(*args))


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels are interpreted, in a program for the CPU.

    Most of the interpreter's time is JAX's, which makes device arrays of the arguments of every
    callback; the interpreter's callbacks only want numbers and NumPy arrays.
    """
    monkeypatch.setitem(backends.RUNS_ON, "pallas_tpu", ("cpu",))
    monkeypatch.setattr(jax_callback, "io_callback_impl", call_back)
    with pltpu.force_tpu_interpret_mode():
        yield


@pytest.mark.usefixtures("interpreted")
class TestLayer(MoeFfnCases):
    backend = "pallas_tpu"

    @pytest.mark.parametrize("dtype", ["bfloat16"])
    def test_half_precision(self, dtype):
        self.check(problem(9, t=SMALL, dtype=dtype), dtype=dtype)

    @pytest.mark.parametrize("dtype", ["float16", "float64"])
    def test_double_precision(self, dtype):
        with jax.enable_x64(True), pytest.raises(ValueError, match=f"has no {dtype}: cast to"):
            self.check(problem(9, t=SMALL, dtype=dtype), dtype=dtype)


@pytest.mark.usefixtures("interpreted")
class TestOps(OpsCases):
    backend = "pallas_tpu"
    half = "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("t, d, f, e, k", [(2048, 2048, 1024, 64, 8), (100, 520, 136, 5, 2)])
def test_a_layer_with_gradients_is_lowered_for_tpu(dtype, t, d, f, e, k):
    shapes = {"w_in": (e, d, f), "w_gate": (e, d, f), "w_out": (e, f, d), "b_in": (e, f)}
    params = {n: jax.ShapeDtypeStruct(s, dtype) for n, s in shapes.items()}
    x = jax.ShapeDtypeStruct((t, d), dtype)
    expert = jax.ShapeDtypeStruct((t, k), "int32")
    weight = jax.ShapeDtypeStruct((t, k), "float32")

    def loss(x, weight, params, expert):
        y = moe_ffn(x, expert, weight, **params, backend="pallas_tpu")
        return jnp.sum(y.astype(jnp.float32))

    both = jax.value_and_grad(loss, argnums=(0, 1, 2))
    traced = jax.jit(both).trace(x, weight, params, expert)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    # up and down; hidden_grad, dx, three weight gradients and one of a bias.
    assert text.count("@tpu_custom_call") == 8


def test_named_for_another_platform_it_is_refused():
    x, expert, weight, params, _ = problem(0)
    with pytest.raises(ValueError, match="'pallas_tpu' runs on tpu, but this program is for cpu"):
        jax.jit(lambda x: moe_ffn(x, expert, weight, **params, backend="pallas_tpu"))(x)
