"""From the routing of tokens to the usage of experts by a prompt.

u(x) of the seed and its variants for several experts a token. Letters: t tokens, l layers, k
choices, e experts.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

KINDS = ("selection", "share", "gate", "soft")


class Usage(NamedTuple):
    """How a prompt uses the experts of each layer.

    Attributes:
      rate: by the kind that was asked for.
      dropped: choices per token that no expert took (Switch's capacity), of each layer.
      tokens: how many were counted.
    """

    rate: Float[np.ndarray, "l e"]
    dropped: Float[np.ndarray, " l"]
    tokens: int


def usage(
    expert: Int[np.ndarray, "t l k"],
    num_experts: int,
    *,
    where: Bool[np.ndarray, " t"],
    kind: str = "selection",
    weight: Float[np.ndarray, "t l k"] | None = None,
    probs: Float[np.ndarray, "t l e"] | None = None,
) -> Usage:
    """The mean over the prompt's tokens, by kind.

    * "selection": (1/T) sum_t 1[e is among the choices of t]: sums to k less what was dropped. With
      one choice a token this is the seed's u(x).
    * "share": the same / k.
    * "gate": (1/T) sum_t g_te, the multiplier of the expert's output.
    * "soft": (1/T) sum_t of the scores before the cut.

    Padding and special tokens are to be left out by `where`; a dropped choice counts for no expert.

    Args:
      expert: ids as `Routing.expert` has them: num_experts where no expert took the choice.
      num_experts: e, of each layer.
      where: the tokens to count.
      kind: one of KINDS.
      weight: for "gate": as `Routing.weight`.
      probs: for "soft": as `Routing.probs`.

    Raises:
      ValueError: an unknown kind, what it needs is missing, an id out of range, no token to count.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}")
    for name, needs, given in (("weight", "gate", weight), ("probs", "soft", probs)):
        if kind == needs and given is None:
            raise ValueError(f"kind={kind!r} needs {name}")
    tokens = int(np.sum(where))
    if tokens == 0:
        raise ValueError("where leaves no token of the prompt to count")
    chosen = expert[where]
    if chosen.size and (chosen.min() < 0 or chosen.max() > num_experts):
        raise ValueError(
            f"expert holds {chosen.min()}..{chosen.max()}: ids go from 0 to {num_experts - 1}, and "
            f"{num_experts} means dropped"
        )
    ones = np.ones(chosen.shape)
    counts = _sums(chosen, ones, num_experts) / tokens
    if kind == "soft" and probs is not None:
        rate = probs[where].mean(axis=0, dtype=np.float64)
    elif kind == "gate" and weight is not None:
        rate = _sums(chosen, weight[where], num_experts)[:, :-1] / tokens
    else:
        rate = counts[:, :-1] / (chosen.shape[2] if kind == "share" else 1)
    return Usage(rate, counts[:, -1], tokens)


def clr(rate: Float[np.ndarray, "*batch e"], pseudo: float) -> Float[np.ndarray, "*batch e"]:
    """Centred log-ratio: log(u + a) - mean over experts of log(u + a).

    Rates that sum to a constant rise together only at the cost of others; ratios don't.

    Args:
      rate: usage, experts last.
      pseudo: a > 0, in place of zeros: such as half a token, 0.5 / T.

    Raises:
      ValueError: pseudo isn't above 0.
    """
    if not pseudo > 0:
        raise ValueError(f"pseudo={pseudo} must be more than 0")
    logs = np.log(rate + pseudo)
    return logs - logs.mean(axis=-1, keepdims=True)


def _sums(
    chosen: Int[np.ndarray, "t l k"], values: Float[np.ndarray, "t l k"], num_experts: int
) -> Float[np.ndarray, "l bins"]:
    """Sums of values by layer and expert, those dropped last."""
    layers, bins = chosen.shape[1], num_experts + 1
    cell = chosen + bins * np.arange(layers)[:, None]
    sums = np.bincount(cell.ravel(), values.ravel(), minlength=layers * bins)
    return sums.reshape(layers, bins)
