"""`route` against float64 loops, its invariants, corners, gradients and errors."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from moe_jax.errors import UserError
from moe_jax.gating import (
    GateConfig,
    dropped,
    expert_counts,
    gate_logits,
    route,
    update_selection_bias,
)
from moe_jax.gating.choice import _capacity
from tests.gating import oracle as gating_oracle

T, E = 12, 8
GATES = {
    "softmax": {},
    "topk_first": {"topk_first": True},
    "renormalised": {"renormalise": True, "k": 3, "temperature": 0.7, "scale": 1.5},
    "sigmoid": {"score": "sigmoid", "renormalise": True, "renormalise_eps": 0.1, "scale": 2.5},
    "sigmoid_topk_first": {"score": "sigmoid", "topk_first": True, "k": 1},
    "groups_max": {"num_groups": 4, "groups_kept": 2, "k": 3},
    "groups_top2": {
        **{"num_groups": 2, "groups_kept": 1, "group_score": "top2_sum"},
        **{"score": "sigmoid", "k": 3},
    },
    "switch": {"k": 1, "capacity": 2},
    "gshard": {"renormalise": True, "capacity_factor": 1.0},
    "prioritised": {"capacity_factor": 0.75, "priority": "score"},
    "expert_choice": {"choice": "expert"},
    "expert_choice_wide": {"choice": "expert", "capacity": 5, "renormalise": True},
    "dense": {"k": E},
}


def make(name):
    return GateConfig(num_experts=E, **{"k": 2, **GATES[name]})


@functools.cache
def compiled(name):
    """One compilation for each gate."""
    return jax.jit(lambda z, **arrays: route(z, make(name), **arrays))


NO_BIAS = np.zeros(E, np.float32)  # so that the tests share one compilation for each gate


def normal(seed, shape=(T, E)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pairs(routing):
    """{(token, expert): weight}."""
    experts = routing.probs.shape[1]
    return {
        (t, int(e)): float(w)
        for t, row in enumerate(np.asarray(routing.expert))
        for e, w in zip(row, np.asarray(routing.weight)[t], strict=True)
        if e < experts
    }


@pytest.mark.parametrize("name", GATES)
@settings(max_examples=15, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_matches_float64_loops(name, seed):
    config = make(name)
    z, bias = 2 * normal(seed), 0.1 * normal(seed + 1, (E,))
    got = compiled(name)(z, bias=bias)
    expected = gating_oracle.gate(z, config, bias=bias)
    assert pairs(got) == pytest.approx(expected, rel=1e-5)
    probs = np.stack([gating_oracle.scores(row, config) for row in z])
    np.testing.assert_allclose(got.probs, probs, rtol=2e-6)
    np.testing.assert_array_equal(got.logits, z)
    assert int(dropped(got)) == T * config.slots - len(expected)
    np.testing.assert_array_equal(
        expert_counts(got), np.bincount([e for _, e in expected], minlength=E)
    )


@pytest.mark.parametrize("name", ["switch", "gshard", "prioritised"])
@settings(max_examples=15, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_capacity_by_segment_matches_loops(name, seed):
    z = 2 * normal(seed)
    # Any integers, in any order, of uneven size.
    segments = np.random.default_rng(seed).choice([-7, 3, 4, 10**9], size=T, p=[0.1, 0.3, 0.2, 0.4])
    segments = segments.astype(np.int32)
    expected = gating_oracle.gate(z, make(name), segments=segments)
    assert pairs(compiled(name)(z, segments=segments)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", GATES)
@settings(max_examples=10, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_invariants(name, seed):
    config = make(name)
    got = compiled(name)(3 * normal(seed), bias=NO_BIAS)
    expert, weight = np.asarray(got.expert), np.asarray(got.weight)
    there = expert < E
    assert expert.shape == weight.shape == (T, config.slots)
    assert np.all(weight[~there] == 0)
    assert np.all(weight >= 0)
    assert np.all((expert >= 0) & (expert <= E))
    for row, ok in zip(expert, there, strict=True):
        assert len(set(row[ok])) == ok.sum(), "an expert twice for one token"
    if config.choice == "token":
        assert np.all(np.diff(weight[np.all(there, axis=1)], axis=1) <= 0), "best first"
    if config.score == "softmax":
        np.testing.assert_allclose(np.sum(got.probs, axis=1), 1, rtol=1e-6)
        if config.dropless and (config.topk_first or config.renormalise or config.k == E):
            np.testing.assert_allclose(weight.sum(1), config.scale, rtol=1e-6)
    room = gating_oracle.capacity(config, T)
    assert np.all(np.asarray(expert_counts(got)) <= room)


@pytest.mark.parametrize("name", [n for n in GATES if "groups" not in n])
@settings(max_examples=8, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_permutation_of_experts(name, seed):
    z = 2 * normal(seed)
    order = np.random.default_rng(seed).permutation(E)
    plain = pairs(compiled(name)(z, bias=NO_BIAS))
    permuted = pairs(compiled(name)(z[:, order], bias=NO_BIAS))
    back = {(t, int(order[e])): w for (t, e), w in permuted.items()}
    assert back == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("topk_first", "groups_top2", "switch", "gshard"),
        *("prioritised", "expert_choice", "expert_choice_wide"),
    ],
)
def test_padding_is_invisible(name):
    """Real tokens are routed bit for bit the same whatever padding holds, or without it."""
    z = 2 * normal(5)
    alone = compiled(name)(z, where=np.ones(T, bool))
    real = np.zeros(T + 9, bool)
    real[np.random.default_rng(0).choice(T + 9, T, replace=False)] = True
    padded = np.full((T + 9, E), np.nan, np.float32)
    padded[real] = z
    got = compiled(name)(padded, where=real)
    other = compiled(name)(np.where(real[:, None], padded, 1e9), where=real)
    for a, b, c in zip(alone, got, other, strict=True):
        np.testing.assert_array_equal(b, c)
        # Another number of tokens may be vectorised in another way: the last bit of exp.
        np.testing.assert_allclose(a, np.asarray(b)[real], rtol=1e-6)
    np.testing.assert_array_equal(alone.expert, np.asarray(got.expert)[real])
    assert np.all(np.asarray(got.expert)[~real] == E)
    assert np.all(np.asarray(got.weight)[~real] == 0)
    assert int(dropped(got, where=jnp.asarray(real))) == int(dropped(alone))


def test_padding_has_no_gradient():
    real = np.arange(T) % 3 != 1
    z = np.where(real[:, None], normal(0), np.nan)

    def total(z):
        routings = [route(z, make(name), where=jnp.asarray(real)) for name in ("softmax", "gshard")]
        return sum(jnp.sum(routing.weight**2) for routing in routings)

    gradient = np.asarray(jax.jit(jax.grad(total))(z))
    assert np.all(gradient[~real] == 0)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[real].any(axis=1))


def test_padding_is_invisible_to_capacity_of_segments():
    z, segments = normal(6), np.repeat([0, 1], T // 2).astype(np.int32)
    real = np.arange(T) % 3 != 1
    alone = compiled("gshard")(z[real], segments=segments[real])
    got = compiled("gshard")(z, segments=segments, where=real)
    np.testing.assert_array_equal(alone.expert, np.asarray(got.expert)[real])


def test_ties_go_to_the_lowest_index():
    z = jnp.array([[1.0, 3.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-0.0, 0.0, -0.0, 0.0]])
    for fields in ({}, {"topk_first": True}, {"score": "sigmoid"}, {"score": "sparsemixer"}):
        got = route(z, GateConfig(num_experts=4, k=2, **fields))
        assert got.expert.tolist() == [[1, 2], [0, 1], [0, 1]]
    groups = GateConfig(num_experts=4, k=1, num_groups=2, groups_kept=1)
    assert route(z, groups).expert.tolist() == [[1], [0], [0]]


def test_logits_of_minus_infinity_are_not_available():
    z = jnp.array(
        [[-jnp.inf, 1.0, -jnp.inf, 2.0], [-jnp.inf] * 4, [-jnp.inf, 5.0, -jnp.inf, -jnp.inf]]
    )
    bias = jnp.array([9.0, 0, 9, 0])
    for fields in (
        *({}, {"topk_first": True}, {"renormalise": True}, {"score": "sigmoid"}),
        *({"score": "sparsemixer"}, {"num_groups": 2, "groups_kept": 2, "group_score": "top2_sum"}),
    ):
        config = GateConfig(num_experts=4, k=2, **fields)
        got = route(z, config, bias=bias)
        assert got.expert.tolist() == [[3, 1], [4, 4], [1, 4]]
        assert got.weight[1].tolist() == [0, 0]
        assert np.all(np.isfinite(got.probs))
        gradient = jax.grad(lambda z, c=config: jnp.sum(route(z, c, bias=bias).weight ** 2))(z)
        assert np.all(np.isfinite(gradient))


def test_saturated_scores():
    """Choosing by logits separates experts whose sigmoids are both 1.0 in float32."""
    z = jnp.array([[30.0, 40.0, -200.0]])
    config = GateConfig(num_experts=3, k=1, score="sigmoid", topk_first=True)
    assert route(z, config).expert.tolist() == [[1]]
    low = route(z[:, 2:], GateConfig(num_experts=1, k=1, score="sigmoid", renormalise=True))
    assert low.weight.tolist() == [[0.0]], "0/0 is weight 0"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_float32_whatever_the_input(dtype):
    z = jnp.asarray(normal(1)).astype(dtype)
    got, same = route(z, make("sigmoid")), route(z.astype(jnp.float32), make("sigmoid"))
    for a, b in zip(got, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert got.weight.dtype == got.probs.dtype == got.logits.dtype == jnp.float32
    assert got.expert.dtype == jnp.int32


@pytest.mark.parametrize("name", ["softmax", "gshard", "expert_choice", "groups_top2"])
def test_no_tokens(name):
    got = route(jnp.zeros((0, E)), make(name))
    assert got.expert.shape == (0, make(name).slots)
    assert int(dropped(got)) == 0
    assert expert_counts(got).tolist() == [0] * E


def test_vmap_and_jit_agree_with_plain_calls():
    z = jnp.stack([jnp.asarray(normal(i)) for i in range(2)])
    batched = jax.jit(jax.vmap(lambda z: route(z, make("gshard"))))(z)
    for i in range(2):
        for a, b in zip(batched, compiled("gshard")(z[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)
    for a, b in zip(route(z[1], make("gshard")), compiled("gshard")(z[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        *({"temperature": 0.5, "renormalise": True}, {"score": "sparsemixer"}),
        *({"choice": "expert"}, {"capacity": 1, "temperature": 2.0, "topk_first": True}),
    ],
)
def test_gradients(fields):
    z = jnp.asarray(normal(3, (3, 4)))
    config = GateConfig(num_experts=4, **{"k": 2, **fields})
    cotangent = jnp.asarray(normal(4, (3, config.slots)))
    check_grads(
        jax.jit(lambda z: jnp.sum(route(z, config).weight * cotangent)),
        (z,),
        order=1,
        eps=1e-3,
        atol=2e-3,
        rtol=2e-3,
    )


def test_selection_bias_has_no_gradient_and_no_weight():
    z = jnp.zeros((1, 4))
    config = GateConfig(num_experts=4, k=1)
    bias = jnp.array([0.0, 0.0, 5.0, 0.0])
    got = route(z, config, bias=bias)
    assert got.expert.tolist() == [[2]]
    assert got.weight.tolist() == [[0.25]]
    gradient = jax.grad(lambda b: jnp.sum(route(z, config, bias=b).weight))(bias)
    assert gradient.tolist() == [0, 0, 0, 0]


def test_update_selection_bias():
    got = update_selection_bias(jnp.array([0.5, 0.0, 0.0]), jnp.array([9, 3, 6]), rate=0.25)
    assert got.tolist() == [0.25, 0.25, 0.0]
    # It balances a router that sends everything to one expert.
    z = jnp.asarray(normal(0, (256, 4))) * 0.5 + jnp.array([[2.0, 0, 0, 0]])
    config = GateConfig(num_experts=4, k=1, score="sigmoid")

    def step(bias, _):
        return update_selection_bias(bias, expert_counts(route(z, config, bias=bias)), rate=0.01), 0

    bias = jax.lax.scan(step, jnp.zeros(4), None, length=200)[0]
    before, after = (expert_counts(route(z, config, bias=b)) for b in (jnp.zeros(4), bias))
    assert int(before.max()) > 230
    assert int(after.max()) < 80


def test_capacity_is_the_exact_ceiling():
    """ceil(factor k n / E) in integers, for every number of tokens."""
    for factor, k, experts in itertools.product(
        (0.5, 1.0, 1.05, 1.25, 1 / 3, 2.0), (1, 2, 6), (3, 8)
    ):
        config = GateConfig(num_experts=experts, k=min(k, experts), capacity_factor=factor)
        share = config.share()
        for tokens in (1, 5, 24, 97):
            expected = math.ceil(share * tokens)
            assert set(_capacity(tokens, config, None, None).tolist()) == {expected}
        assert share == pytest.approx(factor * config.k / experts, rel=1e-3)


def test_noise_needs_a_key(key):
    z = jnp.zeros((2000, 4))
    fixed = GateConfig(num_experts=4, k=1, noise_std=0.5)
    learned = GateConfig(num_experts=4, k=1, topk_first=True, learned_noise=True)
    with pytest.raises(ValueError, match=r"noise_std=0.5 needs a key: pass key=\.\.\., or determ"):
        route(z, fixed)
    with pytest.raises(ValueError, match="learned_noise=True needs a key"):
        route(z, learned, noise_logits=z)
    with pytest.raises(ValueError, match="learned_noise=True needs noise_logits"):
        route(z, learned, key=key)
    assert route(z, fixed, deterministic=True).logits.tolist() == z.tolist()

    noisy = route(z, fixed, key=key)
    assert float(jnp.std(noisy.logits)) == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(noisy.logits, route(z, fixed, key=key).logits)
    assert np.all(np.asarray(expert_counts(noisy)) > 400), "noise decides"

    level = jnp.broadcast_to(jnp.array([[-20.0, 0.0, 2.0, -20.0]]), z.shape)
    spread = jnp.std(route(z, learned, noise_logits=level, key=key).logits, axis=0)
    np.testing.assert_allclose(
        spread, [0, math.log(2), math.log1p(math.exp(2)), 0], rtol=0.05, atol=1e-6
    )
    gradient = jax.grad(lambda n: jnp.sum(route(z, learned, noise_logits=n, key=key).logits ** 2))(
        level
    )
    assert float(jnp.abs(gradient[:, 1]).sum()) > 0


def test_jitter_multiplies_the_input(key):
    x, w = jnp.ones((500, 3)), jnp.eye(3)
    plain = gate_logits(x, w)
    assert plain.tolist() == x.tolist()
    noisy = np.asarray(gate_logits(x, w, jitter=0.1, key=key))
    assert noisy.min() >= 0.9
    assert noisy.max() <= 1.1
    assert noisy.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
    with pytest.raises(ValueError, match=r"jitter=0.1 needs a key"):
        gate_logits(x, w, jitter=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 9}, "gate.k=9: must be at most gate.num_experts=8"),
        ({"k": 0}, "gate.k=0: must be at least 1"),
        ({"num_experts": 0}, "gate.num_experts=0: must be at least 1"),
        (
            {"score": "softmx"},
            "gate.score='softmx': must be one of softmax, sigmoid, sparsemixer",
        ),
        ({"choice": "x"}, "gate.choice='x': must be one of token, expert"),
        ({"priority": "x"}, "gate.priority='x': must be one of"),
        ({"group_score": "x"}, "gate.group_score='x': must be one of"),
        ({"temperature": 0.0}, "gate.temperature=0.0: must be more than 0"),
        ({"temperature": math.nan}, "gate.temperature=nan: must be a finite number, more than 0"),
        ({"scale": -1.0}, "gate.scale=-1.0: must be more than 0"),
        ({"jitter": 1.0}, "gate.jitter=1.0: must be at least 0 and less than 1"),
        ({"noise_std": -0.1}, "gate.noise_std=-0.1: must be at least 0"),
        ({"renormalise_eps": math.inf}, "gate.renormalise_eps=inf: must be a finite number"),
        ({"num_groups": 3}, "gate.num_groups=3: must divide gate.num_experts=8"),
        (
            {"num_groups": 2, "groups_kept": 3},
            "gate.groups_kept=3: must be from 1 to 2 (gate.num_groups)",
        ),
        (
            {"k": 5, "num_groups": 2},
            "gate.k=5: must be at most 4, the experts of gate.groups_kept=1",
        ),
        ({"num_groups": 8, "groups_kept": 8, "group_score": "top2_sum"}, "must have groups of 2"),
        ({"capacity": 0}, "gate.capacity=0: must be at least 1 (None: dropless)"),
        ({"capacity_factor": 0.0}, "gate.capacity_factor=0.0: must be at least 0.01"),
        (
            {"capacity": 1, "capacity_factor": 1.0},
            "gate.capacity=1: must be None beside gate.capacity_factor=1.0",
        ),
        ({"score": "sparsemixer", "topk_first": True}, "gate.topk_first=True: must be False"),
        ({"choice": "expert", "topk_first": True}, "gate.topk_first=True: must be False"),
        ({"choice": "expert", "num_groups": 2, "groups_kept": 2}, "gate.num_groups=2: must be 1"),
        ({"choice": "expert", "priority": "score"}, "gate.priority='score': must be"),
        ({"choice": "expert", "score": "sparsemixer"}, "needs gate.choice='token'"),
        ({"k": 2.0}, "gate.k=2.0: must be a whole number, at least 1"),
        ({"renormalise": 1}, "gate.renormalise=1: must be True or False"),
    ],
)
def test_bad_config(fields, message):
    config = GateConfig(num_experts=8, k=2)
    for name, value in fields.items():
        setattr(config, name, value)  # as a flag does
    with pytest.raises(UserError) as error:
        config.validate("gate")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        route(jnp.zeros((1, max(config.num_experts, 1))), config)


def test_bad_arguments(monkeypatch):
    # Users run without the type checker, which would speak first here.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    config = GateConfig(num_experts=4, k=1)
    z = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"logits have 3 experts, config.num_experts=4"):
        route(z[:, :3], config)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), config.num_experts=4"):
        route(z, config, bias=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"config.learned_noise=False"):
        route(z, config, noise_logits=z)
    with pytest.raises(ValueError, match=r'segments need config.choice="token"'):
        route(z, GateConfig(num_experts=4, choice="expert"), segments=jnp.zeros(2, int))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("groups", [1, 2])
def test_nan_logits_rank_last_and_show_in_the_weights(score, groups):
    nan, inf = np.nan, np.inf
    logits = np.asarray(
        [[1, nan, 3, 2], [nan, nan, nan, nan], [nan, -inf, 0, nan], [nan, 1, 1, 4]], np.float32
    )
    config = GateConfig(num_experts=4, k=2, score=score, num_groups=groups, groups_kept=groups)
    routing = route(jnp.asarray(logits), config)
    # An expert of -inf isn't available; one of NaN is, and comes last.
    np.testing.assert_array_equal(routing.expert, [[2, 3], [0, 1], [2, 0], [3, 1]])
    chosen = np.take_along_axis(logits, np.asarray(routing.expert), 1)
    right = np.full((4, 2), nan) if score == "softmax" else 1 / (1 + np.exp(-chosen))
    np.testing.assert_allclose(routing.weight, right, rtol=1e-6)
