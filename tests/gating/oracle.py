"""The gate again, in float64 and plain loops: what `moe_jax.gating.route` should give."""

import math

import numpy as np


def scores(z, config):
    """Softmax or sigmoid of one token's logits."""
    z = np.asarray(z, np.float64) / config.temperature
    if config.score == "sigmoid":
        return 1 / (1 + np.exp(-z))
    p = np.exp(z - z.max())
    return p / p.sum()


def best(values, k):
    """Indices of the k largest; equal values by index."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def choose(z, p, config, bias):
    """The experts of one token, best first."""
    choice = np.array(z if config.topk_first else p, np.float64) + bias
    size = config.num_experts // config.num_groups
    if config.num_groups > 1:
        n = 1 if config.group_score == "max" else 2
        groups = [sorted(choice[g * size : (g + 1) * size])[-n:] for g in range(config.num_groups)]
        kept = best([sum(group) for group in groups], config.groups_kept)
        for e in range(config.num_experts):
            if e // size not in kept:
                choice[e] = -np.inf
    return best(choice, config.k)


def weigh(z, p, experts, config):
    """The weights of one token's experts."""
    if config.score == "softmax" and config.topk_first:
        w = scores(np.asarray(z)[experts], config)
    else:
        w = p[experts]
    if config.renormalise:
        w = w / (w.sum() + config.renormalise_eps)
    return w * config.scale


def capacity(config, tokens):
    """Places of each expert."""
    if config.capacity is not None:
        return config.capacity
    if config.capacity_factor is None and config.choice == "token":
        return math.inf
    factor = 1.0 if config.capacity_factor is None else config.capacity_factor
    return math.ceil(factor * config.k * tokens / config.num_experts - 1e-9)


def gate(logits, config, *, bias=0.0, segments=None):
    """{(token, expert): weight} of all assignments that find room."""
    tokens, experts = logits.shape
    p = np.stack([scores(z, config) for z in logits])
    if config.choice == "expert":
        wanted = [
            (t, e)
            for e in range(experts)
            for t in best(p[:, e] + np.broadcast_to(bias, experts)[e], capacity(config, tokens))
        ]
        rows = {t: [e for s, e in wanted if s == t] for t in range(tokens)}
        weights = {t: weigh(logits[t], p[t], chosen, config) for t, chosen in rows.items()}
        return {(t, e): weights[t][i] for t in rows for i, e in enumerate(rows[t])}
    chosen = [choose(z, q, config, bias) for z, q in zip(logits, p, strict=True)]
    weights = [weigh(z, q, c, config) for z, q, c in zip(logits, p, chosen, strict=True)]
    segments = np.zeros(tokens, int) if segments is None else segments
    order = list(range(tokens))
    if config.priority == "score":
        order.sort(key=lambda t: (-max(weights[t]), t))
    load: dict = {}
    out = {}
    for slot in range(config.k):
        for t in order:
            e = chosen[t][slot]
            place = load.get((segments[t], e), 0)
            load[segments[t], e] = place + 1
            if place < capacity(config, int(np.sum(segments == segments[t]))):
                out[t, e] = weights[t][slot]
    return out
