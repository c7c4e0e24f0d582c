"""Readings of many prompts, summed up one by one so that what they hold needs not be kept.

Letters: n prompts, d levels, l layers with experts, e experts of each, k choices of a token, t
tokens counted.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from moe_jax.errors import UserError
from moe_jax.misrouting import specialisation
from moe_jax.misrouting.profile_data import Balance, Collected, ModelShape, Sample, TopTokens
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.reading import Reading
from moe_jax.misrouting.usage import usage

_TOKENS = 8  # listed for an expert


def collect(
    readings: Iterable[Reading],
    prompts: Sequence[Prompt],
    model: ModelShape,
    *,
    kind: str = "share",
    samples: int = 0,
) -> Collected:
    """Sum up readings, which may come in any order.

    Args:
      readings: of every prompt, once.
      prompts: the study's.
      model: whose readings they are.
      kind: of usage, one of `usage.KINDS`.
      samples: prompts of each level to keep as texts.

    Raises:
      UserError: the kind needs weights or scores, and the readings have none.
    """
    n, e = len(prompts), model.num_experts
    shape = (n, len(model.expert_layers))
    rate, dropped = np.zeros((*shape, e)), np.zeros(shape)
    tokens, length = np.zeros(n, np.int64), np.zeros(n, np.int64)
    entropy = np.full(shape, np.nan)
    ids: dict[int, np.ndarray] = {}
    expert: dict[int, np.ndarray] = {}
    pieces: dict[int, str] = {}
    wanted, kept = _wanted(prompts, samples), {}
    for r in readings:
        if {"gate": r.weight, "soft": r.probs}.get(kind, r.expert) is None:
            raise UserError(
                f"usage={kind!r} needs the gate's {'weights' if kind == 'gate' else 'scores'}, "
                "which recorded routes don't hold: use selection or share"
            )
        found = usage(r.expert, e, where=r.where, kind=kind, weight=r.weight, probs=r.probs)
        i = r.number
        rate[i], dropped[i] = found.rate, found.dropped / model.k
        tokens[i], length[i] = found.tokens, len(r.ids)
        if r.probs is not None:
            entropy[i] = specialisation.token_entropy(r.probs, where=r.where)
        ids[i], expert[i] = r.ids[r.where], r.expert[r.where].astype(np.int32)
        pieces |= {int(t): r.pieces[at] for at, t in enumerate(r.ids) if r.where[at]}
        if i in wanted:
            kept[i] = Sample(i, r.pieces, r.where, r.expert.astype(np.int32))
    if len(ids) != n:
        raise ValueError(f"readings of {len(ids)} prompts, there are {n}")
    return Collected(
        rate,
        dropped,
        tokens,
        length,
        entropy,
        np.concatenate([ids[i] for i in range(n)]),
        np.concatenate([expert[i] for i in range(n)]),
        pieces,
        tuple(kept[i] for i in sorted(kept)),
    )


def balance(
    found: Collected, level: Int[np.ndarray, " n"], model: ModelShape, minimum: int
) -> Balance:
    """Each layer over all tokens that count.

    Args:
      found: the readings.
      level: difficulty of each prompt, 0 and up.
      model: whose readings they are.
      minimum: times that a token id must be seen to count for the vocabulary.
    """
    e, everywhere = model.num_experts, np.ones(len(found.ids), bool)
    chosen = specialisation.counts(found.expert, e, where=everywhere).chosen
    even = specialisation.balance(chosen)
    pairs = np.zeros((0, e, e), np.int64)
    if model.k > 1:
        pairs = specialisation.pair_counts(found.expert, e, where=everywhere)
    bound = np.full(len(model.expert_layers), np.nan)
    if np.unique(found.ids, return_counts=True)[1].max() >= minimum:
        bound = specialisation.vocabulary(
            found.ids, found.expert, e, where=everywhere, minimum=minimum
        ).mean
    entropy = np.stack([found.entropy[level == d].mean(axis=0) for d in range(level.max() + 1)])
    return Balance(
        even.load,
        even.entropy,
        even.evenness,
        even.peak,
        even.dead,
        even.cold,
        entropy,
        bound,
        pairs,
    )


def top_tokens(
    found: Collected, model: ModelShape, layer: int, expert: int, minimum: int
) -> TopTokens:
    """Of the tokens seen `minimum` times or more, those that the expert takes most often.

    Args:
      found: the readings.
      model: whose readings they are.
      layer: which of the l layers, from 0.
      expert: which of its experts.
      minimum: see above.
    """
    mine = (found.expert[:, layer] == expert).any(axis=1)
    ids, index, seen = np.unique(found.ids, return_inverse=True, return_counts=True)
    times = np.bincount(index.reshape(-1), mine, len(ids)).astype(np.int64)
    order = [j for j in np.argsort(-times, kind="stable") if times[j] and seen[j] >= minimum]
    best = order[:_TOKENS]
    return TopTokens(
        model.expert_layers[layer],
        expert,
        tuple(found.pieces[int(ids[j])] for j in best),
        tuple(int(times[j]) for j in best),
        tuple(float(times[j] / seen[j]) for j in best),
    )


def _wanted(prompts: Sequence[Prompt], samples: int) -> set[int]:
    """The first few prompts of each level."""
    level = np.unique([prompt.difficulty for prompt in prompts], return_inverse=True)[1]
    return {int(i) for d in np.unique(level) for i in np.flatnonzero(level == d)[:samples]}
