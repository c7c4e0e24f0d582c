"""The oracle: every expert sees every token, and a mask keeps what was routed to it.

It does num_experts / k times the needed work, on purpose: nothing in it can be wrong in the
ways a grouped kernel can. Plain JAX, so every transformation works on it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_kernels.activations import ACTIVATIONS
from moe_kernels.arguments import Experts
from moe_kernels.manual_axes import unify


@partial(jax.jit, static_argnames="activation")
def moe_ffn(
    x_td: Float[Array, "t d"],
    expert_tk: Int[Array, "t k"],
    weight_tk: Float[Array, "t k"],
    experts: Experts,
    *,
    activation: str,
) -> Float[Array, "t d"]:
    """y_t = sum_k weight_tk * expert_{expert_tk}(x_t), one expert after the other.

    Sums are in float32 (float64 for float64 inputs); y has the dtype of x.
    """
    wide = jnp.promote_types(x_td.dtype, jnp.float32)

    def add_one(y_td: Array, indexed: tuple[Array, Experts]) -> tuple[Array, None]:
        e, own = indexed
        hit_tk = expert_tk == e
        # Tokens of other experts are zeroed before the sums, so a NaN in one of them stays its own.
        own_x_td = jnp.where(jnp.any(hit_tk, axis=1, keepdims=True), x_td, 0)
        scale_t = jnp.sum(jnp.where(hit_tk, weight_tk, 0), axis=1, dtype=wide)
        return y_td + scale_t[:, None] * expert_ffn(own_x_td, own, activation), None

    y_td, _ = unify((jnp.zeros(x_td.shape, wide), x_td))
    num_experts = experts.w_in.shape[0]
    y_td, _ = jax.lax.scan(add_one, y_td, (jnp.arange(num_experts), experts))
    return y_td.astype(x_td.dtype)


def expert_ffn(x_td: Float[Array, "t d"], own: Experts, activation: str) -> Float[Array, "t d"]:
    """One expert: W_out (act(x W_gate + b_gate) * (x W_in + b_in)) + b_out, or
    W_out act(x W_in + b_in) + b_out without w_gate. `own` holds its parameters, without axis e.
    """
    act = ACTIVATIONS[activation]
    h_tf = _linear(x_td, own.w_in, own.b_in)
    a_tf = act(h_tf) if own.w_gate is None else act(_linear(x_td, own.w_gate, own.b_gate)) * h_tf
    return _linear(a_tf.astype(x_td.dtype), own.w_out, own.b_out)


def _linear(x: Array, w: Array, b: Array | None) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.dot(x, w, preferred_element_type=wide)
    return y if b is None else y + b.astype(wide)[None]
