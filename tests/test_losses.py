"""The losses against float64 loops, hand-worked values, corners, padding and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from moe_jax import losses

B, S, K, D = 3, 5, 4, 6


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def draw(seed, shape=(B, S)):
    """Gate probabilities, states, reconstructions, and a mask with an empty sentence."""
    rng = np.random.default_rng(seed)
    probs = softmax(2 * rng.normal(size=(*shape, K)))
    states, decoded = rng.normal(size=(2, *shape, D))
    where = rng.random(shape) < 0.7
    where[0] = True
    where[-1] = False
    return probs, states, decoded, where


def slow_token_reconstruction(states, decoded, where):
    return [
        sum(np.sum((states[b, i] - decoded[b, i]) ** 2) for i in range(S) if where[b, i])
        for b in range(B)
    ]


def slow_entropy(probs, where):
    return [
        -sum(p * math.log(p) for i in range(S) if where[b, i] for p in probs[b, i] if p > 0)
        for b in range(B)
    ]


def slow_overlap(probs, where):
    out = []
    for b in range(B):
        pairs = [
            sum(probs[b, i, k] * probs[b, i, j] for j in range(K) for k in range(j))
            for i in range(S)
            if where[b, i]
        ]
        out.append(sum(pairs) / max(len(pairs), 1))
    return out


def slow_balance(tokens):
    """Of the rows of the tokens that are real."""
    if not len(tokens):
        return 0.0
    return sum((np.mean([row[k] for row in tokens]) - 1 / K) ** 2 for k in range(K))


def slow_diversity(factors):
    out = []
    for z in factors:
        total = 0.0
        for k in range(K):
            for j in range(K):
                total += (float(z[k] @ z[j]) - (k == j)) ** 2
        out.append(total)
    return out


@jax.jit
def everything(probs, states, decoded, where):
    """All masked losses in one compilation."""
    flat, mask = probs.reshape(-1, K), where.reshape(-1)
    expert = jnp.argsort(-flat, axis=1)[:, :2]
    return {
        "token": losses.token_reconstruction(states, decoded, where=where),
        "entropy": losses.entropy(probs, where=where),
        "overlap": losses.overlap(probs, where=where),
        "balance": losses.load_balance(probs, where=where),
        "balance_batch": losses.load_balance(probs, where=where, over="batch"),
        "switch": losses.switch_balance(flat, expert, where=mask),
        "z": losses.router_z(states, where=where),
    }


everything_gradient = jax.jit(
    jax.grad(
        lambda probs, states, decoded, where: sum(
            jnp.sum(value) for value in everything(probs, states, decoded, where).values()
        ),
        (0, 1, 2),
    )
)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_match_float64_loops(seed):
    probs, states, decoded, where = draw(seed)
    got = everything(*(a.astype(np.float32) for a in (probs, states, decoded)), where)
    real = probs[where]
    switch = np.zeros(K)
    for row in real:
        switch[np.argsort(-row)[:2]] += 1 / (2 * len(real))
    z = [[math.log(sum(np.exp(h))) ** 2 for h in sentence] for sentence in states] * where
    expected = {
        "token": slow_token_reconstruction(states, decoded, where),
        "entropy": slow_entropy(probs, where),
        "overlap": slow_overlap(probs, where),
        "balance": [slow_balance(probs[b][where[b]]) for b in range(B)],
        "balance_batch": slow_balance(real),
        "switch": K * switch @ real.mean(0),
        "z": z,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_match_float64_loops_without_a_mask():
    probs, states, decoded, _ = draw(1)
    everyone = np.ones((B, S), bool)
    p = jnp.asarray(probs, jnp.float32)
    h, g = jnp.asarray(states, jnp.float32), jnp.asarray(decoded, jnp.float32)
    for got, expected in (
        (losses.token_reconstruction(h, g), slow_token_reconstruction(states, decoded, everyone)),
        (losses.entropy(p), slow_entropy(probs, everyone)),
        (losses.overlap(p), slow_overlap(probs, everyone)),
        (losses.load_balance(p), [slow_balance(probs[b]) for b in range(B)]),
        (losses.load_balance(p, over="batch"), slow_balance(probs.reshape(-1, K))),
        (losses.sentence_reconstruction(h[0], g[0]), np.sum((states - decoded)[0] ** 2, -1)),
        (losses.diversity(h[:, :K]), slow_diversity(states[:, :K])),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_hand_worked_values():
    half = jnp.array([[[0.5, 0.5], [1.0, 0.0]]])
    assert float(losses.entropy(half)[0]) == pytest.approx(math.log(2))
    assert float(losses.overlap(half)[0]) == pytest.approx(0.25 / 2)
    assert float(losses.load_balance(half)[0]) == pytest.approx(2 * 0.25**2)
    uniform = jnp.full((1, 3, 4), 0.25)
    assert float(losses.entropy(uniform)[0]) == pytest.approx(3 * math.log(4))
    assert float(losses.overlap(uniform)[0]) == pytest.approx((4 - 1) / (2 * 4))
    assert float(losses.load_balance(uniform)[0]) == 0
    # Z^T Z = [[1, 1], [1, 2]], minus I: [[0, 1], [1, 1]].
    factors = jnp.array([[[1.0, 0.0], [1.0, 1.0]]])
    assert float(losses.diversity(factors)[0]) == 3
    assert float(losses.diversity(jnp.eye(3, 5)[None])[0]) == 0
    assert (
        float(losses.sentence_reconstruction(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))[0])
        == 5
    )
    assert losses.router_z(jnp.zeros((2, 4))).tolist() == pytest.approx([math.log(4) ** 2] * 2)


def test_switch_balance():
    balanced = jnp.full((4, 4), 0.25)
    one_each = jnp.arange(4)[:, None]
    assert float(losses.switch_balance(balanced, one_each)) == 1
    two_each = jnp.stack([jnp.arange(4), (jnp.arange(4) + 1) % 4], axis=1)
    assert float(losses.switch_balance(balanced, two_each)) == 1, "1 at balance for any k"
    collapsed = jnp.tile(jnp.array([[1.0, 0, 0, 0]]), (4, 1))
    assert float(losses.switch_balance(collapsed, jnp.zeros((4, 1), int))) == 4
    dropped = jnp.array([[0], [0], [4], [4]])
    assert float(losses.switch_balance(collapsed, dropped)) == 2, "dropped ones count nowhere"
    # The gradient is E f_e / T: it pushes down what is overloaded.
    gradient = jax.grad(lambda p: losses.switch_balance(p, jnp.array([[0], [0], [0], [1]])))(
        balanced
    )
    np.testing.assert_allclose(gradient, np.tile([[0.75, 0.25, 0, 0]], (4, 1)), rtol=1e-6)
    nothing = losses.switch_balance(balanced, one_each, where=jnp.zeros(4, bool))
    assert float(nothing) == 0


def test_batch_balance_lets_sentences_specialise():
    specialised = jnp.stack([jnp.tile(row, (S, 1)) for row in jnp.eye(K)])
    assert float(losses.load_balance(specialised, over="batch")) == 0
    assert float(losses.load_balance(specialised).min()) == pytest.approx(0.75)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_is_invisible(garbage):
    """Bit for bit the same values and gradients, whatever padding holds."""
    probs, states, decoded, where = draw(3)
    arrays = [a.astype(np.float32) for a in (probs, states, decoded)]
    dirty = [np.where(where[..., None], a, np.float32(garbage)) for a in arrays]
    clean, got = everything(*arrays, where), everything(*dirty, where)
    for name in clean:
        np.testing.assert_array_equal(clean[name], got[name], err_msg=name)
    for a, b in zip(
        everything_gradient(*arrays, where), everything_gradient(*dirty, where), strict=True
    ):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(a))
        assert not np.any(np.asarray(a)[~where])


def test_padding_may_be_cut_off():
    """A padded batch of one sentence gives what the sentence alone gives."""
    probs, states, decoded, _ = (
        a.astype(np.float32) if a.dtype != bool else a for a in draw(4, (1, S))
    )
    pad = [(0, 0), (0, 7), (0, 0)]
    where = np.pad(np.ones((1, S), bool), pad[:2])
    long = everything(*(np.pad(a, pad) for a in (probs, states, decoded)), where)
    short = everything(probs, states, decoded, np.ones((1, S), bool))
    for name, value in short.items():
        got = long[name][:, :S] if name == "z" else long[name]
        np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("shape", [(2, 1), (1, 4)], ids=["one token", "one sentence"])
@pytest.mark.parametrize("kind", ["one-hot", "uniform", "empty", "one expert", "underflow"])
def test_corners_are_finite(kind, shape):
    experts = 1 if kind == "one expert" else K
    probs = np.zeros((*shape, experts), np.float32)
    probs[..., 0] = 1
    where = np.full(shape, kind != "empty")
    if kind == "uniform":
        probs[:] = 1 / K
    if kind == "underflow":
        probs[..., 1] = 1e-45  # the smallest subnormal
    expert = jnp.zeros((shape[0] * shape[1], 1), int)

    def total(probs, states):
        flat = probs.reshape(-1, experts)
        factors = jnp.einsum("bse,bsd->bed", probs, states)
        return (
            losses.entropy(probs, where=where).sum(),
            losses.overlap(probs, where=where).sum(),
            losses.load_balance(probs, where=where).sum(),
            losses.load_balance(probs, where=where, over="batch"),
            losses.diversity(factors).sum(),
            losses.token_reconstruction(states, states, where=where).sum(),
            losses.switch_balance(flat, expert, where=where.reshape(-1)),
        )

    where = jnp.asarray(where)
    states = jnp.zeros((*shape, D))
    values = jax.jit(total)(probs, states)
    gradient = jax.jit(jax.jacrev(total, (0, 1)))(probs, states)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((values, gradient)))
    if kind in ("one-hot", "one expert", "empty"):
        assert [float(v) for v in values[:2]] == [0, 0]
    if kind in ("uniform", "one expert", "empty"):
        assert [float(v) for v in values[2:4]] == [0, 0]
    if kind == "empty":
        # All but diversity, which has no mask.
        assert float(values[-1]) == 0
        assert not any(np.any(leaf) for i in (0, 1, 2, 3, 5, 6) for leaf in gradient[i])


def test_entropy_through_a_saturated_softmax():
    """The logits' gradient at a one-hot gate is the limit, 0."""
    gradient = jax.grad(lambda z: losses.entropy(jax.nn.softmax(z)).sum())(
        jnp.array([[[200.0, 0.0, -200.0]]])
    )
    assert gradient.tolist() == [[[0, 0, 0]]]


def test_gradients():
    """Against finite differences in float64 (which the losses keep)."""
    probs, states, decoded, where = draw(7, (2, 3))
    where[-1, 0] = True
    with jax.enable_x64(True):
        probs, states, decoded = (jnp.asarray(a) for a in (probs, states, decoded))
        where = jnp.asarray(where)
        flat, expert = where.reshape(-1), jnp.argmax(probs, axis=-1).reshape(-1, 1)
        for loss, arrays in (
            (lambda p: losses.entropy(p, where=where), (probs,)),
            (lambda p: losses.overlap(p, where=where), (probs,)),
            (lambda p: losses.load_balance(p, where=where), (probs,)),
            (lambda p: losses.load_balance(p, where=where, over="batch"), (probs,)),
            (lambda h, g: losses.token_reconstruction(h, g, where=where), (states, decoded)),
            (losses.sentence_reconstruction, (states[0], decoded[0])),
            (losses.diversity, (states,)),
            (lambda z: losses.router_z(z, where=where), (states,)),
            (lambda p: losses.switch_balance(p.reshape(-1, K), expert, where=flat), (probs,)),
        ):
            total = jax.jit(lambda *a, loss=loss: jnp.sum(loss(*a)))
            assert total(*arrays).dtype == jnp.float64
            check_grads(total, arrays, order=1, eps=1e-5, atol=1e-6, rtol=1e-6)


def test_low_precision_is_lifted():
    probs, states, decoded, where = draw(2)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (probs, states, decoded)]
    a = everything(*low, where)
    b = everything(*(x.astype(jnp.float32) for x in low), where)
    for name in a:
        assert a[name].dtype == jnp.float32
        np.testing.assert_array_equal(a[name], b[name])
    assert losses.diversity(low[1]).dtype == jnp.float32


def test_weighted_sum():
    terms = {
        "sentence": jnp.array([1.0, 3.0]),
        "entropy": jnp.array([4.0]),
        "balance": jnp.array(0.5),
    }
    weights = {"token": 0.0, "entropy": 0.25, "sentence": 2.0, "balance": 0.0}
    total, means = losses.weighted_sum(terms, weights)
    assert float(total) == 2 * 2 + 0.25 * 4
    shown = {"entropy": 4.0, "sentence": 2.0, "balance": 0.5}
    assert [(name, float(mean)) for name, mean in means.items()] == list(shown.items())
    # A term of weight 0 is shown, and can't spoil the sum or its gradient.
    terms["balance"] = jnp.array(jnp.inf)
    assert float(losses.weighted_sum(terms, weights)[0]) == 5
    gradient = jax.grad(lambda t: losses.weighted_sum(t, weights)[0])(terms)
    assert gradient["sentence"].tolist() == [1, 1]
    assert gradient["balance"].tolist() == 0
    assert float(losses.weighted_sum({}, {"sentence": 0.0})[0]) == 0


def test_a_weighted_sum_is_taken_in_the_order_of_the_weights():
    # In float32 1e8 + 1 - 1e8 is 0, and 1e8 - 1e8 + 1 is 1.
    terms = {"one": jnp.array(1.0), "less": jnp.array(-1e8), "more": jnp.array([1e8])}
    weights = {"more": 1.0, "one": 1.0, "less": 1.0}
    assert float(losses.weighted_sum(terms, weights)[0]) == 0
    weights = {"more": 1.0, "less": 1.0, "one": 1.0}
    assert float(losses.weighted_sum(terms, weights)[0]) == 1


def test_bad_weights():
    with pytest.raises(ValueError, match=r"^terms has \['balanse'\], which weights lacks: it has"):
        losses.weighted_sum({"sentence": jnp.ones(1), "balanse": jnp.ones(1)}, {"sentence": 1.0})
    with pytest.raises(ValueError, match=r"^weights\['token'\]=0.5, but terms lacks 'token'$"):
        losses.weighted_sum({"sentence": jnp.ones(1)}, {"sentence": 1.0, "token": 0.5})


def test_bad_over(monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match='over="token" is unknown: use "sentence" or "batch"'):
        losses.load_balance(jnp.ones((1, 1, 1)), over="token")
