"""Choice: which experts each token gets: limits by groups, top-k, expert choice, capacity.

Internal to `moe_jax.gating.route`, which gives these functions their meaning. A "ranking" [t e] is
the score that decides (not the weight); -inf in it means that this token can't have this expert.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.gating.config import GateConfig
from moe_jax.gating.edit import KEEP, RoutingEdit
from moe_jax.gating.scores import take


def choose(
    z: Float[Array, "t e"],
    probs: Float[Array, "t e"],
    config: GateConfig,
    *,
    bias: Float[Array, " e"] | None,
    edit: RoutingEdit | None,
    where: Bool[Array, " t"] | None,
) -> tuple[Int[Array, "t k"], Bool[Array, "t k"]]:
    """The experts of each token, best first, and whether the slot has one.

    `z` are the logits, `probs` the scores of all experts; `edit` is one that `scoped` made.
    """
    ranking = _ranking(z, probs, config, bias=bias, where=where)
    # Limits: excluded experts, groups.
    if edit is not None:
        ranking = jnp.where(edit.exclude, -jnp.inf, ranking)
    if config.num_groups > 1:
        allowed = _allowed_by_groups(ranking, config)
        if edit is not None:
            allowed = allowed | edit.force | (edit.random_k | (edit.gumbel > 0))[:, None]
        ranking = jnp.where(allowed, ranking, -jnp.inf)
    # Random rankings.
    if edit is not None:
        ranking = _randomised(ranking, z, config, edit)
    # The k best for each token, or the best tokens for each expert.
    if config.choice == "expert":
        taken = _chosen_by_experts(ranking, None if edit is None else edit.force, config, where)
        ranking = jnp.where(taken, ranking, -jnp.inf)
        expert = jax.lax.top_k(ranking, config.num_experts)[1]
    elif edit is not None:
        expert = _ranked(ranking, edit.force, edit.rank_shift, config.k)
    else:
        expert = jax.lax.top_k(ranking, config.k)[1]
    present = take(ranking, expert) > -jnp.inf
    # Recorded experts.
    if edit is not None:
        recorded = edit.replay != KEEP
        present = jnp.where(recorded, edit.replay < config.num_experts, present)
        expert = jnp.where(recorded, edit.replay, expert)
    if where is not None:
        present = present & where[:, None]
    return expert.astype(jnp.int32), present


def _ranking(
    z: Float[Array, "t e"],
    probs: Float[Array, "t e"],
    config: GateConfig,
    *,
    bias: Float[Array, " e"] | None,
    where: Bool[Array, " t"] | None,
) -> Float[Array, "t e"]:
    """What decides the choice: logits or scores, and the selection bias; without a gradient."""
    by_logits = config.topk_first or config.score == "sparsemixer"
    ranking = jax.lax.stop_gradient(z if by_logits else probs)
    if bias is not None:
        ranking = ranking + bias.astype(jnp.float32)[None]
    ranking = _nan_last(ranking, z)
    # top_k puts -0.0 below 0.0; here they tie, and the lower index wins.
    ranking = jnp.where(ranking == 0, 0, ranking)
    ranking = jnp.where(z == -jnp.inf, -jnp.inf, ranking)
    return ranking if where is None else jnp.where(where[:, None], ranking, -jnp.inf)


def _nan_last(ranking: Float[Array, "t e"], logits: Float[Array, "t e"]) -> Float[Array, "t e"]:
    """The ranking without NaN, which `lax.top_k` takes for the largest number.

    Softmax makes a whole token NaN: then its logits decide, and those that are NaN come last.
    """
    ranking = jnp.where(jnp.isnan(ranking), jax.lax.stop_gradient(logits), ranking)
    return jnp.where(jnp.isnan(ranking), jnp.finfo(ranking.dtype).min, ranking)


def _randomised(
    ranking: Float[Array, "t e"], z: Float[Array, "t e"], config: GateConfig, edit: RoutingEdit
) -> Float[Array, "t e"]:
    """The ranking with Gumbel noise, or drawn at random, at the tokens for which the edit asks."""
    if config.choice == "token":
        ranking = jnp.where((edit.gumbel > 0)[:, None], _noisy(ranking, z, edit), ranking)
    draw = jax.random.uniform(jax.random.key(edit.seed), ranking.shape, jnp.float32)
    drawn = jnp.where(ranking == -jnp.inf, -jnp.inf, draw)
    return jnp.where(edit.random_k[:, None], drawn, ranking)


def _noisy(
    ranking: Float[Array, "t e"], logits: Float[Array, "t e"], edit: RoutingEdit
) -> Float[Array, "t e"]:
    """Logits with Gumbel noise; -inf where the ranking is."""
    key = jax.random.fold_in(jax.random.key(edit.seed), 1)
    noise = edit.gumbel[:, None] * jax.random.gumbel(key, ranking.shape, jnp.float32)
    noisy = _nan_last(jax.lax.stop_gradient(logits) + noise, logits)
    return jnp.where(ranking == -jnp.inf, -jnp.inf, noisy)


def _allowed_by_groups(ranking: Float[Array, "t e"], config: GateConfig) -> Bool[Array, "t e"]:
    """Experts in the `groups_kept` best groups of each token; ties go to the lower group."""
    tokens, experts = ranking.shape
    grouped = ranking.reshape(tokens, config.num_groups, experts // config.num_groups)
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


def _ranked(
    ranking: Float[Array, "t e"], forced: Bool[Array, "t e"], shift: Int[Array, " t"], k: int
) -> Int[Array, "t k"]:
    """The k best experts after skipping `shift` ranks, the forced ones first.

    Without forced experts and shifts these are `lax.top_k`'s indices.
    """
    experts = ranking.shape[1]
    order = jax.lax.top_k(ranking, experts)[1]
    usable = jnp.sum(ranking > -jnp.inf, axis=1)
    start = jnp.minimum(shift, jnp.maximum(usable - k, 0))
    position = (start[:, None] + jnp.arange(experts)[None]) % experts
    order = take(order, position)
    first = take(forced & (ranking > -jnp.inf), order)
    return take(order, jnp.argsort(~first, axis=1, stable=True)[:, :k])


def within_capacity(
    expert: Int[Array, "t k"],
    weight: Float[Array, "t k"],
    present: Bool[Array, "t k"],
    config: GateConfig,
    *,
    where: Bool[Array, " t"] | None,
    segments: Int[Array, " t"] | None,
) -> tuple[Int[Array, "t k"], Float[Array, "t k"]]:
    """The assignments that are present and find room; others have expert E and weight 0."""
    none = config.num_experts
    expert = jnp.where(present, expert, none)
    if config.choice == "token" and not config.dropless:
        present = present & under_capacity(expert, weight, config, where=where, segments=segments)
        expert = jnp.where(present, expert, none)
    return expert, jnp.where(present, weight, 0)


def under_capacity(
    expert: Int[Array, "t k"],
    weight: Float[Array, "t k"],
    config: GateConfig,
    *,
    where: Bool[Array, " t"] | None,
    segments: Int[Array, " t"] | None,
) -> Bool[Array, "t k"]:
    """Which assignments find room: all first choices in order of priority, then all second, ...

    The position of an assignment counts those before it with the same expert and segment. A stable
    sort finds it, so the cost is O(t k log(t k)), not O(t k e).
    """
    tokens, k = expert.shape
    # Assignments in the order in which they are served.
    if config.priority == "score":
        order = jnp.argsort(-jnp.max(weight, axis=1), stable=True)
    else:
        order = jnp.arange(tokens)
    expert_flat = expert[order].T.reshape(-1)
    segment = jnp.zeros(tokens, jnp.int32) if segments is None else segments.astype(jnp.int32)
    segment_flat = jnp.tile(segment[order], k)
    # Sorted by segment and expert: one run for each pair.
    index = jnp.arange(tokens * k)
    sorted_segment, sorted_expert, sorted_index = jax.lax.sort(
        (segment_flat, expert_flat, index), num_keys=2, is_stable=True
    )
    starts = (sorted_expert[1:] != sorted_expert[:-1]) | (sorted_segment[1:] != sorted_segment[:-1])
    run_start = jax.lax.cummax(jnp.where(jnp.concatenate([jnp.ones(1, bool), starts]), index, 0))
    # The position within the run, back in the order of the tokens, compared with the capacity.
    position_flat = (
        jnp.zeros_like(index).at[sorted_index].set(index - run_start, unique_indices=True)
    )
    position = jnp.zeros((tokens, k), position_flat.dtype)
    position = position.at[order].set(position_flat.reshape(k, tokens).T)
    return position < _capacity(tokens, config, where, segments)[:, None]


def _chosen_by_experts(
    ranking: Float[Array, "t e"],
    forced: Bool[Array, "t e"] | None,
    config: GateConfig,
    where: Bool[Array, " t"] | None,
) -> Bool[Array, "t e"]:
    """Whether the expert takes the token: each takes its best tokens, as many as have room."""
    tokens, experts = ranking.shape
    share = config.share()
    most = config.capacity or -(-tokens * share.numerator // share.denominator)
    most = min(most, tokens)
    capacity = _capacity(tokens, config, where, None)[:1]
    if forced is None:
        taken = jax.lax.top_k(ranking.T, most)[1]
    else:
        taken = _ranked(ranking.T, forced.T, jnp.zeros(experts, jnp.int32), most)
    has_room = jnp.broadcast_to((jnp.arange(most) < capacity)[None], taken.shape)
    mask = jnp.zeros((experts, tokens), bool)
    mask = mask.at[jnp.arange(experts)[:, None], taken].set(has_room)
    return mask.T & (ranking > -jnp.inf)


def _capacity(
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
        ordered = jnp.sort(jnp.where(real, segments.astype(jnp.int32), last))
        first = jnp.searchsorted(ordered, segments)
        count = jnp.searchsorted(ordered, segments, side="right") - first
    share = config.share()
    whole, rest = jnp.divmod(count, share.denominator)
    # ceil(count * share) in integers: exact, and the product can't overflow.
    return whole * share.numerator - (-rest * share.numerator // share.denominator)
