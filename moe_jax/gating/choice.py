"""Who gets whom: group limits, ranking, capacity and expert choice. Integers in, integers out.

Internal to `moe_jax.gating`, which gives these functions their meaning. "Choice" is the score that
decides (not the weight); -inf in it means that this token can't have this expert.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.gating.config import GateConfig
from moe_jax.gating.edit import KEEP, RoutingEdit


def choose_experts(
    choice: Float[Array, "t e"],
    logits: Float[Array, "t e"],
    config: GateConfig,
    edit: RoutingEdit | None,
    where: Bool[Array, " t"] | None,
) -> tuple[Int[Array, "t k"], Bool[Array, "t k"]]:
    """Experts [t k] and whether the slot has one."""
    if edit is not None:
        choice = jnp.where(edit.exclude, -jnp.inf, choice)
    if config.num_groups > 1:
        allowed = allowed_by_groups(choice, config)
        if edit is not None:
            allowed = allowed | edit.force | (edit.random_k | (edit.gumbel > 0))[:, None]
        choice = jnp.where(allowed, choice, -jnp.inf)
    if edit is not None:
        if config.choice == "token":
            choice = jnp.where((edit.gumbel > 0)[:, None], _noisy(choice, logits, edit), choice)
        draw = jax.random.uniform(jax.random.key(edit.seed), choice.shape, jnp.float32)
        drawn = jnp.where(choice == -jnp.inf, -jnp.inf, draw)
        choice = jnp.where(edit.random_k[:, None], drawn, choice)
    if config.choice == "expert":
        taken = chosen_by_experts(choice, None if edit is None else edit.force, config, where)
        choice = jnp.where(taken, choice, -jnp.inf)
        expert = jax.lax.top_k(choice, config.num_experts)[1]
    elif edit is not None:
        expert = ranked(choice, edit.force, edit.rank_shift, config.k)
    else:
        expert = jax.lax.top_k(choice, config.k)[1]
    present = take(choice, expert) > -jnp.inf
    if edit is not None:
        recorded = edit.replay != KEEP
        present = jnp.where(recorded, edit.replay < config.num_experts, present)
        expert = jnp.where(recorded, edit.replay, expert)
    return expert.astype(jnp.int32), present


def nan_last(choice: Float[Array, "t e"], logits: Float[Array, "t e"]) -> Float[Array, "t e"]:
    """The choice without NaN, which `lax.top_k` takes for the largest number.

    Softmax makes a whole token NaN: then its logits decide, and those that are NaN come last.
    """
    choice = jnp.where(jnp.isnan(choice), jax.lax.stop_gradient(logits), choice)
    return jnp.where(jnp.isnan(choice), jnp.finfo(choice.dtype).min, choice)


def _noisy(
    choice: Float[Array, "t e"], logits: Float[Array, "t e"], edit: RoutingEdit
) -> Float[Array, "t e"]:
    """Logits with Gumbel noise; -inf where the choice is."""
    key = jax.random.fold_in(jax.random.key(edit.seed), 1)
    noise = edit.gumbel[:, None] * jax.random.gumbel(key, choice.shape, jnp.float32)
    noisy = nan_last(jax.lax.stop_gradient(logits) + noise, logits)
    return jnp.where(choice == -jnp.inf, -jnp.inf, noisy)


def allowed_by_groups(choice: Float[Array, "t e"], config: GateConfig) -> Bool[Array, "t e"]:
    """Experts in the `groups_kept` best groups of each token; ties go to the lower group."""
    tokens, experts = choice.shape
    grouped = choice.reshape(tokens, config.num_groups, experts // config.num_groups)
    if config.group_score == "max":
        score = jnp.max(grouped, axis=-1)
    else:
        best = jax.lax.top_k(grouped, 2)[0]
        # A group with one expert left is worth that expert, not -inf.
        second = jnp.where(best[..., 1] == -jnp.inf, 0, best[..., 1])
        score = best[..., 0] + second
    kept = jax.lax.top_k(score, config.groups_kept)[1]
    is_kept = jnp.any(jax.nn.one_hot(kept, config.num_groups, dtype=bool), axis=1)
    return jnp.repeat(is_kept, experts // config.num_groups, axis=1)


def ranked(
    choice: Float[Array, "t e"], forced: Bool[Array, "t e"], shift: Int[Array, " t"], k: int
) -> Int[Array, "t k"]:
    """The k best experts after skipping `shift` ranks, the forced ones first.

    Without forced experts and shifts these are `lax.top_k`'s indices.
    """
    experts = choice.shape[1]
    order = jax.lax.top_k(choice, experts)[1]
    usable = jnp.sum(choice > -jnp.inf, axis=1)
    start = jnp.minimum(shift, jnp.maximum(usable - k, 0))
    position = (start[:, None] + jnp.arange(experts)[None]) % experts
    order = take(order, position)
    first = take(forced & (choice > -jnp.inf), order)
    return take(order, jnp.argsort(~first, axis=1, stable=True)[:, :k])


def under_capacity(
    expert: Int[Array, "t k"],
    weight: Float[Array, "t k"],
    config: GateConfig,
    *,
    where: Bool[Array, " t"] | None,
    segments: Int[Array, " t"] | None,
) -> Bool[Array, "t k"]:
    """Which assignments find room: all first choices in order of priority, then all second, ...

    The place of an assignment is its position among those to the same expert in the same segment.
    A stable sort finds it, so the cost is O(t k log(t k)), not O(t k e).
    """
    tokens, k = expert.shape
    if config.priority == "score":
        line = jnp.argsort(-jnp.max(weight, axis=1), stable=True)
    else:
        line = jnp.arange(tokens)
    seat = expert[line].T.reshape(-1)
    segment = jnp.zeros(tokens, jnp.int32) if segments is None else segments.astype(jnp.int32)
    slot = jnp.arange(tokens * k)
    by_segment, by_seat, source = jax.lax.sort(
        (jnp.tile(segment[line], k), seat, slot), num_keys=2, is_stable=True
    )
    new = (by_seat[1:] != by_seat[:-1]) | (by_segment[1:] != by_segment[:-1])
    run_start = jax.lax.cummax(jnp.where(jnp.concatenate([jnp.ones(1, bool), new]), slot, 0))
    place = jnp.zeros_like(slot).at[source].set(slot - run_start, unique_indices=True)
    place_tk = jnp.zeros((tokens, k), place.dtype).at[line].set(place.reshape(k, tokens).T)
    return place_tk < _room(tokens, config, where, segments)[:, None]


def chosen_by_experts(
    choice: Float[Array, "t e"],
    forced: Bool[Array, "t e"] | None,
    config: GateConfig,
    where: Bool[Array, " t"] | None,
) -> Bool[Array, "t e"]:
    """Whether the expert takes the token: each takes its best tokens, as many as have room."""
    tokens, experts = choice.shape
    share = config.share()
    most = config.capacity or -(-tokens * share.numerator // share.denominator)
    most = min(most, tokens)
    room = _room(tokens, config, where, None)[:1]
    if forced is None:
        taken = jax.lax.top_k(choice.T, most)[1]
    else:
        taken = ranked(choice.T, forced.T, jnp.zeros(experts, jnp.int32), most)
    in_room = jnp.broadcast_to((jnp.arange(most) < room)[None], taken.shape)
    mask = jnp.zeros((experts, tokens), bool)
    mask = mask.at[jnp.arange(experts)[:, None], taken].set(in_room)
    return mask.T & (choice > -jnp.inf)


def take(values: Array, index: Int[Array, "t k"]) -> Array:
    """values[t, index[t, k]]; indices are clipped, not wrapped."""
    return jnp.take_along_axis(values, index, axis=1, mode="clip")


def _room(
    tokens: int,
    config: GateConfig,
    where: Bool[Array, " t"] | None,
    segments: Int[Array, " t"] | None,
) -> Int[Array, " t"]:
    """Capacity of every expert, as each token sees it (the one of its segment)."""
    if config.capacity is not None:
        return jnp.full(tokens, config.capacity)
    real = jnp.ones(tokens, bool) if where is None else where
    if segments is None:
        count = jnp.full(tokens, jnp.sum(real))
    else:
        # Padding sorts last, so that a segment's run holds its real tokens only.
        last = jnp.iinfo(jnp.int32).max
        line = jnp.sort(jnp.where(real, segments.astype(jnp.int32), last))
        count = jnp.searchsorted(line, segments, side="right") - jnp.searchsorted(line, segments)
    share = config.share()
    whole, rest = jnp.divmod(count, share.denominator)
    # ceil(count * share) in integers: exact, and the product can't overflow.
    return whole * share.numerator - (-rest * share.numerator // share.denominator)
