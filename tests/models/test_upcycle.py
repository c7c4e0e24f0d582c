"""Upcycled models say what the dense ones say, and their experts part in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.models import CausalConfig, CausalLM, ExpertsConfig, upcycle

IDS = jnp.asarray(np.random.RandomState(0).randint(0, 40, (2, 8)))


def dense():
    sizes = {"vocab_size": 40, "d_model": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    return CausalLM(CausalConfig(**sizes, d_ff=24), rngs=nnx.Rngs(0))


def experts(d_expert=24, layers=None, d_shared=None, **gate):
    config = GateConfig(num_experts=4, **({"k": 2, "renormalise": True} | gate))
    return ExpertsConfig(gate=config, d_expert=d_expert, layers=layers, d_shared=d_shared)


@nnx.jit
def read(model, ids):
    return model(ids)


@pytest.mark.parametrize(
    "chosen",
    [
        experts(),
        experts(layers=(1,)),
        experts(k=1),
        experts(k=3, score="sigmoid"),
        experts(renormalise=False, topk_first=True),
        experts(renormalise=False, k=4),
        dataclasses.replace(experts(), selection_bias=True),
    ],
)
def test_the_same_logits(chosen):
    old = dense()
    new = upcycle(old, chosen, rngs=nnx.Rngs(1))
    assert new.config.expert_layers == ((1,) if chosen.layers else (0, 1))
    before, after = read(old, IDS), read(new, IDS)
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-6)
    np.testing.assert_allclose(after.routing.weight.sum(-1), 1, atol=1e-6)
    assert len(np.unique(after.routing.expert)) > 1


def test_training_parts_the_experts():
    new = upcycle(dense(), experts(), rngs=nnx.Rngs(1))
    graph, state = nnx.split(new)

    def loss(state):
        logp = jax.nn.log_softmax(nnx.merge(graph, state)(IDS[:, :-1]).logits)
        return -jnp.mean(jnp.take_along_axis(logp, IDS[:, 1:, None], 2))

    step = jax.jit(lambda s: jax.tree.map(lambda a, g: a - 0.5 * g, s, jax.grad(loss)(s)))
    before = loss(state)
    for _ in range(3):
        state = step(state)
    assert loss(state) < before
    w_edf = np.asarray(nnx.merge(graph, state).layers[0].ffn.w_in_edf[...])
    assert all(np.abs(w_edf[i] - w_edf[j]).max() > 1e-5 for i in range(4) for j in range(i))


@pytest.mark.parametrize(
    "chosen, message",
    [
        (experts(d_expert=20), "experts.d_expert=20 must be the width of the dense layers, 24"),
        (experts(d_shared=8), "experts.d_shared=8 must be None"),
        (experts(renormalise=False), "weights that sum to 1"),
        (experts(scale=2.5), "weights that sum to 1"),
        (experts(score="sparsemixer"), "weights that sum to 1"),
        (experts(capacity=4), "no capacity"),
    ],
)
def test_experts_that_are_refused(chosen, message):
    with pytest.raises(UserError, match=message):
        upcycle(dense(), chosen, rngs=nnx.Rngs(0))


def test_a_model_that_has_experts():
    with pytest.raises(UserError, match="has experts already"):
        upcycle(upcycle(dense(), experts(), rngs=nnx.Rngs(0)), experts(), rngs=nnx.Rngs(0))
