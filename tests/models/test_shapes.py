"""The shapes of models are those that JAX's own evaluation gives."""

import jax
import pytest
from flax import nnx

from moe_jax.gating import GateConfig
from moe_jax.models import (
    CausalConfig,
    CausalLM,
    Encoder,
    EncoderConfig,
    ExpertsConfig,
    SwitchConfig,
    SwitchTransformer,
)
from moe_jax.models.shapes import shapes_of

SMALL = {"vocab_size": 20, "d_model": 8, "num_layers": 2, "num_heads": 2}
EXPERTS = ExpertsConfig(
    gate=GateConfig(num_experts=4, k=2, learned_noise=True),
    d_expert=8,
    d_shared=8,
    shared_gate=True,
    layers=(1,),
    selection_bias=True,
)


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: Encoder(EncoderConfig(**SMALL, d_ff=16, num_positions=12), rngs=rngs),
        lambda rngs: CausalLM(CausalConfig(**SMALL, num_kv_heads=1, experts=EXPERTS), rngs=rngs),
        lambda rngs: SwitchTransformer(SwitchConfig(**SMALL, num_decoder_layers=2), rngs=rngs),
    ],
    ids=["encoder", "causal", "switch"],
)
def test_shapes_are_those_of_the_model(make):
    graph, state = nnx.split(shapes_of(make))
    same_graph, same_state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    assert graph == same_graph
    assert jax.tree.structure(state) == jax.tree.structure(same_state)
    leaves = jax.tree.leaves(state)
    assert leaves
    for leaf, same in zip(leaves, jax.tree.leaves(same_state), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (same.shape, same.dtype)
