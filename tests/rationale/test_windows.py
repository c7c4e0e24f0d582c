"""Windows, and that the traced states are those of the frozen encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from moe_jax.models import Encoder, EncoderConfig, PretrainedEncoder, Tokenised
from moe_jax.rationale import ContextConfig
from moe_jax.rationale.contextualise import contextualise
from moe_jax.rationale.windows import spans, window_states

PREFIX, SUFFIX = (1,), (2,)


@pytest.fixture(scope="module")
def tiny() -> PretrainedEncoder:
    """A random encoder of two layers, with a tokenizer of single letters."""
    vocab = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}
    vocab |= {letter: 4 + i for i, letter in enumerate("abcdefghijklmnop")}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    config = EncoderConfig(
        vocab_size=20, d_model=8, num_layers=2, num_heads=2, d_ff=16, num_positions=32
    )
    model = Encoder(config, rngs=nnx.Rngs(0))
    return PretrainedEncoder(model, tokenizer, config, "tiny")


def tokens(*lengths: int) -> Tokenised:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 20, n).astype(np.int32) for n in lengths]
    return Tokenised(ids, [np.stack([np.arange(n), np.arange(n) + 1], 1) for n in lengths])


def traced(tiny, ids, where, config):
    def states(ids, where):
        return window_states(
            tiny.model,
            ids,
            where,
            prefix=PREFIX,
            suffix=SUFFIX,
            pad_id=0,
            config=config,
        )

    return jax.jit(states)(jnp.asarray(ids), jnp.asarray(where))


def test_spans_by_hand():
    assert spans(6, 4, 2).tolist() == [[0, 2], [0, 4], [2, 6], [4, 6]]
    assert spans(2, 8, 3).tolist() == [[0, 2]]
    assert spans(9, 0, 3).tolist() == [[0, 9]]


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (4,), "stride": 2},
        {"windows": (5, 8), "stride": 3, "pool": "token"},
        {"windows": (0,), "layer": 1},
    ],
    ids=str,
)
def test_traced_states_are_those_of_the_frozen_encoder(tiny, changes):
    config = ContextConfig(**changes)
    text = tokens(11, 1, 4, 0)
    frozen = contextualise(tiny, text, config)
    ids, where = np.full((4, 13), 7, np.int32), np.zeros((4, 13), bool)
    for row, i in enumerate(text.ids):
        ids[row, : len(i)], where[row, : len(i)] = i, True
    found = traced(tiny, ids, where, config)
    assert found.shape == (4, 13, 8)
    for row, expected in enumerate(frozen.states):
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=3e-3)  # float16
        assert not np.asarray(found[row, len(expected) :]).any()


def test_gradient_reaches_every_parameter_of_the_encoder(tiny):
    graphdef, params, rest = nnx.split(tiny.model, nnx.Param, ...)
    ids = jnp.asarray(np.arange(4, 16, dtype=np.int32).reshape(2, 6))

    def total(params):
        states = window_states(
            nnx.merge(graphdef, params, rest),
            ids,
            jnp.ones((2, 6), bool),
            prefix=PREFIX,
            suffix=SUFFIX,
            pad_id=0,
            config=ContextConfig(windows=(4,), stride=2),
        )
        return jnp.sum(states[..., :3] ** 2)

    grads = jax.tree.leaves(jax.jit(jax.grad(total))(params))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in grads)


def test_progress_reaches_the_total(tiny):
    seen = []
    contextualise(
        tiny,
        tokens(9, 2),
        ContextConfig(windows=(4, 0)),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] > 0
