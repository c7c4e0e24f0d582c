"""Expert sets to compare a chosen one with: random ones that match it, and its opposite.

Letters: l layers, e experts, n sets.
"""

import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata


def matched_controls(
    target: Bool[np.ndarray, "l e"],
    usage: Float[np.ndarray, "l e"],
    *,
    seed: int,
    number: int = 20,
    bins: int = 10,
) -> Bool[np.ndarray, "n l e"]:
    """Random sets like the target: as many experts of each layer, alike in usage, none of its own.

    The experts of a layer form `bins` groups of equal size by the rank of their usage (ties in
    one), deciles by default; each expert of the target is matched by one of its own group. The sets
    differ from each other wherever there are that many; else each occurs about as often.

    Args:
      target: the set to be matched.
      usage: of the experts, by any kind of `usage`.
      seed: of the draws.
      number: of sets, at least 20: p can't be below 1 / (number + 1).
      bins: groups. With few experts a group is small: take fewer.

    Raises:
      ValueError: an empty target, fewer than 20 sets, a group with too few experts.
    """
    if number < 20:
        raise ValueError(f"number={number} must be at least 20: p can't be below 1/(number+1)")
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    if not target.any():
        raise ValueError("target is empty: there is nothing to match")
    cells = _cells(target, usage, bins)
    layers = [layer for layer, _, _ in cells]
    rng = np.random.default_rng(seed)
    possible = math.prod(math.comb(len(pool), need) for _, pool, need in cells)
    drawn: list[tuple[tuple[int, ...], ...]] = []
    if possible <= 4 * number:
        ways = [itertools.combinations(pool.tolist(), need) for _, pool, need in cells]
        every = list(itertools.product(*ways))
        order = np.concatenate([rng.permutation(possible) for _ in range(-(-number // possible))])
        drawn = [every[i] for i in order[:number]]
    seen = set(drawn)
    while len(drawn) < number:
        picks = (np.sort(rng.choice(pool, need, replace=False)) for _, pool, need in cells)
        one = tuple(tuple(pick.tolist()) for pick in picks)
        if one not in seen:
            seen.add(one)
            drawn.append(one)
    controls = np.zeros((number, *target.shape), bool)
    for n, one in enumerate(drawn):
        for layer, experts in zip(layers, one, strict=True):
            controls[n, layer, list(experts)] = True
    return controls


def least_like(
    target: Bool[np.ndarray, "l e"], score: Float[np.ndarray, "l e"]
) -> Bool[np.ndarray, "l e"]:
    """The opposite of the target: as many experts of each layer, those of the lowest score.

    Args:
      target: the set that was taken for its high scores.
      score: by which it was taken, such as a trend's z.

    Raises:
      ValueError: a layer with too few other experts.
    """
    opposite = np.zeros_like(target)
    for layer, row in enumerate(target):
        others = np.flatnonzero(~row)
        if len(others) < row.sum():
            raise ValueError(
                f"layer {layer} has {len(others)} experts outside the target, needed: {row.sum()}"
            )
        order = np.argsort(score[layer, others], kind="stable")
        opposite[layer, others[order[: row.sum()]]] = True
    return opposite


def _cells(
    target: Bool[np.ndarray, "l e"], usage: Float[np.ndarray, "l e"], bins: int
) -> list[tuple[int, Int[np.ndarray, " c"], int]]:
    """(layer, candidates, how many are needed) of each group of usage that the target is in."""
    cells = []
    for layer, row in enumerate(target):
        group = ((rankdata(usage[layer], "min") - 1) * bins // len(row)).astype(int)
        for g in np.unique(group[row]):
            pool, need = np.flatnonzero((group == g) & ~row), int(np.sum((group == g) & row))
            if len(pool) < need:
                raise ValueError(
                    f"layer {layer}: {len(pool)} experts outside the target are used as much as "
                    f"{need} of it (group {g + 1} of {bins}): take fewer bins, or a smaller target"
                )
            cells.append((layer, pool, need))
    return cells
