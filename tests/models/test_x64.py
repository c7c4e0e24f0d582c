"""With jax_enable_x64, as users have it on for other work, texts and routes are those without."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax.gating import GateConfig
from moe_jax.layers import MoE
from moe_jax.models import SamplingConfig, generate, generate_switch, load_lm, load_switch
from tests.misrouting import small_lm, small_switch_lm

IDS = [[4, 5, 6, 1], [7, 1]]


def both(call):
    """What it gives without and with the flag."""
    found = []
    for on in (False, True):
        with jax.enable_x64(on):
            found.append(call())
    return found


def test_a_causal_model_writes_the_same(tmp_path):
    lm = load_lm(small_lm.write(tmp_path))
    for sampling in (None, SamplingConfig(temperature=0.9, top_k=5, top_p=0.9)):
        without, having = both(
            lambda how=sampling: generate(lm.model, IDS, max_new_tokens=3, sampling=how)
        )
        for one, other in zip(without, having, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            np.testing.assert_array_equal(one.routing.expert, other.routing.expert)


def test_a_switch_transformer_writes_the_same(tmp_path):
    lm = load_switch(small_switch_lm.write(tmp_path))
    without, having = both(lambda: generate_switch(lm.model, IDS, max_new_tokens=3))
    assert [one.ids.tolist() for one in without] == [one.ids.tolist() for one in having]


def test_gates_draw_the_same_noise_and_parameters_are_float32():
    fields = {"k": 2, "topk_first": True, "learned_noise": True, "noise_std": 0.5, "jitter": 0.1}
    x_td = np.random.RandomState(0).randn(8, 6).astype(np.float32)

    def run():
        layer = MoE(6, 4, GateConfig(num_experts=4, **fields), rngs=nnx.Rngs(0))
        y_td, routing = layer(jnp.asarray(x_td), key=jax.random.key(1))
        kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param))}
        return y_td, routing.expert, routing.weight.dtype, kinds

    without, having = both(run)
    np.testing.assert_allclose(without[0], having[0], atol=1e-6)
    np.testing.assert_array_equal(without[1], having[1])
    assert having[2:] == (jnp.float32, {np.dtype("float32")})
