"""Scores and combine weights: noise on logits, softmax or sigmoid, sparsemixer, renormalisation.

Internal to `moe_jax.gating.route`, which gives these functions their meaning.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from moe_jax.gating.config import GateConfig


def with_noise(
    z: Float[Array, "t e"],
    config: GateConfig,
    noise_logits: Float[Array, "t e"] | None,
    key: PRNGKeyArray | None,
) -> Float[Array, "t e"]:
    """The logits with the noise that the config asks for.

    Raises:
        ValueError: noise without a key, or learned noise without noise_logits.
    """
    if not (config.noise_std or config.learned_noise):
        return z
    if key is None:
        field = "learned_noise=True" if config.learned_noise else f"noise_std={config.noise_std}"
        raise ValueError(
            f"{field} needs a key: pass key=..., or deterministic=True for no noise (model.eval())"
        )
    deviation = jnp.full_like(z, config.noise_std)
    if config.learned_noise:
        if noise_logits is None:
            raise ValueError("learned_noise=True needs noise_logits (x W_noise, same shape)")
        deviation = deviation + jax.nn.softplus(noise_logits.astype(jnp.float32))
    return z + deviation * jax.random.normal(key, z.shape, jnp.float32)


def score(z: Float[Array, "t e"], config: GateConfig) -> Float[Array, "t e"]:
    """Scores of all experts from their logits, before the cut: softmax or sigmoid."""
    if config.score == "sigmoid":
        return jax.nn.sigmoid(z / config.temperature)
    return softmax(z, config.temperature)


def combine_weights(
    z: Float[Array, "t e"],
    probs: Float[Array, "t e"],
    expert: Int[Array, "t k"],
    present: Bool[Array, "t k"],
    config: GateConfig,
) -> Float[Array, "t k"]:
    """Combine weights of the chosen experts, 0 where there is none.

    `z` are the logits, `probs` the scores of all experts.
    """
    if config.score == "sparsemixer":
        weight = _sparsemixer(z, expert, config)
    elif config.score == "softmax" and config.topk_first:
        weight = softmax(jnp.where(present, take(z, expert), -jnp.inf), config.temperature)
    else:
        weight = take(probs, expert)
    weight = jnp.where(present, weight, 0)
    if config.renormalise:
        total = jnp.sum(weight, axis=1, keepdims=True) + config.renormalise_eps
        # A token without experts, or whose scores all underflow, has weights 0, not 0/0.
        weight = weight / jnp.where(total > 0, total, 1)
    return weight * config.scale


def softmax(z: Float[Array, "t n"], temperature: float) -> Float[Array, "t n"]:
    """Softmax of z / temperature; a row of -inf gives zeros, not NaN.

    The largest logit is taken off before the division. Dividing first leaves a product next to a
    difference, which a compiler may contract to one fused multiply-add in one program and not in
    another: an identity edit would then change the last bit.
    """
    top = jax.lax.stop_gradient(jnp.max(z, axis=1, keepdims=True))
    some = top != -jnp.inf
    below = jnp.where(some, z, 0) - jnp.where(some, top, 0)
    return jnp.where(some, jax.nn.softmax(below / temperature, axis=1), 0)


def take(values: Array, index: Int[Array, "t k"]) -> Array:
    """values[t, index[t, k]]; indices are clipped, not wrapped."""
    return jnp.take_along_axis(values, index, axis=1, mode="clip")


def _sparsemixer(
    z: Float[Array, "t e"], expert: Int[Array, "t k"], config: GateConfig
) -> Float[Array, "t k"]:
    """Softmax of each choice among the experts not yet chosen and near the best of these."""
    parts = []
    left = z
    for slot in range(expert.shape[1]):
        best = jnp.max(jax.lax.stop_gradient(left), axis=1, keepdims=True)
        gap = (best - z) / jnp.maximum(jnp.abs(z), best)
        near = jnp.where(gap > 2 * config.sparsemixer_jitter, -jnp.inf, left)
        chosen = expert[:, slot : slot + 1]
        parts.append(take(softmax(near, config.temperature), chosen))
        left = jnp.where(jnp.arange(z.shape[1])[None] == chosen, -jnp.inf, left)
    return jnp.concatenate(parts, axis=1)
