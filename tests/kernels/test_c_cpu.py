"""The C kernels: the shared cases, sizes around their blocks, and what only they promise."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_kernels import ACTIVATIONS, gather_gemm, grouped_gemm, make_plan, moe_ffn
from moe_kernels.c_cpu import library

from tests.kernels import moe_ffn_oracle
from tests.kernels.moe_ffn_cases import SMALL, MoeFfnCases, problem
from tests.kernels.ops_cases import OpsCases, close, gemm_loop, normal


def test_there_is_a_compiler_on_machines_that_test():
    assert library.missing() is None


class TestLayer(MoeFfnCases):
    backend = "c_cpu"

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision(self, dtype):
        with pytest.raises(ValueError, match=f"'c_cpu' has no {dtype}: cast to float32, or use"):
            self.check(problem(9, t=SMALL, dtype=dtype), dtype=dtype)

    def test_double_precision(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="'c_cpu' has no float64"):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")

    # Several blocks of rows, of terms and of columns, and none of them full.
    # In the third, few rows an expert: one unit takes all of the matrix's gradient.
    @pytest.mark.parametrize(
        "t, k, d, f, e", [(700, 1, 300, 530, 2), (90, 2, 530, 1100, 3), (150, 1, 600, 330, 40)]
    )
    def test_large_sizes(self, t, k, d, f, e):
        x, expert, weight, params, dy = problem(11, t=t, k=k, d=d, f=f, e=e)
        small = {n: p / np.sqrt(p.shape[1]) for n, p in params.items()}
        self.check((x, expert, weight, small, dy), activation="gelu")

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
    def test_none_is_this_backend_whatever_weights_are(self, dtype):
        x, expert, weight, params, _ = problem(12, t=SMALL)
        with jax.enable_x64(True):
            weight = weight.astype(dtype)
            program = jax.jit(lambda *args: moe_ffn(*args, **params)).lower(x, expert, weight)
        assert "moe_forward" in program.as_text()

    def test_integers_of_64_bits(self):
        with jax.enable_x64(True):
            x, expert, weight, params, dy = problem(12, t=SMALL)
            self.check((x, expert.astype("int64"), weight, params, dy))


class TestOps(OpsCases):
    backend = "c_cpu"
    half = "float32"  # it has no other


def check_products(expert, num_experts, d, f, seed):
    plan = make_plan(jnp.asarray(expert), num_experts)
    shapes = (expert.size, d), (num_experts, d, f), (num_experts, f), (expert.size, f)
    x, w, bias, dy = (normal(seed + i, *shape) for i, shape in enumerate(shapes))

    def call(x, w, bias):
        return gather_gemm(x, w, plan, bias=bias, backend="c_cpu")

    y, pull = jax.vjp(call, x, w, bias)
    want = gemm_loop(x, w, bias, expert, dy, plan)
    for got, right in zip((y, *pull(dy)), want, strict=True):
        close(got, right)


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 40) | st.integers(250, 270), min_size=1, max_size=4),
    st.integers(1, 40) | st.integers(250, 270),
    st.integers(1, 40) | st.sampled_from([255, 256, 257, 289]),
    st.integers(0, 2**32 - 1),
)
def test_products_of_all_sizes_and_their_gradients(loads, d, f, seed):
    ids = np.repeat(np.arange(len(loads), dtype=np.int32), loads)
    expert = np.random.default_rng(seed).permutation(ids)[:, None]
    if not expert.size:
        expert = np.zeros((1, 1), np.int32)
    check_products(expert, len(loads), d, f, seed)


# The gradients have sums over all tokens, then over d and f: more than one span of terms, more
# columns than are kept, rows of several units.
@pytest.mark.parametrize("loads, d, f", [((2100,), 530, 600), ((40, 0, 33), 35, 2100)])
def test_products_of_large_sizes_and_their_gradients(loads, d, f):
    expert = np.repeat(np.arange(len(loads), dtype=np.int32), loads)[:, None]
    check_products(expert, len(loads), d, f, seed=1)


def test_sums_are_as_exact_as_float32_has_it():
    x, w = normal(5, 64, 4096), normal(6, 1, 4096, 48)
    y = grouped_gemm(x, w, jnp.asarray([0, 64], jnp.int32), backend="c_cpu")
    want = np.asarray(x, np.float64) @ np.asarray(w[0], np.float64)
    assert np.sqrt(np.mean((y - want) ** 2)) < 4e-7 * np.sqrt(np.mean(want**2))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 3e38])
def test_products_of_tiny_and_huge_numbers(rows, size):
    x, w = size * (normal(7, rows, 40) % 1), normal(8, 1, 40, 24) % 1 / 40
    y = grouped_gemm(x, w, jnp.asarray([0, rows], jnp.int32), backend="c_cpu")
    want = np.asarray(x, np.float64) @ np.asarray(w[0], np.float64)
    np.testing.assert_allclose(y, want, rtol=2e-6)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_row(rows, value):
    x, w = normal(9, rows, 40).at[1, 3].set(value), normal(10, 1, 40, 24)
    y = np.asarray(grouped_gemm(x, w, jnp.asarray([0, rows], jnp.int32), backend="c_cpu"))
    assert not np.isfinite(y[1]).any()
    rest = np.delete(np.asarray(x, np.float64), 1, 0) @ np.asarray(w[0], np.float64)
    np.testing.assert_allclose(np.delete(y, 1, 0), rest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_their_slopes_over_their_whole_range(activation):
    h = np.concatenate([np.linspace(-120, 120, 4001), np.geomspace(1e-30, 10, 200), [0.0, -0.0]])
    x = jnp.asarray(h[:, None], jnp.float32)
    one, ids = jnp.ones((1, 1, 1)), jnp.zeros(x.shape, jnp.int32)

    def value(x):
        y = moe_ffn(x, ids, jnp.ones(x.shape), one, one, activation=activation, backend="c_cpu")
        return jnp.sum(y), y

    (_, y), slope = jax.value_and_grad(value, has_aux=True)(x)[0], jax.grad(value, has_aux=True)(x)
    want, want_slope = moe_ffn_oracle.activation(activation, np.asarray(x, np.float64))
    np.testing.assert_allclose(y, want, rtol=3e-7, atol=2e-7)
    np.testing.assert_allclose(slope[0], want_slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("times", [1, 10])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_activations_of_huge_numbers(activation, times):
    x, one = jnp.asarray([[-3e38], [3e38]] * times), jnp.ones((1, 1, 1))
    ids, ones = jnp.zeros(x.shape, jnp.int32), jnp.ones(x.shape)

    def value(x):
        return moe_ffn(x, ids, ones, one, one, activation=activation, backend="c_cpu")

    np.testing.assert_array_equal(value(x), [[0], [x[1, 0]]] * times)
    np.testing.assert_array_equal(jax.vjp(value, x)[1](ones)[0], [[0], [1]] * times)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_comes_out_as_nan(activation):
    one, ids = jnp.ones((1, 1, 1)), jnp.zeros((2, 1), jnp.int32)

    def value(x):
        y = moe_ffn(x, ids, jnp.ones((2, 1)), one, one, activation=activation, backend="c_cpu")
        return y[0, 0]

    y, slope = jax.value_and_grad(value)(jnp.asarray([[jnp.nan], [1.0]]))
    assert np.isnan(y)
    assert activation == "relu" or np.isnan(slope[0, 0])
    assert slope[1, 0] == 0


# Few rows, up to four an expert, and more are two ways to compute where there is AMX.
@pytest.mark.parametrize(
    "t, parts",
    [(6, [slice(0, 1), slice(2, 6)]), (300, [slice(0, 7), slice(7, 60), slice(100, 231)])],
)
@pytest.mark.parametrize("f", [290, 1100])
def test_a_row_is_the_same_whatever_the_other_rows_are(f, t, parts):
    x, expert, weight, params, _ = problem(3, t=t, k=2, d=270, f=f, e=3)
    whole = moe_ffn(x, expert, weight, **params, backend="c_cpu")
    for some in parts:
        part = moe_ffn(x[some], expert[some], weight[some], **params, backend="c_cpu")
        np.testing.assert_array_equal(part, whole[some])


def test_what_is_kept_for_gradients_changes_no_bit():
    x, expert, weight, params, _ = problem(4, t=80, k=2, d=70, f=1100, e=3)

    def layer(x):
        return moe_ffn(x, expert, weight, **params, backend="c_cpu")

    np.testing.assert_array_equal(jax.vjp(layer, x)[0], layer(x))


@pytest.mark.parametrize("offset", [[0, 5, 3], [-1, 2, 4], [0, 2, 9], [0, 9, 4], [3, 2, 4]])
def test_an_offset_that_leaves_the_rows_is_an_error(offset):
    x, w = jnp.ones((8, 3)), jnp.ones((2, 3, 4))
    with pytest.raises(Exception, match="offset must not go down, and must stay within 0 and the"):
        jax.block_until_ready(grouped_gemm(x, w, jnp.asarray(offset, jnp.int32), backend="c_cpu"))


@pytest.mark.parametrize("token", [-1, 4])
def test_a_plan_that_points_out_of_x_is_an_error(token):
    plan = make_plan(jnp.zeros((4, 1), jnp.int32), 1)
    plan = plan._replace(token=plan.token.at[2].set(token))
    with pytest.raises(Exception, match="the plan points to rows that x does not have"):
        jax.block_until_ready(gather_gemm(jnp.ones((4, 3)), jnp.ones((1, 3, 4)), plan))


def test_many_threads_at_once_get_what_one_gets():
    args = [problem(seed, t=200 + seed, d=64, f=96) for seed in range(4)]
    compute = jax.jit(lambda x, expert, weight, params: moe_ffn(x, expert, weight, **params))
    alone = [compute(*a[:4]) for a in args]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: compute(*args[i % 4][:4]), range(200)))
    for i, y in enumerate(found):
        np.testing.assert_array_equal(y, alone[i % 4])


def test_a_named_backend_is_refused_when_lowered_for_another_platform():
    x, expert, weight, params, _ = problem(0, t=SMALL)
    jitted = jax.jit(lambda x: moe_ffn(x, expert, weight, **params, backend="c_cpu"))
    with pytest.raises(ValueError, match="backend='c_cpu' runs on cpu, but this program is for"):
        jitted.trace(x).lower(lowering_platforms=("tpu",))
    unnamed = jax.jit(lambda x: moe_ffn(x, expert, weight, **params))
    assert "moe_forward" not in unnamed.trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert "moe_forward" in unnamed.lower(x).as_text()
