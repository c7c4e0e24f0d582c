"""The encoder against values that transformers' torch models gave, and its own invariants."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.models import Encoder, EncoderConfig, pretrained
from moe_jax.models.bert import ACTIVATIONS, attention
from tests.models import small_encoders

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "encoder.npz"


@pytest.mark.parametrize("name", small_encoders.CONFIGS)
def test_states_of_every_layer_are_those_of_the_original_code(name, tmp_path):
    config = small_encoders.CONFIGS[name]
    model = pretrained.load_encoder(str(small_encoders.write(tmp_path, config))).model
    ids, where, types = small_encoders.inputs(config)
    with np.load(GOLDEN) as golden:
        wanted = golden[name]
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, *args: nnx.merge(graphdef, state).hidden_states(*args))
    found = run(state, ids, where, *([types] if "type_vocab_size" in config else []))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.where(where[..., None], ours, 0), theirs, atol=1e-5)
    # The states mean something: they move from layer to layer and differ between tokens.
    assert np.abs(np.diff(wanted, axis=0))[:, where].max(axis=-1).min() > 0.05


@pytest.fixture(scope="module")
def call(small):
    """The small encoder's __call__, compiled."""
    graphdef, state = nnx.split(small.model)
    compiled = jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args))
    return lambda *args: compiled(state, *args)


def test_token_types_default_to_the_first(call):
    ids, where, _ = small_encoders.inputs(small_encoders.CONFIGS["bert"])
    zero, one = np.zeros_like(ids), np.ones_like(ids)
    np.testing.assert_allclose(call(ids, where), call(ids, where, zero), atol=1e-6)
    assert np.abs(call(ids, where) - call(ids, where, one)).max() > 0.01


def test_what_stands_in_the_padding_is_invisible(call):
    ids, where, _ = small_encoders.inputs(small_encoders.CONFIGS["bert"])
    other = call(np.where(where, ids, 9).astype(np.int32), where)
    np.testing.assert_array_equal(np.asarray(call(ids, where))[where], np.asarray(other)[where])


def test_texts_in_one_row_get_the_states_that_they_get_alone(small):
    lengths = (5, 1, 9)
    ids = np.random.RandomState(3).randint(5, 40, (1, sum(lengths) + 3)).astype(np.int32)
    segments = np.zeros_like(ids)
    ends = np.cumsum(lengths)
    for number, (end, length) in enumerate(zip(ends, lengths, strict=True), start=1):
        segments[0, end - length : end] = number
    graphdef, state = nnx.split(small.model)
    run = jax.jit(lambda s, i, w, g: nnx.merge(graphdef, s)(i, w, segments_bs=g))
    packed = run(state, ids, segments > 0, segments)
    assert jnp.isfinite(packed).all()
    for end, length in zip(ends, lengths, strict=True):
        alone = small_encoders.states(small, ids[0, end - length : end])
        np.testing.assert_allclose(packed[0, end - length : end], alone, atol=1e-5)


def test_attention_is_the_masked_softmax_average():
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((2, 3, 5, 4)) for _ in range(3))
    mask = np.tril(np.ones((5, 5), bool))[None].repeat(2, axis=0)
    found = attention(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(mask))
    for b in range(2):
        for h in range(3):
            for i in range(5):
                scores = np.array([q[b, h, i] @ k[b, h, j] / 2 for j in range(i + 1)])
                weights = np.exp(scores) / np.exp(scores).sum()
                wanted = sum(w * v[b, h, j] for j, w in enumerate(weights))
                np.testing.assert_allclose(found[b, h, i], wanted, atol=1e-6)


def test_attention_survives_huge_scores_and_positions_that_see_nothing():
    x = 1e4 * jnp.ones((1, 1, 3, 4)) * jnp.arange(3)[None, None, :, None]
    found = attention(x, x, x, jnp.asarray([[[True, True, False]]]))
    np.testing.assert_allclose(found[0, 0, 1:, 0], [1e4, 1e4])
    nothing = attention(x, x, x, jnp.zeros((1, 1, 3), bool))
    np.testing.assert_allclose(nothing, jnp.full_like(x, 1e4))


def test_gradients_are_finite_even_for_a_row_of_padding_only(small):
    graphdef, state = nnx.split(small.model)
    where = np.array([[True, True, False], [False, False, False]])

    def loss(state):
        states = nnx.merge(graphdef, state)(jnp.full((2, 3), 7), jnp.asarray(where))
        return jnp.where(where[..., None], states, 0)[..., 0].sum()

    gradient = jax.jit(jax.grad(loss))(state)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(gradient))
    assert np.abs(np.asarray(gradient["layers"][0]["qkv"]["kernel"][...])).max() > 0


def test_half_precision_computes_close_to_float32(small):
    half = pretrained.load_encoder(small.name, dtype="bfloat16")
    ids = [2, *range(5, 20), 3]
    difference = np.abs(small_encoders.states(half, ids) - small_encoders.states(small, ids))
    assert 0 < difference.max() < 0.2
    assert difference.mean() < 0.02


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_its_formula(name):
    x = np.linspace(-4, 4, 41)
    erf = np.array([jax.lax.erf(v / np.sqrt(2)) for v in x])
    formula = {
        "gelu": x / 2 * (1 + erf),
        "gelu_tanh": x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": np.maximum(x, 0),
        "silu": x / (1 + np.exp(-x)),
    }[name]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), formula, atol=1e-6)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("vocab_size", 0, "^vocab_size=0"),
        ("d_ff", "40", "^d_ff='40'"),
        ("num_heads", 5, "^num_heads=5: must divide d_model=384"),
        ("position_offset", 512, "^num_positions=512: must leave a row after position_offset=512"),
        ("norm_eps", 0.0, "^norm_eps=0.0"),
        ("activation", "gulp", "^activation='gulp': must be one of gelu"),
        ("dtype", "int8", "^dtype='int8'"),
        ("pad_id", -1, "^pad_id=-1"),
    ],
)
def test_a_bad_config_names_the_field(field, value, words):
    config = EncoderConfig()
    setattr(config, field, value)
    with pytest.raises(UserError, match=words) as caught:
        Encoder(config, rngs=nnx.Rngs(0))
    assert "\n" not in str(caught.value)


def test_too_many_positions_and_unwanted_token_types_are_refused(small):
    with pytest.raises(ValueError, match="25 positions are more than the encoder's 24"):
        small.model(jnp.ones((1, 25), jnp.int32), jnp.ones((1, 25), bool))
    config = EncoderConfig(
        vocab_size=9, d_model=8, num_layers=1, num_heads=2, d_ff=8, num_token_types=0
    )
    ids = jnp.ones((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="without token types"):
        Encoder(config, rngs=nnx.Rngs(0))(ids, ids > 0, ids)
