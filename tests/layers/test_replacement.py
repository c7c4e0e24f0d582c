"""Outputs of zeroed experts that something stands in for, and the outputs of single experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.gating import (
    GateConfig,
    Routing,
    RoutingEdit,
)
from moe_jax.layers import MoE
from tests.layers.oracle import D, E, T, X, array, dense, loop, make

S = np.random.default_rng(7).normal(size=(E, D)).astype(np.float32)
STAND_INS = {
    "glu": ({}, {"zero": [0, 2]}),
    "plain": ({"glu": False, "activation": "relu", "gate": {"k": 1}}, {"zero": [1, 3]}),
    "capacity": ({"gate": {"k": 1, "capacity": 2}}, {"zero": [0, 1, 2]}),
    "renormalised": ({"gate": {"renormalise": True}}, {"zero": [0, 2]}),
    "sigmoid": ({"gate": {"k": 3, "score": "sigmoid", "scale": 2.5}, "glu": False}, {"zero": [1]}),
    "expert choice": ({"gate": {"choice": "expert"}}, {"zero": [3, 0]}),
    "scope": ({}, {"zero": [0, 2, 3], "tokens": np.arange(T) % 2 == 0}),
    "permute and scale": (
        {"gate": {"renormalise": True}},
        {"zero": [0, 2], "permute": [1, 2, 3, 0], "scale": {0: 0.25, 1: 3.0}},
    ),
    "replay": ({}, {"zero": [1], "replay": np.array([[1, 3]]), "replay_weight": S[:1, :2]}),
    "shared": ({"d_shared": 3}, {"zero": [0, 1, 2, 3]}),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_against_the_loop(name):
    """Weights from the gate under the edit's other fields, outputs from the loop or from S."""
    arguments, fields = STAND_INS[name]
    moe = make(**arguments)
    config = moe.gate.config
    edit = RoutingEdit.make(config, **fields, stand_in=S)
    y, routing = jax.jit(lambda x, edit: moe(x, edit=edit))(X, edit)
    rest = {n: v for n, v in fields.items() if n != "zero"}
    before = moe.gate(array(X), edit=RoutingEdit.make(config, **rest))
    scope = np.flatnonzero(fields.get("tokens", np.ones(T, bool)))
    put = {(int(t), e): S[e] for t in scope for e in fields["zero"]}
    hit = [(t, int(e)) in put for t in range(T) for e in before.expert[t]]
    assert any(hit)
    want = loop(moe, X, before, put)
    if moe.shared is not None:
        want += np.asarray(moe.shared(array(X)), np.float64)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    alone = moe.gate(array(X), edit=edit)
    np.testing.assert_array_equal(routing.expert, alone.expert)
    np.testing.assert_array_equal(routing.weight, alone.weight)


def test_a_stand_in_by_hand():
    """Weights 1/2 and 1/4; the second expert gives 0, the first 2 and -4 instead of its output."""
    moe = MoE(2, 3, GateConfig(num_experts=4, k=2), router_bias=True, rngs=nnx.Rngs(0))
    moe.gate.w_de[...] = jnp.zeros((2, 4))
    moe.gate.b_e[...] = jnp.log(jnp.array([4.0, 2.0, 1.0, 1.0]))
    moe.w_out_efd[...] = moe.w_out_efd[...].at[1].set(0)
    own = np.array([[2.0, -4.0], [9.0, 9.0], [9.0, 9.0], [9.0, 9.0]])
    x = jnp.ones((1, 2))

    go = jax.jit(lambda edit: moe(x, edit=edit)[0])

    def run(**changes):
        return go(RoutingEdit.make(moe.gate.config, stand_in=own, **changes))[0]

    np.testing.assert_allclose(run(zero=[0]), [1, -2], rtol=1e-6)
    np.testing.assert_allclose(run(zero=[0], scale={0: 3.0}), [3, -6], rtol=1e-6)
    np.testing.assert_allclose(run(zero=[0, 1]), [1 + 9 / 4, -2 + 9 / 4], rtol=1e-6)
    # Expert 2 does the work of 0, and it is its own stand-in that counts.
    np.testing.assert_allclose(run(zero=[2], permute=[2, 1, 0, 3]), [4.5, 4.5], rtol=1e-6)


def test_zeroed_experts_without_a_stand_in_are_silent():
    moe = make()
    go = jax.jit(lambda edit: moe(array(X), edit=edit)[0])
    zeroed = go(RoutingEdit.make(moe.gate.config, zero=[0, 2]))
    silent = go(RoutingEdit.make(moe.gate.config, scale={0: 0.0, 2: 0.0}))
    np.testing.assert_array_equal(zeroed, silent)
    wide = go(RoutingEdit.make(moe.gate.config, zero=[0, 2], stand_in=S * 0))
    np.testing.assert_array_equal(wide, zeroed)
    assert np.any(np.asarray(zeroed) != moe(array(X))[0])


@pytest.mark.parametrize("gate", [{}, {"capacity_factor": 1.0}, {"choice": "expert"}])
def test_a_stand_in_for_nobody_changes_no_bit(gate):
    moe = make(gate=gate)
    config = moe.gate.config
    go = jax.jit(lambda x, edit: moe(x, edit=edit)[0])
    plain = np.asarray(go(X, None))
    assert plain.tobytes() == np.asarray(go(X, RoutingEdit.make(config, stand_in=S))).tobytes()
    scope = np.arange(T) % 3 == 0
    edit = RoutingEdit.make(config, stand_in=S, zero=range(E), tokens=scope)
    nowhere = edit._replace(tokens=jnp.zeros(T, bool))
    assert plain.tobytes() == np.asarray(go(X, nowhere)).tobytes()
    some = np.asarray(go(X, edit))
    assert plain[~scope].tobytes() == some[~scope].tobytes()
    assert np.any(some[scope] != plain[scope])


def test_an_expert_that_is_constant_has_itself_as_its_mean():
    """Experts read only x_0 = 1, so each has one output; putting it in changes nothing."""
    moe, x = make(), X.copy()
    x[:, 0] = 1
    for weights in (moe.w_in_edf, moe.w_gate_edf):
        weights[...] = weights[...].at[:, 1:].set(0)
    own = moe.expert_outputs(array(x[:1]), jnp.arange(E)[None])[0]
    for zero in ([1], range(E)):
        edit = RoutingEdit.make(moe.gate.config, zero=zero, stand_in=own)
        y, routing = moe(array(x), edit=edit)
        np.testing.assert_allclose(y, moe(array(x))[0], rtol=1e-5, atol=1e-6)
        assert np.any(np.asarray(routing.weight) == 0)


def test_gradients_through_stand_ins():
    moe = make(gate={"renormalise": True})
    graphdef, params = nnx.split(moe, nnx.Param)
    cotangent = np.random.default_rng(1).normal(size=(T, D)).astype(np.float32)

    zeroed = RoutingEdit.make(moe.gate.config, zero=[0, 2])

    def sparse(params, x, own):
        edit = zeroed._replace(stand_in=own)
        return jnp.sum(nnx.merge(graphdef, params)(x, edit=edit)[0] * cotangent)

    def plain(arrays, x):
        return jnp.sum(dense(arrays, x, moe.gate.config, gone=(0, 2)) * cotangent)

    arrays = {
        "router": moe.gate.w_de[...],
        "in": moe.w_in_edf[...],
        "gate": moe.w_gate_edf[...],
        "out": moe.w_out_efd[...],
    }
    # At 0 too: there the stand-in is what zeroing alone puts in, and it has a slope.
    for own in (S, S * 0):
        got, got_x, got_own = jax.jit(jax.grad(sparse, (0, 1, 2)))(params, X, own)
        want, want_x = jax.jit(jax.grad(plain, (0, 1)))(arrays | {"stand_in": array(own)}, X)
        for a, b in (
            (got_x, want_x),
            (got_own, want["stand_in"]),
            (got["gate"]["w_de"][...], want["router"]),
            (got["w_in_edf"][...], want["in"]),
            (got["w_out_efd"][...], want["out"]),
        ):
            assert np.any(np.asarray(b))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_stand_ins_in_low_precision_are_added_in_float32():
    x = array(X).astype(jnp.bfloat16)
    moe = make()
    edit = RoutingEdit.make(moe.gate.config, zero=range(E), stand_in=S)
    y, _ = moe(x, edit=edit)
    assert y.dtype == jnp.bfloat16
    before = moe.gate(x)
    put = {(t, e): S[e] for t in range(T) for e in range(E)}
    np.testing.assert_allclose(y.astype(jnp.float32), loop(moe, X, before, put), rtol=2**-8)


def test_a_stand_in_of_another_width():
    moe = make()
    edit = RoutingEdit.make(moe.gate.config, zero=[0], stand_in=S[:, :5])
    with pytest.raises(ValueError, match=r"stand_in has shape \(4, 5\), the layer has d_model=6"):
        moe(array(X), edit=edit)
    silent = RoutingEdit.make(moe.gate.config, zero=[0])
    narrow = silent._replace(stand_in=jnp.asarray(S[:, :1]))
    np.testing.assert_array_equal(moe(array(X), edit=narrow)[0], moe(array(X), edit=silent)[0])
    with pytest.raises(ValueError, match=r"stand_in has shape \(4, 1\), the gate wants \(4, d_mo"):
        RoutingEdit.make(moe.gate.config, zero=[0], stand_in=S[:, :1])


@pytest.mark.parametrize("kwargs", [{}, {"glu": False, "activation": "relu"}, {"d_shared": 3}])
def test_expert_outputs_against_the_loop(kwargs):
    moe = make(**kwargs)
    expert = np.random.default_rng(3).integers(0, E + 1, (T, 3))
    got = jax.jit(lambda x, e: moe.expert_outputs(x, e))(X, expert)
    assert got.shape == (T, 3, D)
    for slot in range(3):
        one = Routing(expert[:, slot : slot + 1], np.ones((T, 1)), None, None)
        np.testing.assert_allclose(got[:, slot], loop(moe, X, one), rtol=1e-5, atol=1e-6)
    assert np.any(expert == E)
    assert not np.any(np.asarray(got)[expert == E])
    assert moe.expert_outputs(jnp.zeros((0, D)), jnp.zeros((0, 2), int)).shape == (0, 2, D)
    low = moe.expert_outputs(array(X).astype(jnp.bfloat16), array(expert))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), got, atol=0.05)
    with pytest.raises(ValueError, match="x has width 7, the layer has d_model=6"):
        moe.expert_outputs(jnp.zeros((2, 7)), jnp.zeros((2, 1), int))


@pytest.mark.mesh
def test_stand_ins_where_experts_are_spread_over_devices():
    moe = make()
    edit = RoutingEdit.make(moe.gate.config, zero=[0, 2], stand_in=S)
    graph, state = nnx.split(moe)
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))

    def spec(path, _):
        return jax.P("expert") if "edf" in str(path) or "efd" in str(path) else jax.P()

    def local(state, x, edit):
        layer = nnx.merge(graph, state)
        y, routing = layer(x, edit=edit)
        return y, layer.expert_outputs(x, routing.expert)

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(jax.tree.map_with_path(spec, state), jax.P("expert"), jax.P()),
        out_specs=jax.P("expert"),
    )

    def total(function, state):
        y, outputs = function(state, array(X), edit)
        return jnp.sum(y**2), (y, outputs)

    got = jax.jit(jax.grad(functools.partial(total, spread), has_aux=True))(state)
    want = jax.jit(jax.grad(functools.partial(total, local), has_aux=True))(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
