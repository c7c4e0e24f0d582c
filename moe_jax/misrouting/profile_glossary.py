"""What the figures of a profile mean, and what it was made with."""

import dataclasses

import numpy as np
from markupsafe import Markup

from moe_jax.misrouting.profile_data import Profile
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import definitions

_USAGE = {
    "selection": "share of the prompt's tokens that choose the expert among their k",
    "share": "share of the prompt's choices that go to the expert: Σ over tokens of 1[chosen] / "
    "(T k)",
    "gate": "mean over the prompt's tokens of the expert's combine weight",
    "soft": "mean over the prompt's tokens of the expert's score before the cut",
}


def meanings(profile: Profile) -> Markup:
    """Each quantity in a line."""
    return definitions(
        {
            "usage u": _USAGE[profile.settings.usage],
            "level mean ū(k)": "mean of u over the prompts of level k; intervals: percentiles over "
            "prompts drawn with replacement",
            "score Δ": "Σ w(k) ū(k) over levels k, Σ w = 0; unless given, w rises evenly and "
            "Σ |w| = 2, so that with two levels Δ is the difference of means",
            "z": "(Δ − its mean) / its standard deviation, over permutations of difficulty among "
            "the prompts of a stratum",
            "p": "(1 + permutations with |z| at least as large) / (permutations + 1)",
            "p family": "the same with the largest |z| of all experts: the chance of any false "
            "finding among those with p ≤ 0.05 is at most 5%",
            "q": "Benjamini and Hochberg's: expected share of false ones among findings with q or "
            "less",
            "in top": "share of bootstrap samples in which the expert is among the selected by |Δ|",
            "Somers' D": "(J − E J) / E J, J: pairs of prompts of different level that usage puts "
            "in the order of difficulty",
            "CLR": "log(u + a) less its mean over the layer's experts, a: half a token of the "
            "median prompt; tells a rise of one expert from the fall of another",
            "load": "N(e) / Σ N: share of the layer's choices; entropy −Σ load log2 load",
            "entropy at": "−Σ p log2 p of a token's scores before the cut, mean over tokens, then "
            "over prompts",
            "bound to token": "mean over token ids of max over e of N(token, e) / N(token)",
            "lift": "N(i and j) N / (N(i) N(j))",
        }
    )


def settings(profile: Profile) -> Markup:
    """What the study was made with."""
    strata = len(np.unique(profile.stratum))
    groups = sorted({group for group in profile.group if group})
    values = {
        **dataclasses.asdict(profile.settings),
        "weights": ", ".join(f"{w:g}" for w in profile.settings.weights) or "even",
        "difficulties": ", ".join(f"{d:g}" for d in profile.difficulty),
        "prompts a level": ", ".join(map(str, np.bincount(profile.level))),
        "groups": ", ".join(groups) or "none",
        "strata": strata,
        "prompts in strata of two levels or more": compared_prompts(profile),
        "top": len(profile.selection.expert),
    }
    return definitions(
        {name.replace("_", " "): one_line(str(value)) or "–" for name, value in values.items()}
    )


def compared_prompts(profile: Profile) -> int:
    """Prompts in strata that hold two levels or more: the others can't be compared with any."""
    strata = np.unique(profile.stratum)
    inside = [profile.stratum == s for s in strata]
    return sum(int(here.sum()) for here in inside if len(np.unique(profile.level[here])) > 1)
