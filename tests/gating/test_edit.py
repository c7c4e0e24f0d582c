"""`RoutingEdit`: the identity, each intervention, its scope, and many at once."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from moe_jax.gating import GateConfig, RoutingEdit, dropped, expert_counts, route, withhold

T, E = 10, 8
GATES = {
    "softmax": {},
    "topk_first": {"topk_first": True, "temperature": 1.3},
    "groups": {
        **{"num_groups": 4, "groups_kept": 2, "group_score": "top2_sum"},
        **{"score": "sigmoid", "renormalise": True, "renormalise_eps": 1e-20, "scale": 2.5},
    },
    "sparsemixer": {"score": "sparsemixer"},
    "switch": {"k": 1, "capacity": 2},
    "prioritised": {"capacity_factor": 1.0, "priority": "score"},
    "expert_choice": {"choice": "expert"},
    "dense": {"k": E},
}
Z = np.random.default_rng(0).normal(size=(T, E)).astype(np.float32)
Z[0, :3] = [0.0, -0.0, 0.0]
PLAIN = GateConfig(num_experts=E, k=2)


def make(name):
    return GateConfig(num_experts=E, **{"k": 2, **GATES[name]})


@functools.cache
def compiled(config):
    """One function for each gate runs with every edit, or (another trace) with none."""
    return jax.jit(lambda z, edit: route(z, config, edit=edit))


def edited(config=PLAIN, z=Z, **changes):
    return compiled(config)(z, RoutingEdit.make(config, **changes))


def unedited(config=PLAIN, z=Z):
    return compiled(config)(z, None)


def softmax(z):
    p = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def same_bits(a, b):
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", GATES)
def test_identity_is_bitwise_no_edit(name):
    config = make(name)
    bias = jnp.linspace(-0.1, 0.1, E)

    def go(z, edit):
        return route(z, config, bias=bias, edit=edit)

    go = jax.jit(go)
    plain = go(Z, None)
    identity = RoutingEdit.identity(config, num_tokens=T)
    assert same_bits(plain, go(Z, identity))
    # An edit that changes everything, for no token.
    nowhere = RoutingEdit.make(
        config,
        **{"tokens": np.zeros(T, bool), "suppress": [0], "exclude": [1], "zero": [2], "force": [3]},
        **{"bias": {4: 2.0}, "scale": {5: 3.0}, "permute": list(range(E))[::-1], "rank_shift": 2},
        **{
            "random_k": True,
            "steer": {6: 1.0, 7: -1.0},
            "gumbel": 2.0,
            "replay": np.full((1, config.slots), 6),
        },
        replay_weight=np.full((1, config.slots), 0.5),
    )._replace(stand_in=jnp.ones((E, 1)))
    nowhere = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), nowhere, identity)
    assert same_bits(plain, go(Z, nowhere))
    assert go._cache_size() == 2


def test_identity_is_bitwise_no_edit_without_jit():
    assert same_bits(
        route(jnp.asarray(Z), PLAIN), route(jnp.asarray(Z), PLAIN, edit=RoutingEdit.identity(PLAIN))
    )


EDITS = [
    {},
    {"suppress": [0, 5]},
    {"exclude": [0, 5]},
    {"zero": [1]},
    {"force": [7, 2]},
    {"bias": {3: 1.5}},
    {"steer": {3: 0.01, 5: -0.01}},
    {"scale": {3: 0.25}},
    {"permute": [1, 2, 3, 4, 5, 6, 7, 0]},
    {"rank_shift": 2},
    {"random_k": True, "seed": 4},
    {"gumbel": 2.0, "seed": 4},
    {"replay": np.full((1, 2), 6)},
]


def test_one_compilation_runs_all_and_vmap_runs_them_at_once():
    traces = []

    @jax.jit
    def go(z, edit):
        traces.append(1)
        return route(z, PLAIN, edit=edit)

    edits = [RoutingEdit.make(PLAIN, **changes) for changes in EDITS]
    one_by_one = [go(Z, edit) for edit in edits]
    assert len(traces) == 1
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *edits)
    at_once = jax.jit(jax.vmap(lambda e: route(jnp.asarray(Z), PLAIN, edit=e)))(stacked)
    for i, single in enumerate(one_by_one):
        np.testing.assert_array_equal(at_once.expert[i], single.expert)
        np.testing.assert_allclose(at_once.weight[i], single.weight, rtol=1e-6)
        # A leading layer axis that the caller indexes.
        layer = jax.tree.map(lambda a, i=i: a[i], stacked)
        assert same_bits(go(Z, layer), single)
    assert len(
        {np.asarray(r.weight).tobytes() + np.asarray(r.expert).tobytes() for r in one_by_one}
    ) == len(EDITS)


def test_suppress_exclude_and_zero_are_three_things():
    """Hand-worked: probabilities 1/2, 1/4, 1/8, 1/8; expert 0 is taken away in three ways."""
    z = np.log(np.array([[4.0, 2.0, 1.0, 1.0]], np.float32))
    config = GateConfig(num_experts=4, k=2)
    base = unedited(config, z)
    assert base.expert.tolist() == [[0, 1]]
    np.testing.assert_allclose(base.weight, [[0.5, 0.25]], rtol=1e-6)

    suppressed = edited(config, z, suppress=[0])
    assert suppressed.expert.tolist() == [[1, 2]]
    np.testing.assert_allclose(suppressed.weight, [[0.5, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(suppressed.probs, [[0, 0.5, 0.25, 0.25]], rtol=1e-6)
    assert suppressed.logits[0, 0] == -np.inf

    excluded = edited(config, z, exclude=[0])
    assert excluded.expert.tolist() == [[1, 2]]
    np.testing.assert_allclose(excluded.weight, [[0.25, 0.125]], rtol=1e-6)
    np.testing.assert_allclose(excluded.probs, base.probs, rtol=1e-6)

    zeroed = edited(config, z, zero=[0])
    assert zeroed.expert.tolist() == [[0, 1]]
    np.testing.assert_allclose(zeroed.weight, [[0, 0.25]], rtol=1e-6)

    renormalised = GateConfig(num_experts=4, k=2, renormalise=True)
    a, b = edited(renormalised, z, suppress=[0]), edited(renormalised, z, exclude=[0])
    np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6)
    np.testing.assert_allclose(a.weight, [[2 / 3, 1 / 3]], rtol=1e-6)


def test_more_suppressed_than_left():
    got = edited(suppress=range(7))
    assert got.expert.tolist() == [[7, 8]] * T
    np.testing.assert_array_equal(got.weight, [[1, 0]] * T)
    nobody = edited(GateConfig(num_experts=E, k=2, renormalise=True), suppress=range(8))
    assert int(dropped(nobody)) == 2 * T
    assert not np.any(nobody.weight)
    gradient = jax.grad(
        lambda z: jnp.sum(
            route(z, PLAIN, edit=RoutingEdit.make(PLAIN, suppress=range(7))).weight ** 2
        )
    )(jnp.asarray(Z))
    assert np.all(np.isfinite(gradient))


def test_exclude_recomputes_group_scores():
    z = np.array([[3.0, 2.0, 1.0, 0.9]], np.float32)
    config = GateConfig(
        num_experts=4, k=1, num_groups=2, groups_kept=1, group_score="top2_sum", score="sigmoid"
    )
    assert unedited(config, z).expert.tolist() == [[0]]
    # Group 0 has sigmoid(2) = 0.88 left, group 1 has 0.73 + 0.71.
    assert edited(config, z, exclude=[0]).expert.tolist() == [[2]]
    assert edited(config, z, suppress=[0]).expert.tolist() == [[2]]
    assert edited(config, z, exclude=[2, 3]).expert.tolist() == [[0]]


def test_bias_moves_score_choice_and_weight():
    got = edited(bias={3: 1.5})
    z = Z.copy()
    z[:, 3] += 1.5
    p = softmax(z)
    np.testing.assert_allclose(got.logits, z, rtol=1e-6)
    np.testing.assert_allclose(got.probs, p, rtol=1e-5)
    np.testing.assert_array_equal(got.expert, np.argsort(-p, axis=1)[:, :2])
    np.testing.assert_allclose(got.weight, -np.sort(-p, axis=1)[:, :2], rtol=1e-5)


def test_steer_is_beyond_all_others():
    """Hand-worked: 3 goes 1/2 above the largest, 0 goes 1/4 below the smallest."""
    z = np.array([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    config = GateConfig(num_experts=4, k=2)
    got = edited(config, z, steer={3: 0.5, 0: -0.25})
    np.testing.assert_array_equal(got.logits, [[-1.25, 1, 0, 2.5], [-0.25, 0, 0, 0.5]])
    assert got.expert.tolist() == [[3, 1], [3, 1]]
    # Above what the bias has made largest; and what isn't available stays so.
    got = edited(config, z, steer={3: 0.5}, bias={1: 4.0}, suppress=[0])
    np.testing.assert_array_equal(got.logits, [[-np.inf, 5, 0, 5.5], [-np.inf, 4, 0, 4.5]])
    gone = np.where(np.arange(4) < 2, -np.inf, z).astype(np.float32)
    got = edited(config, gone, steer={0: 0.5, 3: -0.5})
    np.testing.assert_array_equal(
        got.logits, [[-np.inf, -np.inf, 0, -1.5], [-np.inf] * 2 + [0, -0.5]]
    )


def test_gumbel_draws_without_groups_and_bias():
    """From 8 equal logits every pair is as likely, whatever the groups and the selection bias."""
    config = make("groups")
    z, bias = np.zeros((4000, E), np.float32), jnp.linspace(0, 9, E)
    edit = RoutingEdit.make(config, gumbel=1.0, seed=5)
    got = route(jnp.asarray(z), config, bias=bias, edit=edit)
    share = np.asarray(expert_counts(got)) / 4000
    np.testing.assert_allclose(share, 2 / E, atol=0.03)
    np.testing.assert_allclose(got.weight, 1.25, rtol=1e-6)
    excluded = edited(gumbel=50.0, seed=1, exclude=[2, 3])
    assert not np.isin(np.asarray(excluded.expert), [2, 3]).any()
    both, drawn = edited(gumbel=5.0, random_k=True, seed=3), edited(random_k=True, seed=3)
    np.testing.assert_array_equal(both.expert, drawn.expert)
    chosen = make("expert_choice")
    assert same_bits(edited(chosen, gumbel=5.0), unedited(chosen))


def test_force():
    got = np.asarray(edited(force=[7]).expert)
    top = np.argsort(-softmax(Z), axis=1, kind="stable")
    for row, order in zip(got, top, strict=True):
        others = [e for e in order if e != 7]
        assert row.tolist() == [7, others[0]]
    weight = edited(force=[7]).weight
    np.testing.assert_allclose(weight[:, 0], softmax(Z)[:, 7], rtol=1e-5)
    # More than k: the best of them by score. Forced and suppressed: suppressed.
    three = np.asarray(edited(force=[1, 4, 6]).expert)
    for row, p in zip(three, softmax(Z), strict=True):
        assert row.tolist() == sorted([1, 4, 6], key=lambda e: -p[e])[:2]
    assert not np.any(np.asarray(edited(force=[7], suppress=[7]).expert) == 7)
    assert not np.any(np.asarray(edited(force=[7], exclude=[7]).expert) == 7)
    # Groups do not stand in its way, nor does the choice of the other groups change.
    config = make("groups")
    for e in (0, 7):
        assert np.all(np.asarray(edited(config, force=[e]).expert)[:, 0] == e)


def test_scale_and_zero_act_after_renormalisation():
    config = GateConfig(num_experts=E, k=2, renormalise=True, scale=2.0)
    base, got = unedited(config), edited(config, scale={int(unedited(config).expert[3, 0]): 0.5})
    hit = np.asarray(base.expert) == base.expert[3, 0]
    np.testing.assert_array_equal(got.expert, base.expert)
    np.testing.assert_allclose(got.weight, np.where(hit, 0.5, 1.0) * base.weight, rtol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_withhold_is_zero_and_says_what_it_took(name):
    """The routing bit for bit that of the edit with its zeros; weights by expert, in a loop."""
    config = make(name)
    others = {"scale": {1: 0.5, 4: 3.0}, "permute": [1, 2, 3, 4, 5, 6, 7, 0], "force": [5]}
    others |= {"tokens": np.arange(T) % 3 != 1}
    gone, where = [0, 1, 5, 6], jnp.arange(T) != 3

    @jax.jit
    def both(z, edit):
        rest = edit._replace(zero=jnp.zeros_like(edit.zero))
        before = route(z, config, edit=rest, where=where)
        return before, route(z, config, edit=edit, where=where), *withhold(before, edit)

    edit = RoutingEdit.make(config, zero=gone, stand_in=np.ones((E, 3)), **others)
    before, after, routing, withheld = both(Z, edit)
    assert same_bits(routing, after)
    want = np.zeros((T, E))
    for t, (experts, weights) in enumerate(zip(before.expert, before.weight, strict=True)):
        for e, w in zip(experts.tolist(), weights.tolist(), strict=True):
            if others["tokens"][t] and e in gone:
                want[t, e] += w
    np.testing.assert_allclose(withheld, want, rtol=1e-6)
    assert want.any()
    nothing = both(Z, RoutingEdit.make(config, **others))
    assert same_bits(nothing[0], nothing[2])
    assert not np.any(nothing[3])


def test_a_stand_in_is_nothing_to_the_gate():
    own = np.random.default_rng(2).normal(size=(E, 3))
    with_it, without = edited(zero=[1, 4], stand_in=own), edited(zero=[1, 4])
    assert same_bits(with_it, without)
    edit = RoutingEdit.make(PLAIN, zero=[1], stand_in=own, tokens=np.arange(T) == 2)
    np.testing.assert_array_equal(edit.scoped(PLAIN, T).stand_in, own.astype(np.float32))


def test_permute_changes_who_works_not_how_much():
    permutation = np.random.default_rng(1).permutation(E).tolist()
    base, got = unedited(), edited(permute=permutation)
    np.testing.assert_array_equal(got.expert, np.array(permutation)[np.asarray(base.expert)])
    np.testing.assert_array_equal(got.weight, base.weight)
    # zero and scale are about the expert that works.
    worker = permutation[int(base.expert[0, 0])]
    assert float(edited(permute=permutation, zero=[worker]).weight[0, 0]) == 0


def test_rank_shift():
    order = np.argsort(-softmax(Z), axis=1, kind="stable")
    for shift, first in ((1, 1), (2, 2), (6, 6), (7, 6), (100, 6)):
        np.testing.assert_array_equal(edited(rank_shift=shift).expert, order[:, first : first + 2])
    # With three experts excluded five are left: ranks 3 and 4 are the last two.
    got = np.asarray(edited(rank_shift=50, exclude=[0, 1, 2]).expert)
    for row, full in zip(got, order, strict=True):
        assert row.tolist() == [e for e in full if e > 2][-2:]


def test_random_k():
    base, got, again = unedited(), edited(random_k=True, seed=3), edited(random_k=True, seed=3)
    np.testing.assert_array_equal(got.expert, again.expert)
    assert np.any(got.expert != edited(random_k=True, seed=4).expert)
    p = np.asarray(base.probs)
    np.testing.assert_array_equal(got.weight, np.take_along_axis(p, np.asarray(got.expert), 1))
    # Uniform: each expert 2/7 of the time when one is excluded, never twice for a token.
    many = edited(z=np.repeat(Z, 300, axis=0), random_k=True, exclude=[0])
    assert np.all(np.asarray(many.expert)[:, 0] != np.asarray(many.expert)[:, 1])
    share = np.asarray(expert_counts(many)) / len(many.expert)
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], 2 / 7, atol=0.04)
    # Groups do not bind it: all experts occur.
    grouped = edited(make("groups"), np.repeat(Z[:1], 300, axis=0), random_k=True)
    assert np.all(np.asarray(expert_counts(grouped)) > 0)


def test_replay():
    donor = unedited(z=Z[::-1].copy())
    base = unedited()
    own = edited(replay=base.expert)
    assert same_bits(own, base)
    got = edited(replay=donor.expert)
    np.testing.assert_array_equal(got.expert, donor.expert)
    p = np.asarray(base.probs)
    np.testing.assert_array_equal(got.weight, np.take_along_axis(p, np.asarray(donor.expert), 1))
    both = edited(replay=donor.expert, replay_weight=donor.weight)
    np.testing.assert_array_equal(both.weight, donor.weight)
    # One slot kept, one dropped.
    part = edited(replay=np.tile([[-1, E]], (T, 1)))
    np.testing.assert_array_equal(part.expert[:, 0], base.expert[:, 0])
    np.testing.assert_array_equal(part.expert[:, 1], [E] * T)
    assert int(dropped(part)) == T


def test_capacity_counts_what_the_edit_leaves():
    config = make("switch")
    got = edited(config, force=[5])
    assert expert_counts(got).tolist() == [0, 0, 0, 0, 0, 2, 0, 0]
    assert np.asarray(got.expert)[:, 0].tolist() == [5, 5] + [E] * (T - 2)
    # A zeroed expert still fills its places: nobody is re-routed or let in.
    zeroed = edited(config, force=[5], zero=[5])
    np.testing.assert_array_equal(zeroed.expert, got.expert)
    assert not np.any(zeroed.weight)


@pytest.mark.parametrize("changes", EDITS[1:])
def test_token_scope(changes):
    """Within the scope as if for all, outside as if for none."""
    scope = np.arange(T) % 3 == 0
    base, everywhere = unedited(), edited(**changes)
    got = edited(tokens=scope, **changes)
    for a, b, c in zip(got, base, everywhere, strict=True):
        rows = scope[:, None]
        np.testing.assert_array_equal(a, np.where(rows, c, b))


def test_arrays_for_each_token():
    """Suppress a different expert for each token: the best one."""
    base = unedited()
    own = np.arange(E)[None] == np.asarray(base.expert)[:, :1]
    edit = RoutingEdit.identity(PLAIN)._replace(suppress=jnp.asarray(own))
    got = route(jnp.asarray(Z), PLAIN, edit=edit)
    np.testing.assert_array_equal(got.expert[:, 0], base.expert[:, 1])


def test_expert_choice():
    config = make("expert_choice")  # 10 * 2 / 8 = 2.5 -> 3 tokens for each expert
    base = unedited(config)
    scope = np.arange(T) == 4
    took = lambda r: {int(e) for e in np.asarray(r.expert)[4] if e < E}  # noqa: E731
    assert took(edited(config, tokens=scope, force=range(E))) == set(range(E))
    assert took(edited(config, tokens=scope, exclude=range(E))) == set()
    assert took(edited(config, tokens=scope, suppress=[*took(base)])) <= set(range(E)) - took(base)
    for changes in ({"force": range(E)}, {"exclude": [2]}, {"random_k": True}):
        counts = expert_counts(edited(config, tokens=scope, **changes))
        assert counts.tolist() == [3] * E, "others take the place"
    drawn = edited(config, random_k=True, seed=1)
    assert np.any(np.asarray(drawn.expert) != base.expert)


def test_gradients_of_continuous_fields():
    """Bias and scale can be learned, or attributed to, at the identity."""
    identity = RoutingEdit.identity(PLAIN)

    def total(bias, scale):
        edit = identity._replace(bias=bias, scale=scale)
        return jnp.sum(route(jnp.asarray(Z), PLAIN, edit=edit).weight ** 2)

    by_bias, by_scale = jax.jit(jax.grad(total, (0, 1)))(identity.bias, identity.scale)
    assert np.all(np.isfinite(by_bias))
    assert np.any(np.asarray(by_bias) != 0)
    base = unedited()
    squares = np.zeros(E)
    np.add.at(squares, np.asarray(base.expert), np.asarray(base.weight) ** 2)
    np.testing.assert_allclose(by_scale[0], 2 * squares, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suppress": [8]}, "suppress names expert 8, but num_experts=8"),
        ({"force": [-1]}, "force names expert -1, but num_experts=8"),
        ({"bias": {9: 1.0}}, "bias names expert 9"),
        ({"scale": {9: 1.0}}, "scale names expert 9"),
        ({"permute": [0] * 8}, "is no permutation of 0..7"),
        ({"permute": [0, 1]}, "is no permutation of 0..7"),
        ({"rank_shift": -1}, "rank_shift=-1 must be at least 0"),
        ({"gumbel": -1.0}, "gumbel=-1.0 must be at least 0"),
        ({"steer": {8: 1.0}}, "steer names expert 8"),
        ({"replay": np.zeros((T, 3), int)}, "replay has 3 columns, the gate has 2"),
        ({"replay_weight": np.zeros((T, 3))}, "replay_weight has 3 columns, the gate has 2"),
        ({"stand_in": np.zeros((7, 3))}, r"stand_in has shape \(7, 3\), the gate wants \(8, d_mod"),
    ],
)
def test_bad_edits(changes, message):
    with pytest.raises(ValueError, match=message):
        RoutingEdit.make(PLAIN, **changes)


def test_edit_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(
        ValueError, match=r"edit.tokens has shape \(7,\), the gate wants \(10,\) or \(1,\)"
    ):
        edited(tokens=np.ones(7, bool))
    for shape in ((7, 3), (8,), (3, 8, 3)):
        edit = RoutingEdit.identity(PLAIN)._replace(stand_in=jnp.zeros(shape))
        with pytest.raises(ValueError, match=rf"stand_in has shape \({shape[0]},.* wants \(8, "):
            edit.check(PLAIN, T)
    other = RoutingEdit.identity(GateConfig(num_experts=4, k=2))
    with pytest.raises(
        ValueError, match=r"edit.suppress has shape \(1, 4\), the gate wants \(10, 8\)"
    ):
        route(jnp.asarray(Z), PLAIN, edit=other)
