"""`Gate`: router logits from token states, then `route` (Flax NNX)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from moe_jax.gating import GateConfig, Routing, RoutingEdit, gate_logits, route


class SelectionBias(nnx.Variable):
    """The selection bias of a `Gate`: state that no optimizer touches."""


def _param(values: Array) -> nnx.Param:
    """A router's parameter: never rounded, wherever training rounds others."""
    return nnx.Param(values, full_precision=True)


class Gate(nnx.Module):
    """Router logits from token states, then `route`.

    Parameters are float32, and so is the arithmetic. The router's weights start from a truncated
    normal of variance 0.1/d (Switch Transformer's advice: small logits at first), biases and
    the noise weights from 0.

    `gate.eval()` (or that of a module that holds it) switches jitter and noise off and
    `gate.train()` on; as made they are on.
    """

    def __init__(
        self,
        d_model: int,
        config: GateConfig,
        *,
        use_bias: bool = False,
        selection_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        """Make the parameters.

        Args:
            d_model: width d of the tokens.
            config: the gate; a copy is kept.
            use_bias: add a learned bias to the logits.
            selection_bias: keep a `SelectionBias`, zero at first, for aux-loss-free balancing.
            rngs: of the initialisation.

        Raises:
            UserError: the config is not valid.
        """
        config.validate()
        self.config = dataclasses.replace(config)
        self.deterministic = False
        experts = config.num_experts
        init = nnx.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        self.w_de = _param(init(rngs.params(), (d_model, experts), jnp.float32))
        self.b_e = _param(jnp.zeros(experts, jnp.float32)) if use_bias else None
        noise = config.learned_noise
        self.w_noise_de = _param(jnp.zeros((d_model, experts), jnp.float32)) if noise else None
        zeros = jnp.zeros(experts, jnp.float32)
        self.selection_bias_e = SelectionBias(zeros) if selection_bias else None

    def __call__(
        self,
        x: Float[Array, "t d"],
        *,
        edit: RoutingEdit | None = None,
        key: PRNGKeyArray | None = None,
        where: Bool[Array, " t"] | None = None,
        segments: Int[Array, " t"] | None = None,
    ) -> Routing:
        """Route tokens [t d]; arguments as in `route`."""
        jitter = 0.0 if self.deterministic else self.config.jitter
        jitter_key, noise_key = (None, None) if key is None else jax.random.split(key)
        logits = gate_logits(
            x,
            self.w_de[...],
            b=None if self.b_e is None else self.b_e[...],
            jitter=jitter,
            key=jitter_key,
        )
        noise_logits = None
        if self.w_noise_de is not None and not self.deterministic:
            noise_logits = gate_logits(x, self.w_noise_de[...])
        return route(
            logits,
            self.config,
            bias=None if self.selection_bias_e is None else self.selection_bias_e[...],
            edit=edit,
            key=noise_key,
            noise_logits=noise_logits,
            where=where,
            segments=segments,
            deterministic=self.deterministic,
        )
