"""`route`: router logits -> `Routing`, and what is read off a routing. Pure functions.

    logits_te = gate_logits(x_td, w_de)          # float32, whatever the dtype of x
    routing = route(logits_te, GateConfig(num_experts=8, k=2, renormalise=True))

`route` works through these steps, each of them a field of `GateConfig` or an argument:

    logits (+ noise) -> score (softmax, sigmoid) -> choice (+ selection bias, within groups)
    -> k experts -> weights (renormalised, scaled) -> capacity -> Routing

A `RoutingEdit` changes the decision at named points of this path. Ties go to the lowest index. A
logit of -inf means that the expert is not available. NaN ranks last of what is available, and
weights are NaN where the scores are (as in `moe_kernels.topk_route`).

On a mesh with Explicit axes tokens stay where they are; where they compete for capacity, or experts
choose, every device sees all logits. The result is that of one device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from moe_kernels.explicit_mesh import rows_where, whole_where

from moe_jax.gating.choice import choose, within_capacity
from moe_jax.gating.config import GateConfig
from moe_jax.gating.edit import RoutingEdit
from moe_jax.gating.scores import combine_weights, score, take, with_noise


class Routing(NamedTuple):
    """A gate's decision. t tokens, e experts, k slots (`GateConfig.slots`).

    Attributes:
        expert: chosen experts [t k] int32, best first; num_experts marks a slot without an expert
            (dropped for want of capacity, or not used).
        weight: combine weights [t k] float32 exactly as the gate defines them; 0 where there is no
            expert.
        probs: scores before the cut [t e] float32 (softmax or sigmoid).
        logits: what was scored [t e] float32: the router's logits with noise and edits.
    """

    expert: Int[Array, "t k"]
    weight: Float[Array, "t k"]
    probs: Float[Array, "t e"]
    logits: Float[Array, "t e"]


def route(
    logits: Float[Array, "t e"],
    config: GateConfig,
    *,
    bias: Float[Array, " e"] | None = None,
    edit: RoutingEdit | None = None,
    key: PRNGKeyArray | None = None,
    noise_logits: Float[Array, "t e"] | None = None,
    where: Bool[Array, " t"] | None = None,
    segments: Int[Array, " t"] | None = None,
    deterministic: bool = False,
) -> Routing:
    """Choose experts and weights for every token. Pure; in float32 whatever the logits' dtype.

    Gradients flow through `weight`, `probs` and `logits`, not through the choice.

    Args:
        logits: router logits [t e].
        config: the gate.
        bias: selection-only bias [e]: added to what decides the choice, never to a weight
            (aux-loss-free balancing; see `update_selection_bias`).
        edit: an intervention.
        key: of the noise (`noise_std`, `learned_noise`).
        noise_logits: softplus of these is the noise's standard deviation [t e] (`learned_noise`).
        where: real tokens [t]; padding has no experts and takes no capacity, and its logits are
            read as 0. None means all.
        segments: sequence of each token [t], any integers: capacity then counts for each
            (sequence, expert), as in Switch Transformer.
        deterministic: no noise (evaluation).

    Returns:
        The routing.

    Raises:
        UserError: the config is not valid.
        ValueError: shapes that do not fit the config, noise without a key, segments with expert
            choice.
    """
    config.validate()
    _check(logits, config, bias, noise_logits, segments)
    edit = None if edit is None else edit.scoped(config, len(logits))
    sharded = logits
    if not config.dropless:
        per_token = whole_where((logits, noise_logits, where, segments), sharded)
        logits, noise_logits, where, segments = per_token

    # 1. Logits: padding read as 0; noise; the edit's bias, steering and suppression.
    z = logits.astype(jnp.float32)
    z = z if where is None else jnp.where(where[:, None], z, 0)
    z = z if deterministic else with_noise(z, config, noise_logits, key)
    z = z if edit is None else edit.on_logits(z)

    # 2. Scores of all experts, before the cut.
    probs = score(z, config)

    # 3. Choice: the experts of each token, best first; some slots may have none.
    expert, present = choose(z, probs, config, bias=bias, edit=edit, where=where)

    # 4. Combine weights of the chosen.
    weight = combine_weights(z, probs, expert, present, config)
    if edit is not None:
        expert, weight = edit.on_choice(expert, weight)

    # 5. Capacity: what finds no room becomes num_experts, with weight 0.
    expert, weight = within_capacity(
        expert, weight, present, config, where=where, segments=segments
    )
    if edit is not None:
        weight = jnp.where(expert < config.num_experts, edit.on_weights(expert, weight), 0)
    routing = Routing(expert=expert, weight=weight, probs=probs, logits=z)
    return routing if config.dropless else rows_where(routing, sharded)


def withhold(routing: Routing, edit: RoutingEdit) -> tuple[Routing, Float[Array, "t e"]]:
    """Take from zeroed experts their weight, and say how much it was.

    With `rest = edit._replace(zero=jnp.zeros_like(edit.zero))`, the edit without its zeros,
    `withhold(route(..., edit=rest), edit)` has the routing of `route(..., edit=edit)`, bit for bit.

    Args:
        routing: made with every field of the edit but `zero`.
        edit: gives `zero`, where its `tokens` are on.

    Returns:
        The routing with weight 0 for zeroed experts, and the weights taken [t e] by expert: what
        multiplies `RoutingEdit.stand_in`.
    """
    t, experts = routing.probs.shape
    zero = jnp.broadcast_to(edit.zero & edit.tokens[:, None], (t, experts))
    gone = take(zero, routing.expert)
    taken = jnp.where(gone, routing.weight, 0)
    withheld = jnp.zeros((t, experts), taken.dtype)
    expert, added = whole_where((routing.expert, taken), routing.expert)
    withheld = withheld.at[jnp.arange(t)[:, None], expert].add(added, mode="drop")
    withheld = rows_where(withheld, routing.expert)
    return routing._replace(weight=jnp.where(gone, 0, routing.weight)), withheld


def gate_logits(
    x: Float[Array, "t d"],
    w: Float[Array, "d e"],
    *,
    b: Float[Array, " e"] | None = None,
    jitter: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "t e"]:
    """Router logits in float32 at full precision: (x * noise) W + b.

    Args:
        x: token states [t d].
        w: router weights [d e].
        b: router bias [e].
        jitter: noise is uniform in [1-jitter, 1+jitter] for each element of x (Switch).
        key: of the noise.

    Returns:
        [t e] float32.

    Raises:
        ValueError: jitter without a key.
    """
    x = x.astype(jnp.float32)
    if jitter:
        if key is None:
            raise ValueError(
                f"jitter={jitter} needs a key: pass key=..., or be deterministic (model.eval())"
            )
        x = x * jax.random.uniform(key, x.shape, jnp.float32, minval=1 - jitter, maxval=1 + jitter)
    w, b = whole_where((w, b), x)
    logits = jnp.matmul(x, w.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return logits if b is None else logits + b.astype(jnp.float32)[None]


def dropped(routing: Routing, *, where: Bool[Array, " t"] | None = None) -> Int[Array, ""]:
    """How many assignments have no expert (expert == num_experts).

    With a capacity these are the ones it dropped. Under expert choice most slots are unused by
    design; there the tokens that no expert took are `jnp.all(routing.expert == E, axis=1)`.

    Args:
        routing: a routing.
        where: real tokens [t]: others, which never have an expert, are not counted.

    Returns:
        A scalar.
    """
    lost = routing.expert == routing.probs.shape[-1]
    return jnp.sum(lost if where is None else lost & where[:, None])


def expert_counts(routing: Routing) -> Int[Array, " e"]:
    """How many assignments each expert has [e]; dropped and padding ones count nowhere."""
    experts = routing.probs.shape[-1]
    expert = whole_where(routing.expert, routing.expert).reshape(-1)
    return jnp.zeros(experts, jnp.int32).at[expert].add(1, mode="drop")


def update_selection_bias(
    bias: Float[Array, " e"], counts: Int[Array, " e"], *, rate: float = 1e-3
) -> Float[Array, " e"]:
    """One step of aux-loss-free balancing: b_e + rate * sign(mean(counts) - counts_e).

    Overloaded experts become less likely to be chosen, without a gradient and without a change to
    any weight. Call it once for each training step, with the counts of that step.

    Args:
        bias: selection bias [e].
        counts: assignments [e] (`expert_counts`), summed over devices.
        rate: the step; the source uses 0.001.

    Returns:
        The new bias [e].

    Source: Wang et al. 2024 (auxiliary-loss-free load balancing); DeepSeek-V3, section 2.1.2.
    """
    load = counts.astype(bias.dtype)
    return bias + rate * jnp.sign(jnp.mean(load) - load)


def _check(
    logits: Float[Array, "t e"],
    config: GateConfig,
    bias: Float[Array, " e"] | None,
    noise_logits: Float[Array, "t e"] | None,
    segments: Int[Array, " t"] | None,
) -> None:
    experts = config.num_experts
    if logits.shape[-1] != experts:
        raise ValueError(f"logits have {logits.shape[-1]} experts, config.num_experts={experts}")
    if bias is not None and bias.shape != (experts,):
        raise ValueError(f"bias has shape {bias.shape}, config.num_experts={experts}")
    if noise_logits is not None and not config.learned_noise:
        raise ValueError("noise_logits given, but config.learned_noise=False")
    if segments is not None and config.choice == "expert":
        raise ValueError('segments need config.choice="token"')
