"""A small study made of numbers: readings of prompts whose routing is drawn, one expert planted."""

import numpy as np

from moe_jax.misrouting import Prompt
from moe_jax.misrouting.collect import collect
from moe_jax.misrouting.profile import profile
from moe_jax.misrouting.profile_config import ProfileSettings
from moe_jax.misrouting.profile_data import ModelShape
from moe_jax.misrouting.reading import Reading

LAYERS, EXPERTS, K = (1, 3), 4, 2
MODEL = ModelShape("small", LAYERS, EXPERTS, K)
QUICK = ProfileSettings(permutations=199, samples=60, minimum=2)


def prompts(each=6, levels=3):
    """`each` prompts of difficulties 1, 2, ..., in turns."""
    return [
        Prompt(f"p{i}", float(1 + i % levels), str(i), group="ab"[i // levels % 2])
        for i in range(each * levels)
    ]


def readings(found, *, seed=0, planted=0.0, tokens=12):
    """Layer 1 draws 2 of 4 experts for each token; expert 2 has `planted` more logit a level."""
    rng, out = np.random.default_rng(seed), []
    for number, prompt in enumerate(found):
        # Prompts differ from each other, so that tokens of one are alike.
        logits = np.broadcast_to(
            rng.normal(0, 0.3, (1, len(LAYERS), EXPERTS)), (tokens, 2, 4)
        ).copy()
        logits[:, 0, 2] += planted * (prompt.difficulty - 2)
        order = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=2)[:, :, :K]
        probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        weight = np.take_along_axis(probs, order, 2)
        ids = rng.integers(0, 5, tokens).astype(np.int32)
        where = np.arange(tokens) > 0
        pieces = tuple("abcde"[i] for i in ids)
        out.append(
            Reading(
                number,
                "".join(pieces),
                ids,
                pieces,
                tokens,
                where,
                order.astype(np.int32),
                weight.astype(np.float32),
                probs.astype(np.float32),
            )
        )
    return out


def study(settings=QUICK, *, each=6, levels=3, samples=1, **kw):
    """(prompts, collected, profile)."""
    found = prompts(each, levels)
    collected = collect(readings(found, **kw), found, MODEL, kind=settings.usage, samples=samples)
    return found, collected, profile(collected, found, MODEL, settings)
