"""`Gate`, `MoE`, `FeedForward` against loops, under transformations, and with bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, RoutingEdit, dropped, expert_counts, update_selection_bias
from moe_jax.layers import ExpertOptions, FeedForward, Gate, MoE, SelectionBias
from tests.layers.oracle import D, E, F, T, X, array, dense, loop, make


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"gate": {"k": 1, "capacity": 2}, "glu": False, "activation": "relu"},
        {"gate": {"choice": "expert"}},
        {"gate": {"k": 3, "score": "sigmoid", "renormalise": True, "scale": 2.5}, "glu": False},
    ],
    ids=["default", "switch", "expert_choice", "sigmoid"],
)
def test_matches_the_loop(kwargs):
    moe = make(**kwargs)
    y, routing = jax.jit(lambda x: moe(x))(X)
    np.testing.assert_allclose(y, loop(moe, X, routing), rtol=1e-5, atol=1e-6)
    assert y.dtype == jnp.float32
    alone = moe.gate(array(X))
    np.testing.assert_array_equal(alone.expert, routing.expert)


def test_dropped_tokens_get_zero_and_are_counted():
    moe = make(gate={"k": 1, "capacity": 1})
    y, routing = moe(array(X))
    lost = np.asarray(routing.expert)[:, 0] == E
    assert int(dropped(routing)) == lost.sum() >= T - E
    assert not np.any(np.asarray(y)[lost])
    assert np.all(np.any(np.asarray(y)[~lost], axis=1))
    assert int(expert_counts(routing).max()) == 1


def test_gradients_match_the_dense_sum():
    moe = make(gate={"renormalise": True})
    graphdef, params = nnx.split(moe, nnx.Param)
    cotangent = np.random.default_rng(1).normal(size=(T, D)).astype(np.float32)

    def sparse(params, x):
        return jnp.sum(nnx.merge(graphdef, params)(x)[0] * cotangent)

    def plain(params, x):
        return jnp.sum(dense(params, x, moe.gate.config) * cotangent)

    arrays = {
        "router": moe.gate.w_de[...],
        "in": moe.w_in_edf[...],
        "gate": moe.w_gate_edf[...],
        "out": moe.w_out_efd[...],
    }
    got, got_x = jax.jit(jax.grad(sparse, (0, 1)))(params, X)
    expected, expected_x = jax.jit(jax.grad(plain, (0, 1)))(arrays, X)
    np.testing.assert_allclose(got_x, expected_x, rtol=1e-4, atol=1e-5)
    for a, b in (
        (got["gate"]["w_de"], expected["router"]),
        (got["w_in_edf"], expected["in"]),
        (got["w_gate_edf"], expected["gate"]),
        (got["w_out_efd"], expected["out"]),
    ):
        assert np.any(np.asarray(b))
        np.testing.assert_allclose(a[...], b, rtol=1e-4, atol=1e-5)


def test_leading_axes_are_flattened_in_order():
    moe = make()
    y, routing = moe(array(X))
    shaped, same = moe(array(X).reshape(2, 3, 2, D))
    np.testing.assert_array_equal(shaped.reshape(T, D), y)
    np.testing.assert_array_equal(same.expert, routing.expert)
    single, _ = moe(array(X[0]))
    np.testing.assert_allclose(single, y[0], rtol=1e-5, atol=1e-6)
    empty, nobody = moe(jnp.zeros((2, 0, D)))
    assert empty.shape == (2, 0, D)
    assert nobody.expert.shape == (0, 2)


def test_split_merge_jit_and_no_stored_state():
    moe = make(selection_bias=True, router_bias=True, d_shared=3, shared_gate=True)
    graphdef, state = nnx.split(moe)
    traces = []

    @jax.jit
    def go(state, x):
        traces.append(1)
        return nnx.merge(graphdef, state)(x)

    first, again = go(state, X), go(jax.tree.map(lambda a: a + 0, state), X)
    assert len(traces) == 1
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    before = jax.tree.leaves(state)
    moe(array(X))
    for a, b in zip(before, jax.tree.leaves(nnx.split(moe)[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert hash(graphdef) == hash(
        nnx.split(make(selection_bias=True, router_bias=True, d_shared=3, shared_gate=True))[0]
    )


def test_vmap_over_inputs_and_over_edits():
    moe = make()
    batch = jnp.stack([array(X), array(X[::-1])])
    y, _ = jax.jit(jax.vmap(lambda x: moe(x)))(batch)
    np.testing.assert_allclose(y[0], moe(array(X))[0], rtol=1e-5, atol=1e-6)

    config = moe.gate.config
    edits = [
        RoutingEdit.identity(config),
        RoutingEdit.make(config, suppress=[0]),
        RoutingEdit.make(config, zero=[0, 1, 2, 3]),
        RoutingEdit.make(config, permute=[1, 2, 3, 0]),
    ]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *edits)
    ys, routings = jax.jit(jax.vmap(lambda edit: moe(array(X), edit=edit)))(stacked)
    np.testing.assert_allclose(ys[0], moe(array(X))[0], rtol=1e-5, atol=1e-6)
    assert not np.any(ys[2])
    assert not np.any(np.asarray(routings.expert[1]) == 0)
    for i in range(4):
        one = jax.tree.map(lambda a, i=i: a[i], routings)
        np.testing.assert_allclose(ys[i], loop(moe, X, one), rtol=1e-5, atol=1e-6)


def test_identity_edit_leaves_the_output_bitwise():
    moe = make(gate={"capacity_factor": 1.0})
    go = jax.jit(lambda x, edit: moe(x, edit=edit)[0])
    plain, same = go(X, None), go(X, RoutingEdit.identity(moe.gate.config))
    assert np.asarray(plain).tobytes() == np.asarray(same).tobytes()


def test_shared_expert():
    moe = make(d_shared=7, shared_gate=True)
    y, routing = moe(array(X))
    extra = np.asarray(y) - loop(moe, X, routing)
    np.testing.assert_allclose(extra, 0.5 * moe.shared(array(X)), rtol=1e-4, atol=1e-5)
    moe.shared_gate_d[...] = jnp.arange(D, dtype=jnp.float32)
    y, _ = moe(array(X))
    extra = np.asarray(y) - loop(moe, X, routing)
    opened = 1 / (1 + np.exp(-X @ np.arange(D)))
    np.testing.assert_allclose(extra, opened[:, None] * moe.shared(array(X)), rtol=1e-3, atol=1e-5)
    ungated = make(d_shared=7)
    y, routing = ungated(array(X))
    np.testing.assert_allclose(
        y, loop(ungated, X, routing) + ungated.shared(array(X)), rtol=1e-5, atol=1e-5
    )


def test_recompute_keeps_no_hidden_states():
    """Same values and gradients; what the backward pass keeps lacks [t k f] arrays."""
    wide, x = 64, jnp.asarray(X)

    def run(recompute):
        graph, state = nnx.split(
            make(d_expert=wide, gate={"k": 2}, options=ExpertOptions(recompute=recompute))
        )

        def function(state, x):
            return jnp.sum(nnx.merge(graph, state)(x)[0] ** 2)

        value, pull = jax.vjp(function, state, x)
        kept = sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))
        return value, pull(jnp.ones(())), kept

    (value, grads, kept), (again, same, fewer) = run(False), run(True)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for got, want in zip(*map(jax.tree.leaves, (same, grads)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert kept - fewer >= 2 * T * 2 * wide


@pytest.mark.parametrize("glu", [True, False])
def test_feed_forward(glu):
    block = FeedForward(D, F, glu=glu, activation="relu", rngs=nnx.Rngs(1))
    h = X @ np.asarray(block.w_in_df[...])
    gate = X @ np.asarray(block.w_gate_df[...]) if glu else h
    h = np.maximum(gate, 0) * h if glu else np.maximum(h, 0)
    np.testing.assert_allclose(block(array(X)), h @ block.w_out_fd[...], rtol=1e-5, atol=1e-6)


def test_padding_takes_no_room():
    moe = make(gate={"k": 1, "capacity": 2})
    real = np.arange(T) % 2 == 1
    dirty = np.where(real[:, None], X, np.float32(1e6))
    go = jax.jit(lambda x, where: moe(x, where=where))
    y, routing = go(dirty.reshape(2, 6, D), real.reshape(2, 6))
    alone, only = jax.jit(lambda x: moe(x))(X[real])
    np.testing.assert_array_equal(np.asarray(routing.expert)[real], only.expert)
    np.testing.assert_allclose(y.reshape(T, D)[real], alone, rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(y).reshape(T, D)[~real])
    other, _ = go(np.where(real[:, None], X, 0).reshape(2, 6, D), real.reshape(2, 6))
    np.testing.assert_array_equal(y, other)


def test_segments_have_their_own_capacity():
    moe = make(gate={"k": 1, "capacity": 1})
    x = jnp.tile(array(X[:1]), (6, 1)).reshape(2, 3, D)
    segments = jnp.broadcast_to(jnp.arange(2)[:, None], (2, 3))
    assert int(dropped(moe(x)[1])) == 5
    assert int(dropped(moe(x, segments=segments)[1])) == 4


def test_dtypes():
    moe = make(d_shared=3, dtype=jnp.bfloat16)
    y, routing = moe(array(X))
    assert y.dtype == jnp.float32
    full, same = make(d_shared=3)(array(X))
    np.testing.assert_array_equal(routing.weight, same.weight)
    np.testing.assert_allclose(y, full, rtol=0.1, atol=0.05)
    assert np.any(np.asarray(y) != full)
    low, routing = make()(array(X).astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert routing.logits.dtype == routing.weight.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(moe, nnx.Param)))


def test_initial_scales():
    moe = MoE(64, 256, GateConfig(num_experts=16, k=2), router_bias=True, rngs=nnx.Rngs(0))
    for w, fan_in in ((moe.w_in_edf, 64), (moe.w_gate_edf, 64), (moe.w_out_efd, 256)):
        assert float(jnp.std(w[...])) == pytest.approx(fan_in**-0.5, rel=0.02)
        assert float(jnp.std(w[3])) == pytest.approx(fan_in**-0.5, rel=0.05), "of each expert"
    assert float(jnp.std(moe.gate.w_de[...])) == pytest.approx((0.1 / 64) ** 0.5, rel=0.1)
    assert not np.any(moe.gate.b_e[...])
    assert np.any(np.asarray(moe.w_in_edf[0]) != np.asarray(moe.w_in_edf[1]))
    same, other = make(seed=1), make(seed=2)
    np.testing.assert_array_equal(same.w_in_edf[...], make(seed=1).w_in_edf[...])
    assert np.any(np.asarray(same.w_in_edf[...]) != other.w_in_edf[...])


def test_selection_bias_is_state_not_a_parameter():
    moe = make(gate={"k": 1, "score": "sigmoid"}, selection_bias=True)
    params = nnx.state(moe, nnx.Param)
    assert "selection_bias_e" not in params["gate"]
    assert isinstance(moe.gate.selection_bias_e, SelectionBias)
    moe.gate.selection_bias_e[...] = jnp.array([0.0, 9.0, 0.0, 0.0])
    _, routing = moe(array(X))
    assert expert_counts(routing).tolist() == [0, T, 0, 0]
    assert float(routing.weight.max()) < 1
    moe.gate.selection_bias_e[...] = update_selection_bias(
        moe.gate.selection_bias_e[...], expert_counts(routing), rate=1.0
    )
    assert moe.gate.selection_bias_e[...].tolist() == [1, 8, 1, 1]


def test_noise_is_off_in_eval_mode(key):
    moe = make(gate={"jitter": 0.2, "learned_noise": True, "topk_first": True})
    with pytest.raises(ValueError, match=r"jitter=0.2 needs a key: pass key=\.\.\., or be determ"):
        moe(array(X))
    noisy, routing = moe(array(X), key=key)
    np.testing.assert_array_equal(noisy, moe(array(X), key=key)[0])
    assert np.any(np.asarray(routing.logits) != moe(array(X), key=jax.random.key(1))[1].logits)
    gradient = jax.grad(lambda g: jnp.sum(g(array(X), key=key).weight[:, 0]))(moe.gate)
    assert np.any(np.asarray(gradient.w_noise_de[...]))
    moe.eval()
    quiet, calm = moe(array(X))
    np.testing.assert_allclose(
        calm.logits, X @ np.asarray(moe.gate.w_de[...]), rtol=1e-5, atol=1e-6
    )
    assert np.any(np.asarray(quiet) != noisy)
    moe.train()
    np.testing.assert_array_equal(moe(array(X), key=key)[0], noisy)


def test_gate_keeps_its_own_config():
    config = GateConfig(num_experts=E, k=1)
    gate = Gate(D, config, use_bias=True, rngs=nnx.Rngs(0))
    config.k = 3
    assert gate(array(X)).expert.shape == (T, 1)
    gate.b_e[...] = jnp.array([0.0, 0.0, 50.0, 0.0])
    assert expert_counts(gate(array(X))).tolist() == [0, 0, T, 0]


def test_second_derivatives_by_the_reference_and_one_sentence_elsewhere():
    # In bfloat16, with a shared expert; against all experts by einsum in float32.
    moe = make(
        gate={"renormalise": True}, dtype=jnp.bfloat16, options=ExpertOptions(backend="reference")
    )
    graphdef, params = nnx.split(moe, nnx.Param)
    x = array(X)[:2]
    arrays = {
        "router": moe.gate.w_de[...],
        "in": moe.w_in_edf[...],
        "gate": moe.w_gate_edf[...],
        "out": moe.w_out_efd[...],
    }
    got = jax.jit(jax.hessian(lambda x: jnp.sum(nnx.merge(graphdef, params)(x)[0] ** 2)))(x)
    want = jax.jit(jax.hessian(lambda x: jnp.sum(dense(arrays, x, moe.gate.config) ** 2)))(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=0.05 * np.abs(want).max())
    other = make(gate={"renormalise": True}, dtype=jnp.bfloat16)
    for asked in (jax.hessian, jax.jacfwd):
        with pytest.raises(ValueError, match="has first derivatives in reverse mode only"):
            asked(lambda x: jnp.sum(other(x)[0] ** 2))(x)


@pytest.mark.mesh
@pytest.mark.parametrize(
    "gate",
    [
        {"renormalise": True},
        {"capacity_factor": 0.6, "priority": "score"},
        {"choice": "expert"},
        {"noise_std": 1.0, "jitter": 0.1},
    ],
    ids=["dropless", "capacity", "expert_choice", "noise"],
)
@pytest.mark.parametrize("sharded", ["tokens", "tokens and parameters"])
def test_on_a_mesh_as_on_one_device(gate, sharded, key):
    moe = make(gate=gate, d_shared=4, shared_gate=True)
    graphdef, params = nnx.split(moe)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(8, 3, D)), jnp.float32)
    edit = RoutingEdit.identity(moe.gate.config)
    edit = edit._replace(zero=edit.zero.at[..., 1].set(True), stand_in=jnp.ones((E, D)))

    def results(params, x):
        def value(params, x, edit=None):
            y, routing = nnx.merge(graphdef, params)(x, key=key, edit=edit)
            return jnp.sum(y**2), (y, routing, expert_counts(routing), dropped(routing))

        (_, out), grads = jax.value_and_grad(value, (0, 1), has_aux=True)(params, x)
        return out, grads, value(params, x, edit)[1]

    def put(a, *axes):
        return jax.device_put(a, jax.NamedSharding(mesh, jax.P(*axes)))

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    want = jax.jit(results)(params, x)
    own = params
    if sharded != "tokens":
        own = jax.tree.map(
            lambda a: put(a, *(None,) * (a.ndim - 1), "model") if a.shape[-1:] == (D,) else a,
            params,
        )
    got = jax.jit(results)(own, put(x, "data"))
    assert jax.typeof(got[0][0]).sharding.spec[0] == "data"
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    y = nnx.merge(graphdef, own)(put(x, "data"), key=key)[0]
    np.testing.assert_allclose(y, want[0][0], rtol=1e-4, atol=1e-5)


def test_trains():
    """A few steps of gradient descent lower a loss; the router moves too."""
    moe = make(gate={"renormalise": True})
    graphdef, params = nnx.split(moe, nnx.Param)
    target = np.random.default_rng(5).normal(size=(T, D)).astype(np.float32)

    @jax.jit
    def step(params):
        def loss(params):
            return jnp.mean((nnx.merge(graphdef, params)(array(X))[0] - target) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)

    values = []
    for _ in range(60):
        value, params = step(params)
        values.append(float(value))
    assert values[-1] < 0.6 * values[0]
    assert np.any(np.asarray(params["gate"]["w_de"][...]) != moe.gate.w_de[...])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"activation": "swish"}, "activation='swish': must be one of"),
        ({"shared_gate": True}, "shared_gate=True needs d_shared"),
        ({"d_shared": 0}, "d_hidden=0: must be at least 1"),
        ({"gate": {"k": 5}}, "k=5: must be at most num_experts=4"),
        ({"d_expert": 0}, "d_expert=0: must be at least 1"),
        ({"options": ExpertOptions(backend="cuda")}, "options.backend='cuda': must be one of"),
        ({"options": ExpertOptions(exchange="mail")}, "options.exchange='mail': must be one of"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        make(**kwargs)


def test_wrong_width():
    with pytest.raises(ValueError, match="x has width 7, the layer has d_model=6"):
        make()(jnp.zeros((2, 7)))
