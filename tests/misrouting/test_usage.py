"""Usage of experts by a prompt, against a loop."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from moe_jax.misrouting import usage
from moe_jax.misrouting.usage import KINDS, clr

TOKENS, LAYERS, CHOICES, EXPERTS = 7, 3, 2, 5


def routed(seed=0, dropped=False):
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.normal(size=(TOKENS, LAYERS, EXPERTS)), axis=-1)
    expert = order[..., :CHOICES].astype(np.int32)
    if dropped:
        expert[rng.random(expert.shape) < 0.3] = EXPERTS
    probs = rng.dirichlet(np.ones(EXPERTS), (TOKENS, LAYERS)).astype(np.float32)
    weight = rng.random(expert.shape).astype(np.float32) * (expert < EXPERTS)
    where = rng.random(TOKENS) < 0.7
    where[0] = True
    return expert, weight, probs, where


def loop(expert, weight, probs, where, kind):
    rate, dropped, tokens = np.zeros((LAYERS, EXPERTS)), np.zeros(LAYERS), where.sum()
    for t in np.flatnonzero(where):
        for layer in range(LAYERS):
            for e, g in zip(expert[t, layer], weight[t, layer], strict=True):
                if e == EXPERTS:
                    dropped[layer] += 1 / tokens
                elif kind == "gate":
                    rate[layer, e] += g / tokens
                elif kind != "soft":
                    rate[layer, e] += 1 / tokens / (CHOICES if kind == "share" else 1)
            if kind == "soft":
                rate[layer] += probs[t, layer] / tokens
    return rate, dropped


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_loop(kind, dropped):
    expert, weight, probs, where = routed(dropped=dropped)
    got = usage(expert, EXPERTS, where=where, kind=kind, weight=weight, probs=probs)
    rate, lost = loop(expert, weight, probs, where, kind)
    np.testing.assert_allclose(got.rate, rate, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.dropped, lost, atol=1e-12)
    assert got.tokens == where.sum()


@given(st.integers(0, 99))
def test_sums(seed):
    expert, weight, probs, where = routed(seed, dropped=True)
    by = {k: usage(expert, EXPERTS, where=where, kind=k, weight=weight, probs=probs) for k in KINDS}
    chosen = by["selection"]
    np.testing.assert_allclose(chosen.rate.sum(1) + chosen.dropped, CHOICES)
    np.testing.assert_allclose(by["share"].rate * CHOICES, chosen.rate)
    np.testing.assert_allclose(by["soft"].rate.sum(1), 1, rtol=1e-5)


def test_one_choice_is_the_seeds_fraction_of_tokens():
    expert = np.array([0, 2, 2, 1, 2])[:, None, None]
    got = usage(expert, 3, where=np.array([True, True, True, False, True]))
    np.testing.assert_allclose(got.rate, [[1 / 4, 0, 3 / 4]])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "mean"}, "kind='mean' is none of"),
        ({"kind": "gate"}, "needs weight"),
        ({"kind": "soft"}, "needs probs"),
        ({"where": np.zeros(TOKENS, bool)}, "no token"),
        ({"expert": np.full((TOKENS, LAYERS, CHOICES), EXPERTS + 1)}, "ids go from 0 to 4"),
        ({"expert": np.full((TOKENS, LAYERS, CHOICES), -1)}, "ids go from 0 to 4"),
    ],
)
def test_bad_input(change, message):
    expert, _, _, where = routed()
    arguments = {"expert": expert, "num_experts": EXPERTS, "where": where} | change
    with pytest.raises(ValueError, match=message):
        usage(**arguments)


def test_log_ratios_by_hand():
    got = clr(np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), 1e-9)
    np.testing.assert_allclose(got[0], np.log([2, 1, 1]) - np.log(2) / 3, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-12)
    assert got[1, 0] > 10
    with pytest.raises(ValueError, match="pseudo=0"):
        clr(np.ones((1, 2)), 0.0)
