"""Specialisation of experts: loops, SciPy, values by hand."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats
from scipy.spatial.distance import jensenshannon

from moe_jax.misrouting import specialisation as sp
from moe_jax.misrouting import usage

T, L, K, E = 30, 3, 3, 6
ALL = np.ones(T, bool)


def routed(seed=0, dropped=False, k=K):
    rng = np.random.default_rng(seed)
    expert = np.argsort(rng.normal(size=(T, L, E)) - 0.4 * np.arange(E), axis=-1)[..., :k]
    expert = expert.astype(np.int32)
    if dropped:
        expert[rng.random(expert.shape) < 0.4] = E
    where = rng.random(T) < 0.7
    where[0] = True
    return expert, where


def sets(expert, t, layer):
    return {int(e) for e in expert[t, layer] if e < E}


CASES = pytest.mark.parametrize("dropped", [False, True])


@CASES
def test_counts_are_usage_times_tokens_and_add_up(dropped):
    expert, where = routed(dropped=dropped)
    got = sp.counts(expert, E, where=where)
    want = usage(expert, E, where=where)
    np.testing.assert_allclose(got.chosen, want.rate * want.tokens)
    np.testing.assert_allclose(got.dropped, want.dropped * want.tokens)
    rest = sp.counts(expert, E, where=~where)
    both = sp.counts(expert, E, where=ALL)
    np.testing.assert_array_equal(got.chosen + rest.chosen, both.chosen)
    assert got.tokens + rest.tokens == both.tokens == T


def test_balance_against_scipy():
    chosen = np.array([[5, 5, 5, 5, 5, 5], [30, 0, 0, 0, 0, 0], [1, 2, 3, 4, 20, 0], [0] * 6])
    got = sp.balance(chosen, dead=0.2, cold=0.6)
    np.testing.assert_allclose(got.entropy[:3], stats.entropy(chosen[:3], base=2, axis=1))
    np.testing.assert_allclose(got.evenness, got.entropy / np.log2(6))
    np.testing.assert_allclose(got.peak, [1, 6, 4, 0])
    np.testing.assert_allclose(got.load.sum(1), [1, 1, 1, 0])
    # The even share of layer 2 is 5: dead up to 1, cold up to 3.
    np.testing.assert_array_equal(got.dead[2], [True, False, False, False, False, True])
    np.testing.assert_array_equal(got.cold[2], [False, True, True, False, False, False])
    assert not got.dead[0].any()
    assert not got.cold[0].any()
    assert got.dead[1].tolist() == [False] + [True] * 5
    assert sp.balance(np.array([[7]])).evenness.tolist() == [1]


def test_an_expert_that_is_only_ever_second_is_not_dead():
    expert = np.array([[[0, 1]], [[0, 1]], [[2, 1]]])
    got = sp.balance(sp.counts(expert, 4, where=np.ones(3, bool)).chosen)
    assert got.dead.tolist() == [[False, False, False, True]]
    assert not got.cold.any()


def test_entropy_of_tokens():
    probs = np.random.default_rng(0).random((T, L, E)).astype(np.float32)
    probs[3, 1] = [0, 0, 1, 0, 0, 0]
    probs[4, 2] = 0
    where = np.arange(T) < 9
    want = stats.entropy(probs[:9].astype(np.float64) + 1e-300, base=2, axis=2)
    want[4, 2] = 0
    np.testing.assert_allclose(sp.token_entropy(probs, where=where), want.mean(0), rtol=1e-6)
    even = np.full((T, L, E), 0.5, np.float32)
    np.testing.assert_allclose(sp.token_entropy(even, where=where), np.log2(E), rtol=1e-6)


@CASES
def test_pairs_against_a_loop(dropped):
    expert, where = routed(dropped=dropped)
    within, across = np.zeros((L, E, E)), np.zeros((E, E))
    for t in np.flatnonzero(where):
        for layer in range(L):
            for i, j in itertools.product(sets(expert, t, layer), repeat=2):
                within[layer, i, j] += 1
        for i, j in itertools.product(sets(expert, t, 2), sets(expert, t, 0)):
            across[i, j] += 1
    pairs = sp.pair_counts(expert, E, where=where)
    np.testing.assert_array_equal(pairs, within)
    cross = sp.cross_pair_counts(expert, E, where=where, first=2, second=0)
    np.testing.assert_array_equal(cross, across)
    chosen = sp.counts(expert, E, where=where).chosen
    got = sp.conditional(pairs, chosen)
    for layer, i, j in itertools.product(range(L), range(E), range(E)):
        if chosen[layer, i]:
            assert got[layer, i, j] == within[layer, i, j] / within[layer, i, i]
        else:
            assert np.isnan(got[layer, i, j])
    same = sp.cross_pair_counts(expert, E, where=where, first=1, second=1)
    np.testing.assert_array_equal(same, pairs[1])


def test_coactivation_counts_pairs_that_are_not_neighbours_in_rank():
    expert = np.array([[[0, 1, 2]]])
    one = np.ones(1, bool)
    pairs = sp.pair_counts(expert, 4, where=one)
    assert pairs[0, 0, 2] == 1
    got = sp.conditional(pairs, sp.counts(expert, 4, where=one).chosen)[0]
    np.testing.assert_array_equal(got[:3], [[1, 1, 1, 0]] * 3)
    assert np.isnan(got[3]).all()


@CASES
def test_saturation_against_a_loop(dropped):
    checkpoints = [routed(seed, dropped=dropped)[0] for seed in range(4)]
    expert, where = np.stack(checkpoints), routed()[1]
    got = sp.saturation(expert, E, where=where)
    for c, layer in itertools.product(range(4), range(L)):
        shares = []
        for t in np.flatnonzero(where):
            last = sets(expert[-1], t, layer)
            if last:
                shares.append(len(sets(expert[c], t, layer) & last) / len(last))
        assert got[c, layer] == pytest.approx(np.mean(shares))
    np.testing.assert_allclose(got[-1], 1)
    assert (got[:-1] < 1).all()


def test_saturation_by_hand():
    expert = np.array([[[[0, 1]], [[2, 3]]], [[[1, 0]], [[3, 4]]], [[[0, 1]], [[4, 5]]]])
    got = sp.saturation(expert, 6, where=np.ones(2, bool))
    np.testing.assert_allclose(got, [[0.5], [0.75], [1]])
    gone = np.full((2, 1, 1, 2), 6)
    assert np.isnan(sp.saturation(gone, 6, where=np.ones(1, bool))).all()


def test_domains():
    expert = routed()[0]
    first = np.arange(T) < 10
    parts = [sp.counts(expert, E, where=w) for w in (first, ~first)]
    got = sp.domains(np.stack([p.chosen for p in parts]), np.array([p.tokens for p in parts]), k=K)
    assert got.uniform == K / E
    np.testing.assert_allclose(got.rate.mean(axis=2), K / E)
    for d, w in enumerate((first, ~first)):
        for layer, e in itertools.product(range(L), range(E)):
            want = np.mean([e in sets(expert, t, layer) for t in np.flatnonzero(w)])
            assert got.rate[d, layer, e] == pytest.approx(want)


@CASES
@pytest.mark.parametrize("minimum", [1, 3])
def test_vocabulary_against_a_loop(dropped, minimum):
    expert, where = routed(dropped=dropped)
    ids = np.random.default_rng(5).integers(100, 109, T)
    expert[ids == 104] = E
    got = sp.vocabulary(ids, expert, E, where=where, minimum=minimum)
    times = {x: int(np.sum(ids[where] == x)) for x in np.unique(ids[where])}
    kept = [x for x, n in times.items() if n >= minimum]
    assert got.ids.tolist() == kept
    assert got.times.tolist() == [times[x] for x in kept]
    assert got.ids_left_out == len(times) - len(kept)
    assert got.tokens_left_out == where.sum() - got.times.sum()
    for layer, (v, x) in itertools.product(range(L), enumerate(kept)):
        here = [t for t in np.flatnonzero(where) if ids[t] == x]
        n = [sum(e in sets(expert, t, layer) for t in here) for e in range(E)]
        assert got.rate[layer, v] == max(n) / len(here)
        assert got.expert[layer, v] == (np.argmax(n) if max(n) else E)
    np.testing.assert_allclose(got.mean, got.rate.mean(axis=1))


def test_rare_words_look_bound_to_an_expert():
    """Why there is a minimum: routing that ignores the token, ids all seen once."""
    expert, ids = routed()[0], np.arange(T)
    assert sp.vocabulary(ids, expert, E, where=ALL, minimum=1).mean.tolist() == [1] * L
    with pytest.raises(
        ValueError, match="minimum=2: no token id is seen that often, the most is 1"
    ):
        sp.vocabulary(ids, expert, E, where=ALL, minimum=2)


@CASES
def test_comparison_against_scipy(dropped):
    a, where = routed(1, dropped=dropped)
    b = routed(2, dropped=dropped, k=2)[0]
    a[0], b[0] = E, E
    got = sp.compare(a, b, E, where=where)
    p, q = ((n := sp.counts(x, E, where=where).chosen) / n.sum(1)[:, None] for x in (a, b))
    for layer in range(L):
        shares = []
        for t in np.flatnonzero(where):
            x, y = sets(a, t, layer), sets(b, t, layer)
            shares.append(len(x & y) / len(x | y) if x | y else 1)
        assert got.jaccard[layer] == pytest.approx(np.mean(shares))
        assert got.total_variation[layer] == pytest.approx(np.abs(p - q)[layer].sum() / 2)
        assert got.jsd[layer] == pytest.approx(jensenshannon(p[layer], q[layer], base=2) ** 2)
        r = stats.pearsonr(p[layer], q[layer]).statistic
        assert got.correlation[layer] == pytest.approx(r)


@given(st.integers(0, 99), st.booleans())
@settings(max_examples=30)
def test_invariants(seed, dropped):
    a, where = routed(seed, dropped=dropped)
    b = routed(seed + 1, dropped=dropped)[0]
    got, back = sp.compare(a, b, E, where=where), sp.compare(b, a, E, where=where)
    for x, y in zip(got, back, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)
    assert ((got.jsd >= 0) & (got.jsd <= got.total_variation + 1e-12)).all()
    assert ((got.jaccard >= 0) & (got.jaccard <= 1)).all()
    # Names of the experts don't matter, nor does the order of a token's choices.
    names = np.append(np.random.default_rng(seed).permutation(E), E)
    other = sp.compare(names[a][..., ::-1], names[b], E, where=where)
    for x, y in zip(got, other, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)
    same = sp.compare(a, a, E, where=where)
    np.testing.assert_allclose(same.jaccard, 1)
    np.testing.assert_allclose(same.total_variation, 0)
    np.testing.assert_allclose(same.jsd, 0, atol=1e-12)
    np.testing.assert_allclose(same.correlation, 1)
    pairs = sp.pair_counts(a, E, where=where)
    np.testing.assert_array_equal(pairs, pairs.transpose(0, 2, 1))
    chosen = sp.counts(a, E, where=where).chosen
    np.testing.assert_array_equal(pairs.diagonal(axis1=1, axis2=2), chosen)


def test_even_loads_have_no_correlation():
    a = np.arange(6)[:, None, None]
    got = sp.compare(a, a * 0, 6, where=np.ones(6, bool))
    assert np.isnan(got.correlation).all()
    np.testing.assert_allclose(got.total_variation, 5 / 6)
    np.testing.assert_allclose(got.jaccard, 1 / 6)


EXPERT, WHERE = routed()
NONE = np.zeros(T, bool)
BAD = EXPERT + 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sp.counts(BAD, E - 1, where=WHERE), "expert holds 1..6: ids go from 0 to 4"),
        (lambda: sp.counts(EXPERT - 1, E, where=WHERE), "expert holds -1..4"),
        (lambda: sp.pair_counts(EXPERT, E, where=NONE), "no token to count"),
        (lambda: sp.saturation(EXPERT[None], E, where=NONE), "no token to count"),
        (lambda: sp.compare(EXPERT, BAD + 1, E, where=WHERE), "expert holds 2..7"),
        (lambda: sp.token_entropy(np.ones((T, L, E)), where=NONE), "no token to count"),
        (lambda: sp.balance(np.ones((1, 2), int), dead=0.2, cold=0.1), "dead=0.2, cold=0.1"),
        (lambda: sp.domains(np.ones((2, 1, 2), int), np.array([3, 0]), k=1), "domain 1 has no"),
        (lambda: sp.vocabulary(np.arange(T), EXPERT, E, where=WHERE, minimum=0), "minimum=0 must"),
        (
            lambda: sp.cross_pair_counts(EXPERT, E, where=WHERE, first=0, second=3),
            "second=3: layers go from 0 to 2",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
