"""What a token's gate takes from the gates of its neighbours. Pure functions of logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gaussian(
    logits: Float[Array, "b s e"], where: Bool[Array, "b s"], width: float
) -> Float[Array, "b s e"]:
    """Logits averaged over neighbours: sum_j w_ij l_j / sum_j w_ij, w_ij = exp(-(i-j)^2/2width^2).

    Args:
      logits: [b s e].
      where: real tokens; others have weight 0.
      width: standard deviation in tokens.
    """
    place = jnp.arange(logits.shape[1], dtype=jnp.float32)
    near = jnp.exp(-((place[:, None] - place[None]) ** 2) / (2 * width**2))
    weight = near[None] * where[:, None, :]
    real = jnp.where(where[..., None], logits, 0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return jnp.einsum("bst,bte->bse", weight, real) / jnp.maximum(total, 1e-9)


def markov(
    logits: Float[Array, "b s e"],
    where: Bool[Array, "b s"],
    stay: Float[Array, ""],
) -> Float[Array, "b s e"]:
    r"""Log posterior of a chain whose state is the factor of the token.

    p(k_1) = 1/K; p(k_i = k_{i-1}) = stay, every other factor (1 - stay)/(K-1); evidence for k at
    token i: exp(l_ik). Returns log p(k_i | l_1..l_T), by the forward and backward recursions in
    logarithms. With stay = 1/K it is log_softmax(logits). Padding carries no evidence; real
    tokens must come first in each row.

    Args:
      logits: evidence [b s e].
      where: real tokens [b s].
      stay: probability of staying.

    Source: Rabiner 1989 (forward-backward).
    """
    experts = logits.shape[-1]
    evidence = jnp.where(where[..., None], jax.nn.log_softmax(logits), 0)
    if experts == 1:
        return jnp.zeros_like(logits)
    log_stay, log_leave = jnp.log(stay), jnp.log1p(-stay) - jnp.log(experts - 1.0)
    # A move is "the common part to everyone, and the rest to oneself": O(K), not O(K^2).
    log_excess = jnp.log(jnp.maximum(jnp.exp(log_stay) - jnp.exp(log_leave), 1e-12))

    def move(log_p: Array) -> Array:
        everyone = jax.nn.logsumexp(log_p, axis=-1, keepdims=True) + log_leave
        return jnp.logaddexp(log_p + log_excess, everyone)

    def forward(log_p: Array, log_e: Array) -> tuple[Array, Array]:
        new = jax.nn.log_softmax(move(log_p) + log_e)
        return new, new

    def backward(log_p: Array, log_e: Array) -> tuple[Array, Array]:
        return jax.nn.log_softmax(move(log_p + log_e)), log_p

    first = jnp.full(logits.shape[:1] + (experts,), -jnp.log(experts), logits.dtype)
    evidence_sbe = jnp.swapaxes(evidence, 0, 1)
    _, seen = jax.lax.scan(forward, first, evidence_sbe)
    _, ahead = jax.lax.scan(backward, first, evidence_sbe, reverse=True)
    return jax.nn.log_softmax(jnp.swapaxes(seen + ahead, 0, 1))
