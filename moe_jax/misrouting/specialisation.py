"""What experts of a model are for: balance, co-activation, saturation, domains, words, comparison.

All k choices of a token count, never the first alone, and all pairs of them. Counts add up: those
of many prompts are the sum of each prompt's. Letters: t tokens, l layers, k choices, e experts,
d domains, c checkpoints, v token ids. Ids of experts as in `usage`: num_experts where no expert
took the choice; a token never holds an expert twice.

Source: definitions of co-activation, saturation and specialisation as in OLMoE (Muennighoff et al.
2024), over all pairs and with a minimum count.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Counts(NamedTuple):
    """How often experts were chosen.

    Attributes:
      chosen: choices of each expert, N_e.
      dropped: choices that no expert took.
      tokens: how many were counted, N.
    """

    chosen: Int[np.ndarray, "l e"]
    dropped: Int[np.ndarray, " l"]
    tokens: int


class Balance(NamedTuple):
    """How evenly the experts of each layer are used.

    Attributes:
      load: share of the layer's assignments, N_e / sum N; zeros where there are none.
      entropy: of the load, in bits: 0 (one expert) to log2 e.
      evenness: entropy / log2 e, 0 to 1; 1 for a single expert.
      peak: largest over mean load: 1 (even) to e.
      dead: load at most `dead` times the even share 1/e.
      cold: load at most `cold` times 1/e, and not dead.
    """

    load: Float[np.ndarray, "l e"]
    entropy: Float[np.ndarray, " l"]
    evenness: Float[np.ndarray, " l"]
    peak: Float[np.ndarray, " l"]
    dead: Bool[np.ndarray, "l e"]
    cold: Bool[np.ndarray, "l e"]


class Domains(NamedTuple):
    """Specialisation by domain.

    Attributes:
      rate: N_{e,d} / N_d: share of the domain's tokens that choose the expert.
      uniform: k / e, what even routing without drops would give.
    """

    rate: Float[np.ndarray, "d l e"]
    uniform: float


class Vocabulary(NamedTuple):
    """Specialisation by token id, of the ids seen at least `minimum` times.

    Attributes:
      ids: the ids, ascending.
      times: how often each was seen.
      expert: its most frequent expert in each layer (num_experts: it never had one).
      rate: max_e N_{x,e} / N_x: share of the id's occurrences that choose that expert.
      mean: of the rate, over ids.
      ids_left_out: ids seen less often than the minimum.
      tokens_left_out: their occurrences.
    """

    ids: Int[np.ndarray, " v"]
    times: Int[np.ndarray, " v"]
    expert: Int[np.ndarray, "l v"]
    rate: Float[np.ndarray, "l v"]
    mean: Float[np.ndarray, " l"]
    ids_left_out: int
    tokens_left_out: int


class Comparison(NamedTuple):
    """Two routings of the same tokens, layer by layer.

    Attributes:
      jaccard: mean over tokens of |A & B| / |A | B|; two empty sets count as equal.
      total_variation: sum_e |load_a - load_b| / 2.
      jsd: Jensen-Shannon divergence of the loads, in bits: 0 to 1.
      correlation: Pearson's, of the loads over experts; NaN where one is even.
    """

    jaccard: Float[np.ndarray, " l"]
    total_variation: Float[np.ndarray, " l"]
    jsd: Float[np.ndarray, " l"]
    correlation: Float[np.ndarray, " l"]


def counts(
    expert: Int[np.ndarray, "t l k"], num_experts: int, *, where: Bool[np.ndarray, " t"]
) -> Counts:
    """Choices by layer and expert, over the tokens in `where`.

    Raises:
      ValueError: an id out of range.
    """
    rows = _chosen(expert, num_experts, where)
    layers, bins = rows.shape[1], num_experts + 1
    cell = rows.astype(np.int64) + bins * np.arange(layers)[:, None]
    table = np.bincount(cell.ravel(), minlength=layers * bins).reshape(layers, bins)
    return Counts(table[:, :-1], table[:, -1], len(rows))


def balance(chosen: Int[np.ndarray, "l e"], *, dead: float = 0.0, cold: float = 0.1) -> Balance:
    """Load, its entropy and its extremes.

    Args:
      chosen: `Counts.chosen`, of one prompt or summed over many.
      dead: multiple of the even share up to which an expert is dead; 0: never chosen.
      cold: multiple of the even share up to which it is cold.

    Raises:
      ValueError: not 0 <= dead <= cold.
    """
    if not 0 <= dead <= cold:
        raise ValueError(f"dead={dead}, cold={cold}: must be 0 <= dead <= cold")
    load, experts = _load(chosen), chosen.shape[1]
    entropy = _entropy(load)
    evenness = entropy / np.log2(experts) if experts > 1 else np.ones_like(entropy)
    # In whole numbers, so that a bar that is met is met: N_e e <= dead sum N.
    scaled, total = chosen * experts, chosen.sum(axis=1, keepdims=True)
    is_dead = scaled <= dead * total
    is_cold = (scaled <= cold * total) & ~is_dead
    return Balance(load, entropy, evenness, load.max(axis=1) * experts, is_dead, is_cold)


def token_entropy(
    probs: Float[np.ndarray, "t l e"], *, where: Bool[np.ndarray, " t"]
) -> Float[np.ndarray, " l"]:
    """Mean over tokens of the entropy of the scores before the cut, in bits.

    Scores that don't sum to 1 (sigmoid gates) are divided by their sum first; a row of zeros has
    entropy 0.

    Raises:
      ValueError: no token to count.
    """
    if not where.any():
        raise ValueError("where leaves no token to count")
    layers = range(probs.shape[1])
    return np.array([_entropy(_load(probs[where, layer])).mean() for layer in layers])


def pair_counts(
    expert: Int[np.ndarray, "t l k"], num_experts: int, *, where: Bool[np.ndarray, " t"]
) -> Int[np.ndarray, "l e e"]:
    """N_ij: tokens that choose both i and j in a layer, of all pairs of the k; N_ii = N_i.

    Raises:
      ValueError: an id out of range.
    """
    rows = _chosen(expert, num_experts, where)
    tables = [_pairs(rows[:, m], rows[:, m], num_experts) for m in range(rows.shape[1])]
    return np.stack(tables)


def cross_pair_counts(
    expert: Int[np.ndarray, "t l k"],
    num_experts: int,
    *,
    where: Bool[np.ndarray, " t"],
    first: int,
    second: int,
) -> Int[np.ndarray, "e e"]:
    """N_ij: tokens that choose i in layer `first` and j in layer `second`, over all k x k pairs.

    Raises:
      ValueError: an id or a layer out of range.
    """
    rows = _chosen(expert, num_experts, where)
    for name, layer in (("first", first), ("second", second)):
        if not 0 <= layer < rows.shape[1]:
            raise ValueError(f"{name}={layer}: layers go from 0 to {rows.shape[1] - 1}")
    return _pairs(rows[:, first], rows[:, second], num_experts)


def conditional(
    pairs: Int[np.ndarray, "*batch e e"], chosen: Int[np.ndarray, "*batch e"]
) -> Float[np.ndarray, "*batch e e"]:
    """Co-activation P(j | i) = N_ij / N_i; NaN in the rows of experts never chosen.

    Args:
      pairs: of `pair_counts` or `cross_pair_counts`.
      chosen: N_i, of the layer that i belongs to.
    """
    given = chosen[..., None].astype(np.float64)
    return np.divide(pairs, given, out=np.full(pairs.shape, np.nan), where=given > 0)


def saturation(
    expert: Int[np.ndarray, "c t l k"], num_experts: int, *, where: Bool[np.ndarray, " t"]
) -> Float[np.ndarray, "c l"]:
    """Router saturation: share of the last checkpoint's choices that each checkpoint makes already.

    (1/T) sum_t |E_c(t) & E_last(t)| / k; k is |E_last(t)|, that is without what was dropped. Tokens
    without any expert in the last checkpoint are left out; NaN where that leaves none.

    Args:
      expert: the same tokens by each checkpoint, the final one last.
      num_experts: e.
      where: the tokens to count.

    Raises:
      ValueError: an id out of range, no token to count.
    """
    last = _chosen(expert[-1], num_experts, where)
    size = (last < num_experts).sum(axis=2)
    counted = np.maximum((size > 0).sum(axis=0), 1)
    rates = []
    for checkpoint in expert:
        common = _common(_chosen(checkpoint, num_experts, where), last, num_experts)
        rates.append((common / np.maximum(size, 1)).sum(axis=0) / counted)
    return np.where((size > 0).any(axis=0)[None], np.stack(rates), np.nan)


def domains(chosen: Int[np.ndarray, "d l e"], tokens: Int[np.ndarray, " d"], *, k: int) -> Domains:
    """Domain specialisation N_{e,d} / N_d, and the line of uniform routing k / e.

    Args:
      chosen: `Counts.chosen` of each domain.
      tokens: `Counts.tokens` of each domain.
      k: choices of a token.

    Raises:
      ValueError: a domain without tokens.
    """
    if not (tokens > 0).all():
        raise ValueError(f"domain {int(np.argmin(tokens))} has no tokens")
    return Domains(chosen / tokens[:, None, None], k / chosen.shape[2])


def vocabulary(
    ids: Int[np.ndarray, " t"],
    expert: Int[np.ndarray, "t l k"],
    num_experts: int,
    *,
    where: Bool[np.ndarray, " t"],
    minimum: int = 10,
) -> Vocabulary:
    """How far each token id is bound to one expert.

    An id seen once has rate 1 whatever the router does, and rare ids come close: hence `minimum`.

    Args:
      ids: token ids, prompts joined.
      expert: their experts.
      num_experts: e.
      where: the tokens to count.
      minimum: occurrences that an id needs.

    Raises:
      ValueError: an id of an expert out of range, a minimum below 1, no token id seen often enough.
    """
    if minimum < 1:
        raise ValueError(f"minimum={minimum} must be at least 1")
    rows = _chosen(expert, num_experts, where)
    seen, index, count = np.unique(ids[where], return_inverse=True, return_counts=True)
    kept = count >= minimum
    if not kept.any():
        most = count.max(initial=0)
        raise ValueError(f"minimum={minimum}: no token id is seen that often, the most is {most}")
    place = (np.cumsum(kept) - 1)[index]
    rows, place = rows[kept[index]], place[kept[index]]
    best = [_most_frequent(rows[:, m], place, num_experts) for m in range(rows.shape[1])]
    rate = np.stack([most for _, most in best]) / count[kept][None]
    return Vocabulary(
        ids=seen[kept],
        times=count[kept],
        expert=np.stack([which for which, _ in best]),
        rate=rate,
        mean=rate.mean(axis=1),
        ids_left_out=int(np.sum(~kept)),
        tokens_left_out=int(count[~kept].sum()),
    )


def compare(
    a: Int[np.ndarray, "t l k1"],
    b: Int[np.ndarray, "t l k2"],
    num_experts: int,
    *,
    where: Bool[np.ndarray, " t"],
) -> Comparison:
    """How alike two models, or two checkpoints, route the same tokens.

    Args:
      a: experts by the one.
      b: by the other; its number of choices may differ. Expert i of both must mean the same.
      num_experts: e.
      where: the tokens to count.

    Raises:
      ValueError: an id out of range, no token to count.
    """
    rows_a, rows_b = _chosen(a, num_experts, where), _chosen(b, num_experts, where)
    both = _common(rows_a, rows_b, num_experts)
    either = (rows_a < num_experts).sum(axis=2) + (rows_b < num_experts).sum(axis=2) - both
    jaccard = np.divide(both, either, out=np.ones(both.shape), where=either > 0).mean(axis=0)
    p = _load(counts(a, num_experts, where=where).chosen)
    q = _load(counts(b, num_experts, where=where).chosen)
    middle = (p + q) / 2
    jsd = np.maximum(_entropy(middle) - (_entropy(p) + _entropy(q)) / 2, 0)
    x, y = p - p.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True)
    spread = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    correlation = np.divide(
        (x * y).sum(axis=1), spread, out=np.full(len(p), np.nan), where=spread > 1e-15
    )
    return Comparison(jaccard, np.abs(p - q).sum(axis=1) / 2, jsd, correlation)


def _chosen(
    expert: Int[np.ndarray, "t l k"], num_experts: int, where: Bool[np.ndarray, " t"]
) -> Int[np.ndarray, "n l k"]:
    """The rows to count, with their ids checked."""
    if not where.any():
        raise ValueError("where leaves no token to count")
    rows = expert[where]
    if rows.size and (rows.min() < 0 or rows.max() > num_experts):
        raise ValueError(
            f"expert holds {rows.min()}..{rows.max()}: ids go from 0 to {num_experts - 1}, and "
            f"{num_experts} means dropped"
        )
    return rows


def _load(values: np.ndarray) -> np.ndarray:
    """Divided by their sum over the last axis; zeros stay zeros."""
    values = values.astype(np.float64)
    total = values.sum(axis=-1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def _entropy(p: np.ndarray) -> np.ndarray:
    """-sum p log2 p over the last axis."""
    logs = np.log2(p, out=np.zeros_like(p), where=p > 0)
    return np.abs(np.sum(p * logs, axis=-1))


def _pairs(
    a: Int[np.ndarray, "t k"], b: Int[np.ndarray, "t k"], num_experts: int
) -> Int[np.ndarray, "e e"]:
    """Tokens by expert in a and expert in b; one pair of slots at a time, so O(t + e^2) memory."""
    bins = num_experts + 1
    table = np.zeros(bins * bins, np.int64)
    for i in range(a.shape[1]):
        row = a[:, i].astype(np.int64) * bins
        for j in range(b.shape[1]):
            table += np.bincount(row + b[:, j], minlength=bins * bins)
    return table.reshape(bins, bins)[:-1, :-1]


def _common(
    a: Int[np.ndarray, "t l k1"], b: Int[np.ndarray, "t l k2"], num_experts: int
) -> Int[np.ndarray, "t l"]:
    """|A & B| of each token and layer."""
    common = np.zeros(a.shape[:2], np.int64)
    for i in range(a.shape[2]):
        slot = a[:, :, i]
        common += (slot < num_experts) & (slot[..., None] == b).any(axis=2)
    return common


def _most_frequent(
    rows: Int[np.ndarray, "t k"], place: Int[np.ndarray, " t"], num_experts: int
) -> tuple[Int[np.ndarray, " v"], Int[np.ndarray, " v"]]:
    """The most frequent expert of each id (the lowest, if several) and how often; sparse."""
    bins = num_experts + 1
    cell, times = np.unique(place[:, None].astype(np.int64) * bins + rows, return_counts=True)
    owner, which = np.divmod(cell, bins)
    times = np.where(which < num_experts, times, 0)
    order = np.lexsort((which, -times, owner))
    head = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
    return which[head], times[head]
