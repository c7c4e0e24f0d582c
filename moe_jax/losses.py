"""The six regularisers of the token-to-factor model, and the standard router losses.

Every loss is a pure function that returns an *unreduced* array (one number per sentence or per
token): the caller takes the mean. Conventions that hold for all of them:

* Axis letters: b sentence, s position, t token, e expert (factor), k choice, d width.
* `where` is True on real tokens. What padding holds, NaN included, has no influence on values or
  gradients. A sentence without a real token has loss 0 and gradient 0.
* float16 and bfloat16 are lifted to float32 before any arithmetic; float64 stays float64.
* Values and gradients are finite for finite input: at one-hot gates, at perfect balance, with one
  expert, with one token.

docs/rationale.md defines the token-to-factor model: gate pi_ik over tokens i and factors k, factor
states z_k, sentence target e(x). Sums and means are exactly as it has them: the entropy and the
token reconstruction are sums over the tokens, overlap and balance are means.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

AxisNames = str | tuple[str, ...] | None
"""Mesh axes to sum over; None or (): none."""


def sentence_reconstruction(
    target: Float[Array, "b d"], predicted: Float[Array, "b d"]
) -> Float[Array, " b"]:
    r"""Squared distance between the sentence's embedding and its reconstruction.

    Formula: ||e(x) - e_hat(x)||_2^2, a sum over the width d.

    Args:
        target: embeddings e(x) [b d], such as SBERT's.
        predicted: reconstructions e_hat(x) [b d].

    Returns:
        [b], in the square of the embedding's unit.

    Source: docs/rationale.md.
    """
    difference = _lift(target) - _lift(predicted)
    return jnp.sum(difference * difference, axis=-1)


def token_reconstruction(
    states: Float[Array, "b s d"],
    decoded: Float[Array, "b s d"],
    *,
    where: Bool[Array, "b s"] | None = None,
) -> Float[Array, " b"]:
    r"""Squared distance between token states and their reconstructions, summed over tokens.

    Formula: sum_i ||h_i - h_hat_i||_2^2.

    Args:
        states: the contextualiser's token states h [b s d].
        decoded: their reconstructions h_hat [b s d].
        where: real tokens [b s]; None means all.

    Returns:
        [b], a sum (not a mean) over real tokens.

    Source: docs/rationale.md.
    """
    difference = _masked(_lift(states) - _lift(decoded), where)
    return jnp.sum(difference * difference, axis=(-2, -1))


def entropy(
    probs: Float[Array, "b s e"], *, where: Bool[Array, "b s"] | None = None
) -> Float[Array, " b"]:
    r"""Entropy of the gate, summed over tokens: low when each token has one expert.

    Formula: -sum_i sum_k pi_ik log pi_ik, in nats, with 0 log 0 = 0. At pi_ik = 0 the derivative
    of -p log p is infinite; it is taken as 0 there, so that a saturated gate has a finite gradient
    (through a softmax that is also the true limit, because its own derivative is pi_ik).

    Args:
        probs: gate probabilities pi [b s e].
        where: real tokens [b s]; None means all.

    Returns:
        [b], nats, a sum over real tokens.

    Source: docs/rationale.md.
    """
    p = _masked(_lift(probs), where)
    # Two selects: with one, the gradient of the branch not taken is 0 * inf = NaN.
    positive = p > 0
    logs = jnp.log(jnp.where(positive, p, 1))
    return jnp.sum(jnp.where(positive, -p * logs, 0), axis=(-2, -1))


def overlap(
    probs: Float[Array, "b s e"], *, where: Bool[Array, "b s"] | None = None
) -> Float[Array, " b"]:
    r"""Mean probability mass that a token gives to pairs of experts.

    Formula: (1/T) sum_i sum_{k<j} pi_ik pi_ij, T the number of real tokens. Between 0 (one-hot
    gates) and (K-1)/(2K) (uniform gates) where the rows of pi sum to 1. With one expert it is 0.

    Args:
        probs: gate probabilities pi [b s e].
        where: real tokens [b s]; None means all.

    Returns:
        [b], a mean over real tokens.

    Source: docs/rationale.md.
    """
    p = _masked(_lift(probs), where)
    # Running sums give the pairs in O(K), without the cancellation of (1 - sum p^2) / 2.
    before = jnp.cumsum(p[..., :-1], axis=-1)
    pairs = jnp.sum(before * p[..., 1:], axis=-1)
    return jnp.sum(pairs, axis=-1) / _count(p, where, axis=-1)


def diversity(factors: Float[Array, "b e d"]) -> Float[Array, " b"]:
    r"""How far the factor states of a sentence are from an orthonormal set.

    Formula: ||Z^T Z - I||_F^2 with Z = [z_1 ... z_K] (one column per factor), that is
    sum_{k,j} (z_k . z_j - [k = j])^2. It is 0 only if the K states are orthonormal, which needs
    d >= K.

    Args:
        factors: transformed factor states z [b e d].

    Returns:
        [b].

    Source: docs/rationale.md; Lin et al. 2017 (structured self-attention), equation 8, has it for
    rows of attention.
    """
    z = _lift(factors)
    gram = jnp.einsum("bed,bfd->bef", z, z, precision=jax.lax.Precision.HIGHEST)
    excess = gram - jnp.eye(z.shape[-2], dtype=z.dtype)[None]
    return jnp.sum(excess * excess, axis=(-2, -1))


def load_balance(
    probs: Float[Array, "b s e"],
    *,
    where: Bool[Array, "b s"] | None = None,
    over: Literal["sentence", "batch"] = "sentence",
    axis_name: AxisNames = None,
) -> Float[Array, " b"] | Float[Array, ""]:
    r"""Squared distance of the mean gate from the uniform distribution.

    Formula: u_k = (1/T) sum_i pi_ik, loss = sum_k (u_k - 1/K)^2.
    With over="sentence" T counts the sentence's real tokens. With over="batch" u is the mean over
    all real tokens of the batch: then each sentence may use few factors so long as the batch uses
    all.

    Args:
        probs: gate probabilities pi [b s e].
        where: real tokens [b s]; None means all.
        over: "sentence" or "batch".
        axis_name: mesh axes that the batch is split over, inside shard_map or pmap: with
            over="batch" u is then the mean over the whole batch, on every device.

    Returns:
        [b] over sentences, or a scalar over the batch.

    Raises:
        ValueError: `over` is neither of the two.

    Source: docs/rationale.md.
    """
    if over not in ("sentence", "batch"):
        raise ValueError(f'over="{over}" is unknown: use "sentence" or "batch"')
    p = _masked(_lift(probs), where)
    axis = (-2,) if over == "sentence" else (-3, -2)
    across = axis_name if over == "batch" else None
    count = _count(p, where, axis=-1 if over == "sentence" else None, axis_name=across)
    usage = _across(jnp.sum(p, axis=axis), across) / count[..., None]
    excess = usage - 1.0 / p.shape[-1]
    value = jnp.sum(excess * excess, axis=-1)
    if where is None:
        return value
    real = jnp.sum(where, axis=None if over == "batch" else -1)
    return jnp.where(_across(real, across) > 0, value, 0)


def switch_balance(
    probs: Float[Array, "t e"],
    expert: Int[Array, "t k"],
    *,
    where: Bool[Array, " t"] | None = None,
    axis_name: AxisNames = None,
) -> Float[Array, ""]:
    r"""The balance loss of GShard and Switch Transformer, for any k.

    Formula: E sum_e f_e P_e, with f_e the share of the T k assignments that went to expert e (no
    gradient flows through it) and P_e the mean of probs[:, e]. It is 1 at perfect balance, whatever
    k is; implementations that do not divide f by k give k times this value.
    Dropped assignments (expert == E) count in no f_e, so f sums to less than 1 then. To have the
    loss see the overload that made them drop, pass the choice before the capacity cut.

    Args:
        probs: scores before the cut [t e] (`Routing.probs`).
        expert: chosen experts [t k] (`Routing.expert`).
        where: real tokens [t]; None means all.
        axis_name: mesh axes that the tokens are split over, inside shard_map or pmap: f and P are
            then those of all tokens, on every device.

    Returns:
        A scalar; 0 if no token is real.

    Source: Fedus, Zoph and Shazeer 2021 (Switch Transformers), equation 4; Lepikhin et al. 2020
    (GShard), section 2.2.
    """
    num_experts = probs.shape[-1]
    p = _masked(_lift(probs), where)
    hits = jax.lax.stop_gradient(_one_hot_sum(expert, num_experts, p.dtype))
    count = _count(p, where, axis=None, axis_name=axis_name)
    hits_e = _across(jnp.sum(_masked(hits, where), axis=0), axis_name)
    mean_e = _across(jnp.sum(p, axis=0), axis_name) / count
    return num_experts * jnp.sum(hits_e / (count * expert.shape[-1]) * mean_e)


def router_z(
    logits: Float[Array, "*batch e"], *, where: Bool[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    r"""The router z-loss: keeps the logits small, so that the softmax stays exact.

    Formula: (log sum_e exp z_e)^2 for each token; the published loss is its mean over tokens.

    Args:
        logits: router logits [... e] (`Routing.logits`).
        where: real tokens [...]; None means all.

    Returns:
        [...], 0 on padding. For the mean over real tokens divide the sum by the number of them.

    Source: Zoph et al. 2022 (ST-MoE), equation 5.
    """
    return jax.nn.logsumexp(_masked(_lift(logits), where), axis=-1) ** 2 * (
        1 if where is None else where
    )


def weighted_sum(
    terms: Mapping[str, Float[Array, "..."]], weights: Mapping[str, float]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    r"""The weighted sum of the means of some losses, by name.

    Formula: sum_n weights[n] mean(terms[n]), in the order of `weights`. A term of weight 0 is
    reported, but takes no part in the sum (not even as 0 * inf).

    Args:
        terms: unreduced arrays by name, such as {"sentence": [b], "balance": []}.
        weights: a number for each name; those of weight 0 need no term.

    Returns:
        The total, a scalar, and the mean of each term by name, in the order of `weights`.

    Raises:
        ValueError: a term has no weight of its name, or a weight other than 0 has no term.
    """
    unknown = sorted(set(terms) - set(weights))
    if unknown:
        raise ValueError(f"terms has {unknown}, which weights lacks: it has {list(weights)}")
    missing = [name for name, weight in weights.items() if weight and name not in terms]
    if missing:
        name = missing[0]
        raise ValueError(f"weights[{name!r}]={weights[name]}, but terms lacks {name!r}")
    means = {name: jnp.mean(_lift(terms[name])) for name in weights if name in terms}
    total = jnp.zeros((), jnp.float32)
    for name, mean in means.items():
        if weights[name]:
            total = total + weights[name] * mean
    return total, means


def _lift(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _masked(
    x: Float[Array, "*shape"], where: Bool[Array, "*tokens"] | None
) -> Float[Array, "*shape"]:
    """Zero on padding, by selection: 0 * NaN would let padding through."""
    return x if where is None else jnp.where(where[..., None], x, 0)


def _count(
    p: Float[Array, "*tokens e"],
    where: Bool[Array, "*tokens"] | None,
    *,
    axis: int | None,
    axis_name: AxisNames = None,
) -> Float[Array, "*left"]:
    """Number of real tokens along `axis` (None: of all), at least 1 so that one can divide."""
    real = jnp.ones(p.shape[:-1], bool) if where is None else where
    return jnp.maximum(_across(jnp.sum(real, axis=axis), axis_name), 1).astype(p.dtype)


def _across(sums: Shaped[Array, "*any"], axis_name: AxisNames) -> Shaped[Array, "*any"]:
    """Sums over the devices of these mesh axes."""
    return jax.lax.psum(sums, axis_name) if axis_name else sums


def _one_hot_sum(
    expert: Int[Array, "t k"], num_experts: int, dtype: jnp.dtype
) -> Float[Array, "t e"]:
    """How often each token chose each expert; ids outside 0..E-1 count nowhere."""
    return jnp.sum(jax.nn.one_hot(expert, num_experts, dtype=dtype), axis=1)
