"""What an intervention came to: t tokens, l layers, k choices, e experts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Measures(NamedTuple):
    """What an intervention did, by layer [l] or overall [].

    Attributes:
      realised_k: experts per token that contribute: chosen, and of a weight other than 0.
      gate_mass: sum of a token's weights, mean over tokens.
      target_share: share of the gate mass that is on the target; 0 where there is no mass.
      changed: share of tokens whose set of chosen experts isn't the base's. Overall: in any layer.
    """

    realised_k: np.ndarray
    gate_mass: np.ndarray
    target_share: np.ndarray
    changed: np.ndarray


class Dose(NamedTuple):
    """The realised dose: `layer` and `overall` of the edited run, and the same of the base."""

    layer: Measures
    overall: Measures
    base_layer: Measures
    base_overall: Measures


def dose(
    base: tuple[Int[np.ndarray, "t l k"], Float[np.ndarray, "t l k"]],
    edited: tuple[Int[np.ndarray, "t l k"], Float[np.ndarray, "t l k"]],
    target: Bool[np.ndarray, "l e"],
    *,
    where: Bool[np.ndarray, " t"],
) -> Dose:
    """What an intervention came to, from two routings of the same tokens.

    Args:
      base: experts and weights, `Routing.expert` and `Routing.weight` of each layer, unedited.
      edited: the same with the intervention.
      target: the experts it was aimed at; all False where it has none.
      where: the tokens to count.

    Raises:
      ValueError: no token to count.
    """
    if not where.any():
        raise ValueError("where leaves no token to count")
    sets = [np.sort(expert[where], axis=2) for expert, _ in (base, edited)]
    changed = np.any(sets[0] != sets[1], axis=2)
    same = np.zeros_like(changed)
    now, before = _measures(*edited, target, where, changed), _measures(*base, target, where, same)
    return Dose(*now, *before)


def _measures(
    expert: Int[np.ndarray, "t l k"],
    weight: Float[np.ndarray, "t l k"],
    target: Bool[np.ndarray, "l e"],
    where: Bool[np.ndarray, " t"],
    changed: Bool[np.ndarray, "n l"],
) -> tuple[Measures, Measures]:
    """By layer and overall."""
    chosen, mass = expert[where], weight[where].astype(np.float64)
    there = np.append(target, np.zeros((len(target), 1), bool), axis=1)
    aimed = there[np.arange(len(target))[:, None], chosen]
    on = np.where(aimed, mass, 0).sum(axis=(0, 2))
    total = mass.sum(axis=(0, 2))
    real = (chosen < target.shape[1]) & (mass != 0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros_like(whole), where=whole != 0)

    k = real.sum(axis=2).mean(axis=0)
    by_layer = Measures(k, total / len(chosen), share(on, total), changed.mean(axis=0))
    overall = Measures(
        np.asarray(k.mean()),
        np.asarray(by_layer.gate_mass.mean()),
        share(np.asarray(on.sum()), np.asarray(total.sum())),
        np.asarray(changed.any(axis=1).mean()),
    )
    return by_layer, overall
