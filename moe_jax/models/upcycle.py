"""Sparse upcycling: a dense model becomes a mixture of experts that says the same at first."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from moe_jax.errors import UserError
from moe_jax.models.causal_config import ExpertsConfig
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.shapes import shapes_of

# The experts' arrays, and the dense layer's that each expert is a copy of.
_COPIES = {"w_in_edf": "w_in_df", "w_gate_edf": "w_gate_df", "w_out_efd": "w_out_fd"}


def upcycle(model: CausalLM, experts: ExpertsConfig, *, rngs: nnx.Rngs) -> CausalLM:
    """Makes each expert a copy of the dense layer that it stands for; the gates are random.

    Where a token's k weights sum to 1 the mixture of k copies is the dense layer, so the new
    model's logits are the old one's, to rounding. Training then tells the experts apart, through
    the gates: on different tokens, or by different weights.

    Args:
      model: dense; it isn't changed.
      experts: the mixtures. Each expert is as wide as the dense layer (d_expert = d_ff), there is
        none that sees every token, the weights sum to 1 (renormalise, or topk_first with a softmax,
        or k = num_experts; scale 1), and no token is dropped.
      rngs: of the gates.

    Returns:
      The new model; parameters in the dtypes of the old one's, gates in float32.

    Raises:
      UserError: the model has experts already, or `experts` isn't as it must be.

    Source: Komatsuzaki et al. 2022, with the weights renormalised.
    """
    _check(model, experts)
    config = dataclasses.replace(model.config, experts=experts)
    graphdef, fresh = nnx.split(shapes_of(lambda rngs: CausalLM(config, rngs=rngs)))
    old = dict(nnx.to_flat_state(nnx.state(model)))
    init = nnx.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
    leaves = []
    for path, leaf in nnx.to_flat_state(fresh):
        if path in old:
            value: Array = old[path][...]
        elif path[-1] in _COPIES:
            dense = old[(*path[:-1], _COPIES[path[-1]])][...]
            value = jnp.broadcast_to(dense[None], leaf.shape)
        elif path[-1] == "selection_bias_e":
            value = jnp.zeros(leaf.shape, jnp.float32)
        else:
            value = init(rngs.params(), leaf.shape, jnp.float32)
        leaves.append((path, leaf.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def _check(model: CausalLM, experts: ExpertsConfig) -> None:
    config, gate = model.config, experts.gate
    if config.experts is not None:
        raise UserError("the model has experts already; upcycling starts from a dense one")
    if experts.d_expert != config.d_ff:
        raise UserError(
            f"experts.d_expert={experts.d_expert} must be the width of the dense layers, "
            f"{config.d_ff}"
        )
    if experts.d_shared is not None:
        raise UserError(f"experts.d_shared={experts.d_shared} must be None")
    whole = gate.renormalise or (gate.k == gate.num_experts and gate.score == "softmax")
    whole = whole or (gate.topk_first and gate.score == "softmax")
    if gate.score == "sparsemixer" or not whole or gate.scale != 1 or gate.renormalise_eps > 1e-6:
        raise UserError(
            "experts.gate must have weights that sum to 1: renormalise=True, a score other than "
            "sparsemixer, and scale=1"
        )
    if not gate.dropless:
        raise UserError("experts.gate must have no capacity: dropped tokens would change the model")
