"""The token-to-factor model against its equations, in float64 loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.rationale import ModelConfig, RationaleModel

D, TARGET, VOCAB, LENGTHS = 6, 5, 9, (7, 4, 1)
S = max(LENGTHS)
WHERE = np.arange(S)[None] < np.array(LENGTHS)[:, None]


def _inputs(seed=0):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(len(LENGTHS), S, D)).astype(np.float32)
    return states, rng.integers(0, VOCAB, (len(LENGTHS), S)).astype(np.int32)


def _model(seed=0, d_model=D, **changes):
    """A model with every parameter and statistic random."""
    config = ModelConfig(**({"num_factors": 4, "smoothing": "none", "words": 0.0} | changes))
    model = RationaleModel(config, d_model, TARGET, VOCAB, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(seed + 1)
    for leaf in jax.tree.leaves(nnx.state(model), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        assert isinstance(leaf, nnx.Variable)
    graphdef, state = nnx.split(model)
    state = jax.tree.map(
        lambda x: (
            jnp.asarray(rng.normal(size=x.shape) * 0.6, jnp.float32)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        state,
    )
    return nnx.merge(graphdef, state), config


def _call(model, states, where, ids=None):
    ids = None if ids is None else jnp.asarray(ids)
    return model(jnp.asarray(states), jnp.asarray(where), ids)


def _f64(param):
    return np.asarray(param[...], np.float64)


def _softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def _gelu(x):
    """The approximation with tanh, which jax.nn.gelu uses."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _transformed(model, kind, k, z):
    if kind == "none":
        return z
    f = model.transform
    z = z @ _f64(f.a_edf)[k]
    if kind == "linear":
        return z
    return _gelu(z + _f64(f.a_ef)[k]) @ _f64(f.b_eff)[k] + _f64(f.b_ef)[k]


def _decoded(model, kind, mixed):
    if kind == "mlp":
        hidden = model.decoder.hidden
        mixed = _gelu(mixed @ _f64(hidden.kernel) + _f64(hidden.bias))
    return mixed @ _f64(model.decoder.out.kernel) + _f64(model.decoder.out.bias)


def _oracle(model, config, x, ids):
    """One text without padding: (probs, factors, predicted, decoded)."""
    x, num = x.astype(np.float64), config.num_factors
    probs, share, h = [], [], []
    for i, state in enumerate(x):
        if config.centre:
            state = state - _f64(model.state_mean_d)
            state = state / np.linalg.norm(state)
        logits = state @ _f64(model.gate.w_de) / config.temperature
        if config.words:
            logits = logits + _f64(model.words_ve)[ids[i]]
        pi = _softmax(logits)
        a = pi.copy()
        if 0 < config.k < num:
            a[np.argsort(-pi)[config.k :]] = 0
            a /= a.sum()
        h.append(state)
        probs.append(pi)
        share.append(a)
    factors = []
    for k in range(num):
        z = sum(share[i][k] * h[i] for i in range(len(x)))
        if config.normalise == "mean":
            z = z / sum(a[k] for a in share)
        elif config.normalise == "length":
            z = z / len(x)
        elif config.normalise == "unit":
            z = z / np.linalg.norm(z)
        factors.append(_transformed(model, config.transform, k, z))
    predicted = _f64(model.target_mean_d)
    for k in range(num):
        predicted = predicted + factors[k] @ _f64(model.v_efd)[k]
    decoded = None
    if config.decoder != "none":
        mixed = [sum(a[k] * factors[k] for k in range(num)) for a in share]
        decoded = np.stack([_decoded(model, config.decoder, m) for m in mixed])
    return np.stack(probs), np.stack(factors), predicted, decoded


VARIANTS = {
    "seed": {"normalise": "sum", "centre": False, "temperature": 1.0},
    "mean": {"normalise": "mean"},
    "length": {"normalise": "length"},
    "unit": {"normalise": "unit"},
    "words": {"words": 0.6},
    "linear": {"transform": "linear", "factor_dim": 3, "decoder": "linear"},
    "mlp": {"transform": "mlp", "factor_dim": 3, "decoder": "mlp", "words": 0.6},
    "sparse": {"k": 2, "decoder": "linear"},
    "one choice": {"k": 1, "normalise": "sum", "words": 1.0},
    "k is all": {"k": 4},
    "one factor": {"num_factors": 1, "decoder": "linear"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_equals_the_equations(changes):
    model, config = _model(**changes)
    states, ids = _inputs()
    out = _call(model, states, WHERE, ids if config.words else None)
    assert (out.decoded is None) == (config.decoder == "none")
    for b, n in enumerate(LENGTHS):
        probs, factors, predicted, decoded = _oracle(model, config, states[b, :n], ids[b, :n])
        np.testing.assert_allclose(out.probs[b, :n], probs, atol=3e-6)
        # "unit" and "mean" of a factor that hardly got anything amplify rounding.
        np.testing.assert_allclose(out.factors[b], factors, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(out.predicted[b], predicted, atol=1e-4, rtol=1e-4)
        if decoded is not None:
            np.testing.assert_allclose(out.decoded[b, :n], decoded, atol=1e-4, rtol=1e-4)


FORMS = {
    "dense": {"smoothing": "markov", "words": 0.6, "decoder": "mlp", "transform": "mlp"},
    "sparse": {"smoothing": "gaussian", "words": 0.6, "k": 2, "decoder": "linear"},
    "plain": {"normalise": "unit"},
}


def _form(name):
    return _model(**FORMS[name])[0], *_inputs()


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_probabilities_sum_to_one_and_padding_has_none(name):
    model, states, ids = _form(name)
    probs = np.asarray(_call(model, states, WHERE, ids).probs)
    np.testing.assert_allclose(probs[WHERE].sum(axis=-1), 1, atol=1e-5)
    assert (probs >= 0).all()
    np.testing.assert_array_equal(probs[~WHERE], 0)


@pytest.mark.parametrize("name", FORMS)
def test_padding_changes_nothing(name):
    model, states, ids = _form(name)
    plain = _call(model, states, WHERE, ids)
    other, other_ids = states.copy(), ids.copy()
    other[~WHERE] = np.nan
    other_ids[~WHERE] = VOCAB - 1
    garbage = _call(model, other, WHERE, other_ids)
    extra = ((0, 0), (0, 4))
    longer = _call(
        model,
        np.pad(other, (*extra, (0, 0)), constant_values=1e4),
        np.pad(WHERE, extra),
        np.pad(other_ids, extra, constant_values=3),
    )
    for got in (garbage, longer):
        np.testing.assert_allclose(got.probs[:, :S], plain.probs, atol=1e-6)
        np.testing.assert_allclose(got.factors, plain.factors, atol=2e-6)
        np.testing.assert_allclose(got.predicted, plain.predicted, atol=5e-6)
        if plain.decoded is not None:
            a, b = np.asarray(got.decoded)[:, :S], np.asarray(plain.decoded)
            np.testing.assert_allclose(a[WHERE], b[WHERE], atol=5e-6)


@pytest.mark.parametrize("name", FORMS)
def test_gradients_reach_every_parameter(name):
    model, states, ids = _form(name)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    weights = np.random.default_rng(5).normal(size=(len(LENGTHS), S, 4)).astype(np.float32)

    def loss(params):
        out = _call(nnx.merge(graphdef, params, rest), states, WHERE, ids)
        total = jnp.sum(out.predicted**2) + jnp.sum(out.probs * weights)
        if out.decoded is None:
            return total
        return total + jnp.sum(jnp.where(WHERE[..., None], out.decoded - out.states, 0) ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    found = jax.tree_util.tree_leaves_with_path(grads)
    assert len(found) >= 2
    for path, grad in found:
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_a_text_without_tokens_gets_the_mean_and_a_finite_gradient():
    model, _ = _model(smoothing="markov", normalise="mean")
    states, where = np.full((1, 3, D), np.nan, np.float32), np.zeros((1, 3), bool)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        out = _call(nnx.merge(graphdef, params, rest), states, where)
        return jnp.sum(out.predicted**2), out

    grads, out = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_array_equal(out.predicted[0], model.target_mean_d[...])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", FORMS)
def test_reconstruct_from_every_token_is_the_prediction(name):
    model, states, ids = _form(name)
    out = _call(model, states, WHERE, ids)
    for keep in (WHERE, np.ones_like(WHERE)):
        got = model.reconstruct(out, jnp.asarray(keep))
        np.testing.assert_allclose(got, out.predicted, atol=1e-6)
    nothing = model.reconstruct(out, jnp.zeros(WHERE.shape, bool))
    if model.transform is None:
        want = np.broadcast_to(model.target_mean_d[...], nothing.shape)
        np.testing.assert_allclose(nothing, want, atol=1e-6)


def test_reconstruct_leaves_the_hidden_tokens_out():
    model, config = _model(normalise="sum", words=0.6)
    states, ids = _inputs()
    out = _call(model, states, WHERE, ids)
    keep = WHERE.copy()
    keep[0, 2:5] = False
    got = model.reconstruct(out, jnp.asarray(keep))
    # Without neighbours in the gate, hiding tokens is the same as a text without them.
    chosen = keep[0]
    want = _oracle(model, config, states[0][chosen], ids[0][chosen])[2]
    np.testing.assert_allclose(got[0], want, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(got[1:], out.predicted[1:], atol=1e-6)


def test_words_need_ids():
    model, _ = _model(words=0.6)
    with pytest.raises(ValueError, match="ids=None"):
        _call(model, _inputs()[0], WHERE)


def test_stay_starts_as_configured():
    config = ModelConfig(num_factors=3, smoothing="markov", stay=0.8)
    model = RationaleModel(config, D, TARGET, VOCAB, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jax.nn.sigmoid(model.stay_logit[...]), 0.8, rtol=1e-6)
    np.testing.assert_array_equal(model.words_ve[...], np.zeros((VOCAB, 3), np.float32))
