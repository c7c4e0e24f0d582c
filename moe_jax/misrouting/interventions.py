"""Interventions on the routing of a whole model, by name, as `RoutingEdit` arrays.

Every leaf of the edits made here has a leading axis of MoE layers, [l #t ...] (`seed` is [l],
`stand_in` [l e #d]): layer m of the model takes `jax.tree.map(lambda a: a[m], edit)`. Letters:
t tokens, l layers, k choices, e experts, d width. A target is a mask of experts [l e]; an empty
one, or a dose of zero, changes no bit of the result. `tokens` [t] scopes an edit; None means all.

    name            what it does
    suppress        S1: out of the choice and out of the softmax: the others' weights grow
    exclude         S2: out of the choice, scores as they were
    zero            S3: still chosen, contributes nothing, nobody takes its place
    mean_ablate     S5: still chosen, contributes its mean output (see means.py) at its weight
    force           chosen before all others, weights as the gate gives them
    steer           S4: SteerMoE's floor and ceiling
    bias            B1: a number added to the logit
    scale           B2: a factor on the weight (RICE)
    random          M1: as many experts, drawn at random
    rank_shift      M2: the experts of ranks k+1..2k
    permute         M3: experts do each other's work
    gumbel          M4: Gumbel-top-k at a temperature
    donor           M5: the routes of another prompt
    top_1           M6: the first choice alone
    replay          R: recorded routes
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from moe_jax.gating import KEEP, GateConfig, RoutingEdit
from moe_jax.models.rows import identity_edit

Target = Bool[np.ndarray, "l e"]
Tokens = Bool[np.ndarray, " t"]
Layers = Bool[np.ndarray, " l"]


def identity(config: GateConfig, num_layers: int, *, tokens: Tokens | None = None) -> RoutingEdit:
    """The edit that changes nothing."""
    return _edit(config, num_layers, tokens)


def suppress(config: GateConfig, target: Target, *, tokens: Tokens | None = None) -> RoutingEdit:
    """S1: logits of -inf before the score. With fewer than k experts left, slots stay empty."""
    return _edit(config, len(target), tokens, suppress=target[:, None])


def exclude(config: GateConfig, target: Target, *, tokens: Tokens | None = None) -> RoutingEdit:
    """S2: never chosen; everybody's score as it was. With renormalised softmax gates, S1."""
    return _edit(config, len(target), tokens, exclude=target[:, None])


def zero(config: GateConfig, target: Target, *, tokens: Tokens | None = None) -> RoutingEdit:
    """S3: weight 0; it keeps its slot and its place under the capacity."""
    return _edit(config, len(target), tokens, zero=target[:, None])


def mean_ablate(
    config: GateConfig,
    target: Target,
    means: Float[np.ndarray, "l e d"],
    *,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """S5: the target's outputs are replaced by these, at the weights that the gate gives.

    As `zero`, but the layer adds weight_e * means_e. `stand_in` has no axis of tokens: prompts that
    are edited in one call, each in its own way, share one. Outside the target it is 0.

    Args:
      config: the gate.
      target: experts replaced.
      means: what each gives instead, as `expert_means` has it; only the target's are read.
      tokens: scope.

    Raises:
      ValueError: means that don't fit the target, or of which the target's aren't finite.
    """
    if means.ndim != 3 or means.shape[:2] != target.shape:
        raise ValueError(
            f"means has shape {means.shape}, the target has {target.shape}: (l, e, d) wants the "
            "same layers and experts"
        )
    chosen = np.where(target[..., None], means, 0)
    if not np.isfinite(chosen).all():
        layer, expert, _ = np.argwhere(~np.isfinite(chosen))[0]
        raise ValueError(f"means of layer {layer}, expert {expert} must be finite")
    edit = _edit(config, len(target), tokens, zero=target[:, None])
    return edit._replace(stand_in=jnp.asarray(chosen, jnp.float32))


def force(config: GateConfig, target: Target, *, tokens: Tokens | None = None) -> RoutingEdit:
    """Chosen before all others, with the weights of the gate (`steer` lifts these too)."""
    return _edit(config, len(target), tokens, force=target[:, None])


def steer(
    config: GateConfig,
    *,
    forced: Target,
    suppressed: Target,
    margin: float = 0.01,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """S4, as SteerMoE (arXiv 2509.09660): z_e = max_j z_j + margin, or min_j z_j - margin.

    Forced experts then share one weight, the largest, so this is a strong dose; those at the floor
    are still chosen where fewer than k others are left.

    Args:
      config: the gate.
      forced: experts at the ceiling.
      suppressed: experts at the floor.
      margin: beyond the largest and the smallest, in units of the logits.
      tokens: scope.

    Raises:
      ValueError: an expert in both sets, a margin that isn't positive and finite.
    """
    if np.any(forced & suppressed):
        raise ValueError("forced and suppressed share an expert")
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin} must be a number > 0")
    moved = np.where(forced, margin, np.where(suppressed, -margin, 0.0))
    return _edit(config, len(forced), tokens, steer=moved[:, None])


def bias(
    config: GateConfig,
    target: Target,
    amount: float | Float[np.ndarray, "l e"],
    *,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """B1: `amount` added to the logits of the target: score, choice and weight see it.

    Raises:
      ValueError: an amount that isn't finite.
    """
    added = np.asarray(amount, np.float32)
    if not np.isfinite(added).all():
        raise ValueError(f"amount={amount} must be finite")
    # x + -0.0 has the bits of x, x + 0.0 has not where x is -0.0.
    moved = np.where(target & (added != 0), added, -0.0)
    return _edit(config, len(target), tokens, bias=moved[:, None])


def scale(
    config: GateConfig,
    target: Target,
    factor: float | Float[np.ndarray, "l e"],
    *,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """B2: the weights of the target times `factor`, the choice as it was; 1 is no dose.

    Raises:
      ValueError: a factor that isn't finite.
    """
    if not np.isfinite(factor).all():
        raise ValueError(f"factor={factor} must be finite")
    return _edit(config, len(target), tokens, scale=np.where(target, factor, 1.0)[:, None])


def random(
    config: GateConfig, layers: Layers, *, seed: int, tokens: Tokens | None = None
) -> RoutingEdit:
    """M1: k experts drawn uniformly for each token, in the layers that are True.

    The draw is a function of the seed, the layer and the token's row in the call: a model that
    decodes one token a call draws the same experts each time, unless the seed moves on.
    """
    seeds = _seeds(seed, len(layers))
    return _edit(config, len(layers), tokens, random_k=layers[:, None], seed=seeds)


def rank_shift(
    config: GateConfig, layers: Layers, *, shift: int | None = None, tokens: Tokens | None = None
) -> RoutingEdit:
    """M2: skip `shift` ranks (None: k), in the layers that are True.

    Raises:
      ValueError: a negative shift.
    """
    shift = config.k if shift is None else shift
    if shift < 0:
        raise ValueError(f"shift={shift} must be at least 0")
    return _edit(config, len(layers), tokens, rank_shift=(layers * shift)[:, None])


def permute(
    config: GateConfig, target: Target, *, seed: int, tokens: Tokens | None = None
) -> RoutingEdit:
    """M3: in each layer the target's experts do each other's work, along one random cycle.

    So every expert of the target is replaced, and no other; weights stay where they were.

    Raises:
      ValueError: a layer with one expert in the target: there is none to exchange it with.
    """
    rng = np.random.default_rng(seed)
    worker = np.tile(np.arange(config.num_experts), (len(target), 1))
    for layer, row in enumerate(target):
        ring = rng.permutation(np.flatnonzero(row))
        if len(ring) == 1:
            raise ValueError(f"layer {layer}: the target has one expert, an exchange takes two")
        worker[layer, ring] = np.roll(ring, -1)
    return _edit(config, len(target), tokens, permute=worker[:, None])


def gumbel(
    config: GateConfig,
    layers: Layers,
    temperature: float,
    *,
    seed: int,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """M4: the k experts of largest logit + temperature * Gumbel noise, in the layers that are True.

    That is sampling without replacement from softmax(logits / temperature), at equal compute;
    weights are what the gate gives to the experts drawn. Groups and selection biases do not apply.
    At temperature 0 the token is routed as usual. The noise is a function of the seed, the layer
    and the token's row in the call, as the draw of `random`.

    Args:
      config: a gate of token choice.
      layers: where.
      temperature: of the noise, in units of the logits.
      seed: of the noise.
      tokens: scope.

    Raises:
      ValueError: a negative temperature, a gate of expert choice.
    """
    if config.choice == "expert":
        raise ValueError('gumbel needs config.choice="token": here experts choose')
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a number >= 0")
    noise = (layers * temperature)[:, None]
    return _edit(config, len(layers), tokens, gumbel=noise, seed=_seeds(seed, len(layers)))


def donor(
    config: GateConfig,
    expert: Int[np.ndarray, "t2 l k"],
    position: Int[np.ndarray, " t"],
    *,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """M5: token i takes the experts of the donor's token position[i]; as routed where that is -1.

    Args:
      config: the gate.
      expert: the donor's routes, `Routing.expert` of each layer.
      position: for each token of the prompt, a token of the donor or -1. `aligned(t, t2)` takes
        them in order.
      tokens: scope.

    Raises:
      ValueError: a position beyond the donor's tokens; as `replay`.
    """
    if np.any((position < -1) | (position >= len(expert))):
        raise ValueError(
            f"position holds {position.min()}..{position.max()}: the donor's tokens are "
            f"0..{len(expert) - 1}, and -1 means as routed"
        )
    given = position >= 0
    routes = np.where(given[:, None, None], expert[np.maximum(position, 0)], KEEP)
    return replay(config, routes, tokens=tokens)


def aligned(num_tokens: int, donor_tokens: int) -> Int[np.ndarray, " t"]:
    """Positions for `donor`: token i takes token i, and -1 beyond the donor's end."""
    position = np.arange(num_tokens)
    return np.where(position < donor_tokens, position, -1)


def top_1(config: GateConfig, layers: Layers, *, tokens: Tokens | None = None) -> RoutingEdit:
    """M6: slots after the first stay empty, in the layers that are True.

    Gates that renormalise give all the weight to the one that is left, others what it had.
    """
    slots = np.full(config.slots, config.num_experts)
    slots[0] = KEEP
    routes = np.where(layers[:, None], slots[None], KEEP)
    return _edit(config, len(layers), tokens, replay=routes[:, None])


def replay(
    config: GateConfig,
    expert: Int[np.ndarray, "t l k"],
    *,
    weight: Float[np.ndarray, "t l k"] | None = None,
    tokens: Tokens | None = None,
) -> RoutingEdit:
    """R: these experts; -1 as routed, num_experts none. Weights as the gate gives, or as given.

    Where a row mixes -1 with experts, what is routed must not be among these.

    Args:
      config: the gate.
      expert: `Routing.expert` of each layer.
      weight: `Routing.weight` of each layer, NaN for what the gate gives; None: all of them.
      tokens: scope.

    Raises:
      ValueError: another number of slots than the gate's, an id out of range, an expert twice in a
        row.
    """
    slots, experts = config.slots, config.num_experts
    if expert.shape[2] != slots:
        raise ValueError(f"expert has {expert.shape[2]} slots, the gate has {slots}")
    if expert.size and not KEEP <= expert.min() <= expert.max() <= experts:
        raise ValueError(
            f"expert holds {expert.min()}..{expert.max()}: ids go from 0 to {experts - 1}, -1 "
            f"means as routed and {experts} none"
        )
    line = np.sort(expert, axis=2)
    twice = (line[..., 1:] == line[..., :-1]) & (line[..., 1:] >= 0) & (line[..., 1:] < experts)
    if twice.any():
        t, layer, _ = np.argwhere(twice)[0]
        raise ValueError(f"token {t}, layer {layer}: an expert stands twice in {expert[t, layer]}")
    changes: dict[str, np.ndarray] = {"replay": np.moveaxis(expert, 1, 0)}
    if weight is not None:
        changes["replay_weight"] = np.moveaxis(weight, 1, 0)
    return _edit(config, expert.shape[1], tokens, **changes)


def stack(edits: Sequence[RoutingEdit]) -> RoutingEdit:
    """Many edits as one, with a new first axis to `jax.vmap` over.

    Leaves for all tokens ([l 1 ...]) are widened where another edit's are for each ([l t ...]).

    Raises:
      ValueError: no edit, or edits for different models or numbers of tokens.
    """
    if not edits:
        raise ValueError("edits is empty: there is nothing to stack")

    def joined(*leaves: Any) -> Any:
        shape = np.broadcast_shapes(*(leaf.shape for leaf in leaves))
        return jnp.stack([jnp.broadcast_to(leaf, shape) for leaf in leaves])

    return jax.tree.map(joined, *edits)


def _seeds(seed: int, num_layers: int) -> UInt32[np.ndarray, " l"]:
    """A seed of its own for each layer."""
    return np.random.SeedSequence(seed).generate_state(num_layers, np.uint32)


def _edit(
    config: GateConfig, num_layers: int, tokens: Tokens | None, **changes: np.ndarray
) -> RoutingEdit:
    """The identity of every layer, with these leaves changed."""
    leaves = identity_edit(config, num_layers)._asdict()
    if tokens is not None:
        changes["tokens"] = np.broadcast_to(tokens, (num_layers, len(tokens)))
    for name, values in changes.items():
        like = leaves[name]
        rows = values.shape[1:2] if like.ndim > 1 else ()
        if values.shape != (num_layers, *rows, *like.shape[2:]):
            want = (num_layers, *("#t" for _ in rows), *like.shape[2:])
            raise ValueError(f"{name} has shape {values.shape}, the model wants {want}")
        leaves[name] = jnp.asarray(values, like.dtype)
    return RoutingEdit(**leaves)
