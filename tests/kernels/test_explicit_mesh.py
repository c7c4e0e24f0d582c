"""Arguments on a mesh as `jax.make_mesh` gives it: the result of one device, tokens where they are."""

import re

import jax
import jax.numpy as jnp
import moe_kernels
import numpy as np
import pytest
from jax.sharding import AxisType
from moe_kernels import make_plan, moe_ffn, topk_route

from tests.kernels import moe_ffn_oracle
from tests.kernels.moe_ffn_cases import close, problem

T = 16
ROWS, BOTH = jax.P("data"), jax.P(("data", "model"))


def mesh_of(*kinds):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds or None)


def put(mesh, tree, *axes):
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*axes)))


def results(backend):
    def values(x, expert, weight, params, dy):
        def value(x, weight, params):
            return moe_ffn(x, expert, weight, **params, backend=backend)

        y, pull = jax.vjp(value, x, weight, params)
        dx, dweight, dparams = pull(dy)
        return {"y": y, "x": dx, "weight": dweight, **dparams}

    return values


def spread(mesh, args, axes):
    x, expert, weight, params, dy = args
    x, expert, weight, dy = put(mesh, (x, expert, weight, dy), axes)
    return x, expert, weight, params, dy


@pytest.mark.mesh
@pytest.mark.parametrize("backend", ["reference", "xla", "c_cpu"])
@pytest.mark.parametrize("axes", ["data", ("data", "model"), None])
def test_tokens_on_a_mesh(backend, axes):
    args = problem(0, t=T)
    got = jax.jit(results(backend))(*spread(mesh_of(), args, axes))
    close(got, moe_ffn_oracle.moe_ffn("silu", *args))
    for name in ("y", "x", "weight"):
        assert jax.typeof(got[name]).sharding.spec[0] == axes


@pytest.mark.mesh
def test_each_device_has_its_own_tokens_only():
    args = problem(0, t=T)
    compiled = jax.jit(results("c_cpu")).lower(*spread(mesh_of(), args, "data")).compile().as_text()
    collectives = re.findall(r"(\S+) = \S+ (all-gather|all-to-all|collective-permute)\(", compiled)
    assert not collectives
    assert "moe_forward" in compiled


@pytest.mark.mesh
@pytest.mark.parametrize("setting", [True, False])
def test_with_and_without_jit_and_set_mesh(setting):
    args = problem(1, t=T)
    mesh = mesh_of()
    x, expert, weight, params, dy = spread(mesh, args, "data")
    want = moe_ffn_oracle.moe_ffn("silu", *args)

    def value(x):
        return moe_ffn(x, expert, weight, **params)

    def check():
        close({"y": value(x)}, {"y": want["y"]})
        close({"x": jax.vjp(value, x)[1](dy)[0]}, {"x": want["x"]})
        close({"x": jax.jit(lambda x, dy: jax.vjp(value, x)[1](dy)[0])(x, dy)}, {"x": want["x"]})

    if setting:
        with jax.set_mesh(mesh):
            check()
    else:
        check()


@pytest.mark.mesh
def test_what_else_is_sharded_is_gathered_and_its_gradient_comes_back_sharded():
    x, expert, weight, params, dy = args = problem(2, t=T, d=6, f=4, e=4)
    mesh = mesh_of()
    sharded = {n: put(mesh, p, "model") for n, p in params.items()}
    rows = (put(mesh, x, "data", "model"), put(mesh, expert), put(mesh, weight, "data"))
    got = jax.jit(results(None))(*rows, sharded, put(mesh, dy, "data"))
    close(got, moe_ffn_oracle.moe_ffn("silu", *args))
    for name in params:
        assert jax.typeof(got[name]).sharding.spec[0] == "model"


@pytest.mark.mesh
@pytest.mark.parametrize("backend", ["xla", "c_cpu"])
def test_one_explicit_and_one_auto_axis(backend):
    args = problem(3, t=T)
    mesh = mesh_of(AxisType.Explicit, AxisType.Auto)
    got = jax.jit(results(backend))(*spread(mesh, args, ("data", "model")))
    close(got, moe_ffn_oracle.moe_ffn("silu", *args))


@pytest.mark.mesh
def test_inside_a_shard_map_of_the_callers():
    args = problem(4, t=T)
    mesh = mesh_of()
    rows = jax.P("data")
    own = jax.shard_map(
        results(None),
        mesh=mesh,
        in_specs=(rows, rows, rows, jax.P(), rows),
        out_specs={"y": rows, "x": rows, "weight": rows, **dict.fromkeys(args[3], jax.P())},
    )
    close(jax.jit(own)(*spread(mesh, args, "data")), moe_ffn_oracle.moe_ffn("silu", *args))


@pytest.mark.mesh
def test_inside_a_shard_map_over_some_axes():
    args = problem(4, t=T)
    mesh = mesh_of()
    rows = jax.P("model")
    own = jax.shard_map(
        lambda x, expert, weight, params: moe_ffn(x, expert, weight, **params),
        mesh=mesh,
        in_specs=(rows, rows, rows, jax.P()),
        out_specs=rows,
        axis_names={"model"},
    )
    got = jax.jit(own)(*spread(mesh, args, ("model", "data"))[:4])
    close({"y": got}, {"y": moe_ffn_oracle.moe_ffn("silu", *args)["y"]})


@pytest.mark.mesh
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_topk_route(scores):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((T, 5)), jnp.float32)

    def weights(logits):
        expert, weight, count = topk_route(logits, 2, scores=scores, renormalise=True)
        return weight, (expert, count)

    want, pull, (expert, count) = jax.vjp(weights, logits, has_aux=True)
    sharded = put(mesh_of(), logits, "data")
    got, own_pull, (own_expert, own_count) = jax.vjp(jax.jit(weights), sharded, has_aux=True)
    np.testing.assert_array_equal(own_expert, expert)
    np.testing.assert_array_equal(own_count, count)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(own_pull(got)[0], pull(want)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.mesh
def test_operations_on_one_plan_show_the_way():
    mesh = mesh_of()
    x, expert, weight, params, _ = problem(5, t=T)
    plan = make_plan(expert, 5)
    x, weight = put(mesh, (x, weight), "data")
    shown = (
        r"is sharded over the mesh axis 'data', but {} needs all rows of a plan on one device: .* by\n"
        r"  rows, whole = jax.P\('data'\), jax.P\(\)\n"
        r"  own = jax.shard_map\(function, mesh=mesh, in_specs=\(rows, whole\), out_specs=rows\)\n"
        r"  y = own\(x, w\)  # function\(x, w\) makes the plan and calls {}"
    )
    calls = {
        "make_plan": lambda: make_plan(put(mesh, expert, "data"), 5),
        "gather_gemm": lambda: moe_kernels.gather_gemm(x, params["w_in"], plan),
        "grouped_gemm": lambda: moe_kernels.grouped_gemm(x, params["w_in"], plan.offset),
        "combine": lambda: moe_kernels.combine(
            put(mesh, jnp.zeros((2 * T, 6)), "data"), weight, plan
        ),
        "segment_pool": lambda: moe_kernels.segment_pool(x, weight, plan),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=shown.format(name, name)):
            call()


@pytest.mark.mesh
def test_the_three_lines_are_right():
    mesh = mesh_of()
    x, _, _, params, _ = problem(6, t=T)

    def function(x, w):
        plan = make_plan(jnp.zeros((x.shape[0], 1), jnp.int32), w.shape[0])
        return moe_kernels.gather_gemm(x, w, plan)

    w = params["w_in"]
    rows, whole = jax.P("data"), jax.P()
    own = jax.shard_map(function, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    y = own(put(mesh, x, "data"), w)
    np.testing.assert_allclose(y, x @ w[0], rtol=1e-5, atol=1e-5)


@pytest.mark.mesh
def test_vmap_over_a_sharded_axis_shows_the_way():
    x, expert, weight, params, _ = problem(7, t=T)
    many = put(mesh_of(), jnp.stack([x] * 4), "data")
    with pytest.raises(ValueError, match=r"^jax.vmap maps an axis .*\n  rows, whole = jax.P\("):
        jax.vmap(lambda x: moe_ffn(x, expert, weight, **params))(many)
