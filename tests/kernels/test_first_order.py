"""Derivatives beyond the first in reverse mode: right by the reference, one sentence elsewhere."""

import functools

import jax
import jax.numpy as jnp
import moe_kernels
import numpy as np
import pytest
from moe_kernels import make_plan, moe_ffn, moe_ffn_expert_parallel

from tests.kernels.moe_ffn_cases import problem

ONLY = "has first derivatives in reverse mode only .* use backend='reference'"


def small(seed=0, dtype="float32"):
    return problem(seed, t=3, k=2, d=3, f=2, e=3, dtype=dtype)


def layer(backend, dtype="float32"):
    _, expert, weight, params, _ = small(dtype=dtype)
    return lambda x: jnp.sum(moe_ffn(x, expert, weight, **params, backend=backend) ** 2)


def dense(x, expert, weight, p):
    """All experts by einsum, weighted by a table [t e]."""
    e = p["w_in"].shape[0]
    table = sum(jax.nn.one_hot(expert[:, k], e) * weight[:, k : k + 1] for k in range(2))
    h = jnp.einsum("td,edf->tef", x, p["w_in"]) + p["b_in"][None]
    gate = jnp.einsum("td,edf->tef", x, p["w_gate"]) + p["b_gate"][None]
    out = jnp.einsum("tef,efd->ted", gate * jax.nn.sigmoid(gate) * h, p["w_out"])
    return jnp.einsum("te,ted->td", table, out + p["b_out"][None])


ASKED = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jit of jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "hessian": lambda f, x: jax.hessian(f)(x),
    "jvp of grad": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
    "grad of grad": lambda f, x: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) * x))(x),
    "checkpoint": lambda f, x: jax.jvp(jax.checkpoint(f), (x,), (x,)),
}


@pytest.mark.parametrize(
    "asked, backend, dtype",
    [(a, "c_cpu", "float32") for a in ASKED]
    + [(a, "xla", "bfloat16") for a in ("jvp", "jacfwd", "hessian", "grad of grad")],
)
def test_what_a_backend_has_not_is_one_sentence(asked, backend, dtype):
    with pytest.raises(ValueError, match=f"^backend='{backend}' {ONLY}"):
        ASKED[asked](layer(backend, dtype), small(dtype=dtype)[0])


def test_the_sentence_without_a_named_backend():
    with pytest.raises(ValueError, match=rf"^backend=None \(picked by platform\) {ONLY}"):
        ASKED["jvp"](layer(None), small()[0])


@pytest.mark.parametrize("backend", ["xla", "c_cpu"])
def test_a_derivative_that_is_not_used_is_no_error(backend):
    f, x = layer(backend), small()[0]

    def step(x):
        return f(x - 0.1 * jax.lax.stop_gradient(jax.grad(f)(x)))

    want = jax.grad(f)(x - 0.1 * jax.grad(f)(x))
    np.testing.assert_allclose(jax.grad(step)(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "c_cpu"])
def test_no_argument_is_copied_for_the_backward_pass(backend):
    x, expert, weight, params, _ = small()

    def value(x, weight, params):
        return moe_ffn(x, expert, weight, **params, backend=backend)

    given = {a.unsafe_buffer_pointer() for a in (x, weight, *params.values())}
    shapes = {a.shape for a in params.values()}
    _, pull = jax.vjp(jax.jit(value), x, weight, params)
    kept = [a for a in jax.tree.leaves(pull) if a.shape in shapes and a.ndim == 3]
    assert len(kept) == 3
    assert all(a.unsafe_buffer_pointer() in given for a in kept)


def test_derivatives_of_any_order_by_the_reference():
    with jax.enable_x64(True):
        x, expert, weight, params, _ = small(dtype="float64")

        def second(layer):
            def value(x, weight, params):
                return jnp.sum(layer(x, expert, weight, params) ** 2)

            args = (x, weight, params)
            grad = jax.grad(value, argnums=(0, 1, 2))
            forward = jax.jvp(grad, args, args)[1]
            pulled = jax.vjp(grad, *args)[1](grad(*args))
            return forward, pulled

        def ours(x, expert, weight, params):
            return moe_ffn(x, expert, weight, **params, backend="reference")

        got, want = (
            jax.jit(second, static_argnums=0)(ours),
            jax.jit(second, static_argnums=0)(dense),
        )
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_the_hessian_by_the_reference_in_bfloat16():
    dtype, tolerance = "bfloat16", 0.06
    x, expert, weight, params, _ = small(dtype=dtype)
    got = jax.jit(jax.hessian(layer("reference", dtype)))(x)
    assert got.dtype == dtype
    wide = jax.tree.map(lambda a: a.astype("float32"), params)
    want = jax.hessian(lambda x: jnp.sum(dense(x, expert, weight, wide) ** 2))(x.astype("float32"))
    np.testing.assert_allclose(
        np.asarray(got, np.float32), want, rtol=0, atol=tolerance * np.abs(want).max()
    )


def operations(backend):
    _, expert, weight, _, _ = small()
    plan = make_plan(expert, 3)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 3)), jnp.float32)
    call = {n: functools.partial(getattr(moe_kernels, n), backend=backend) for n in OPERATIONS}
    return {
        "gather_gemm": lambda x: call["gather_gemm"](x, w, plan),
        "grouped_gemm": lambda x: call["grouped_gemm"](jnp.tile(x, (2, 1)), w, plan.offset),
        "combine": lambda x: call["combine"](jnp.tile(x, (2, 1)), weight, plan),
        "segment_pool": lambda x: call["segment_pool"](x, weight, plan),
        "topk_route": lambda x: call["topk_route"](x, 2)[1],
    }


OPERATIONS = ("gather_gemm", "grouped_gemm", "combine", "segment_pool", "topk_route")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_single_operations(operation):
    x = small()[0]

    def value(backend, x):
        return jnp.sum(operations(backend)[operation](x) ** 3)

    for asked in ("jvp", "jvp of grad"):
        with pytest.raises(ValueError, match=f"^backend='xla' {ONLY}"):
            ASKED[asked](functools.partial(value, "xla"), x)
    # The second derivative is the slope of the first one, which has tests of its own.
    step = 1e-2
    grad = jax.jit(jax.grad(functools.partial(value, "xla")))
    got = jax.jvp(jax.grad(functools.partial(value, "reference")), (x,), (x,))[1]
    want = (grad(x + step * x) - grad(x - step * x)) / (2 * step)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3 * np.abs(want).max())


def test_experts_over_devices():
    asked = "jvp of grad"
    x, expert, weight, params, _ = small()
    mesh = jax.make_mesh((1,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))

    def value(exchange, backend, x):
        def own(x):
            return moe_ffn_expert_parallel(
                x,
                expert,
                weight,
                **params,
                axis_name="expert",
                exchange=exchange,
                rows_per_peer=2,
                backend=backend,
            )

        rows = jax.P("expert")
        return jnp.sum(jax.shard_map(own, mesh=mesh, in_specs=rows, out_specs=rows)(x) ** 2)

    with pytest.raises(ValueError, match=r"^moe_ffn_expert_parallel has first deriv.*'reference'"):
        ASKED[asked](functools.partial(value, "all_to_all", "xla"), x)
    got = ASKED[asked](functools.partial(value, "all_gather", "reference"), x)
    want = ASKED[asked](layer("reference"), x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
