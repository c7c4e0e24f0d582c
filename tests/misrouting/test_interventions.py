"""Interventions through `route`, against NumPy readings of what each should do; doses."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from moe_jax.gating import GateConfig, RoutingEdit, route
from moe_jax.misrouting import dose
from moe_jax.misrouting import interventions as iv

T, L, E, K = 12, 3, 8, 2
Z = np.random.default_rng(0).normal(size=(T, L, E)).astype(np.float32)
Z[0, :, :3] = [0.0, -0.0, 0.0]
GATES = {
    "softmax": GateConfig(num_experts=E, k=K),
    "renormalised": GateConfig(num_experts=E, k=K, renormalise=True),
    "sigmoid": GateConfig(num_experts=E, k=K, score="sigmoid", renormalise=True, scale=2.5),
    "topk_first": GateConfig(num_experts=E, k=K, topk_first=True),
    "switch": GateConfig(num_experts=E, k=1, capacity=2),
}
PLAIN = GATES["softmax"]
NONE, ALL = np.zeros(L, bool), np.ones(L, bool)
EMPTY = np.zeros((L, E), bool)
TARGET = EMPTY.copy()
TARGET[0, [1, 4]], TARGET[2, [0, 2, 7]] = True, True
SCOPE = np.arange(T) % 3 == 0
MEANS = np.random.default_rng(2).normal(size=(L, E, 5))


@functools.cache
def compiled(config):
    return jax.jit(lambda z, edit: route(z, config, edit=edit))


def run_all(edit, config=PLAIN, z=Z):
    """(expert, weight, probs, logits) [t l ...] of all layers, each with its own slice of the edit.

    Leaves are widened to all tokens, so that a gate is compiled once.
    """
    full = None if edit is None else RoutingEdit.identity(config, num_tokens=len(z))
    layers = []
    for m in range(z.shape[1]):
        if edit is None:
            one = None
        else:
            one = jax.tree.map(
                lambda a, b, m=m: np.broadcast_to(np.asarray(a)[m], b.shape), edit, full
            )
        layers.append(compiled(config)(z[:, m], one))
    return tuple(np.stack([np.asarray(r[i]) for r in layers], axis=1) for i in range(4))


def run(*arguments, **more):
    """(expert, weight, probs)."""
    return run_all(*arguments, **more)[:3]


def softmax(z):
    p = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def take(values, expert):
    return np.take_along_axis(values, expert, axis=-1)


def best(scores, k=K):
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def zero_doses(config):
    kept = np.full((T, L, config.k), -1)
    return {
        "identity": iv.identity(config, L),
        "suppress": iv.suppress(config, EMPTY),
        "exclude": iv.exclude(config, EMPTY),
        "zero": iv.zero(config, EMPTY),
        "mean_ablate": iv.mean_ablate(config, EMPTY, MEANS[..., :1]),
        "force": iv.force(config, EMPTY),
        "steer": iv.steer(config, forced=EMPTY, suppressed=EMPTY),
        "bias": iv.bias(config, TARGET, 0.0),
        "bias of nobody": iv.bias(config, EMPTY, 3.0),
        "scale": iv.scale(config, TARGET, 1.0),
        "scale of nobody": iv.scale(config, EMPTY, 0.0),
        "random": iv.random(config, NONE, seed=1),
        "rank_shift": iv.rank_shift(config, NONE),
        "rank_shift by 0": iv.rank_shift(config, ALL, shift=0),
        "permute": iv.permute(config, EMPTY, seed=0),
        "gumbel": iv.gumbel(config, ALL, 0.0, seed=0),
        "donor": iv.donor(config, kept, np.full(T, -1)),
        "top_1": iv.top_1(config, NONE),
        "replay": iv.replay(config, kept),
    }


def doses(config):
    recorded = best(Z[::-1], config.k)
    return {
        "suppress": iv.suppress(config, TARGET),
        "exclude": iv.exclude(config, TARGET),
        "zero": iv.zero(config, TARGET),
        "mean_ablate": iv.mean_ablate(config, TARGET, MEANS[..., :1]),
        "force": iv.force(config, TARGET),
        "steer": iv.steer(config, forced=TARGET, suppressed=EMPTY),
        "bias": iv.bias(config, TARGET, 2.0),
        "scale": iv.scale(config, TARGET, 0.5),
        "random": iv.random(config, ALL, seed=1),
        "rank_shift": iv.rank_shift(config, ALL),
        "permute": iv.permute(config, TARGET, seed=0),
        "gumbel": iv.gumbel(config, ALL, 5.0, seed=0),
        "donor": iv.donor(config, recorded, np.arange(T)),
        "top_1": iv.top_1(config, ALL),
        "replay": iv.replay(config, recorded, weight=np.full(recorded.shape, 0.25)),
    }


@pytest.mark.parametrize("name", GATES)
def test_no_dose_changes_no_bit(name):
    config = GATES[name]
    base = run_all(None, config)
    for what, edit in zero_doses(config).items():
        for a, b in zip(base, run_all(edit, config), strict=True):
            assert a.tobytes() == b.tobytes(), what
    for what, edit in doses(config).items():
        nowhere = edit._replace(tokens=jnp.zeros((L, T), bool))
        for a, b in zip(base, run_all(nowhere, config), strict=True):
            assert a.tobytes() == b.tobytes(), what


def test_leaves_fit_the_gate_as_they_are():
    for config in GATES.values():
        for edit in (doses(config) | zero_doses(config)).values():
            for m in range(L):
                jax.tree.map(lambda a, m=m: a[m], edit).check(config, T)
                assert {len(a) for a in edit} == {L}


@pytest.mark.parametrize("name", doses(PLAIN))
def test_scope(name):
    """In scope as for all tokens, out of scope as unedited; and the dose isn't nothing."""
    edit = doses(PLAIN)[name]
    scoped = edit._replace(tokens=jnp.broadcast_to(SCOPE[None], (L, T)))
    base, everywhere, got = run(None), run(edit), run(scoped)
    for a, b, c in zip(base, everywhere, got, strict=True):
        np.testing.assert_array_equal(c, np.where(SCOPE[:, None, None], b, a))
    assert any(np.any(a != b) for a, b in zip(base[:2], everywhere[:2], strict=True))


def test_the_tokens_argument_is_that_scope():
    kept = best(Z)
    for edit in (
        iv.suppress(PLAIN, TARGET, tokens=SCOPE),
        iv.exclude(PLAIN, TARGET, tokens=SCOPE),
        iv.zero(PLAIN, TARGET, tokens=SCOPE),
        iv.mean_ablate(PLAIN, TARGET, MEANS, tokens=SCOPE),
        iv.force(PLAIN, TARGET, tokens=SCOPE),
        iv.steer(PLAIN, forced=TARGET, suppressed=EMPTY, tokens=SCOPE),
        iv.bias(PLAIN, TARGET, 1.0, tokens=SCOPE),
        iv.scale(PLAIN, TARGET, 2.0, tokens=SCOPE),
        iv.random(PLAIN, ALL, seed=0, tokens=SCOPE),
        iv.rank_shift(PLAIN, ALL, tokens=SCOPE),
        iv.permute(PLAIN, TARGET, seed=0, tokens=SCOPE),
        iv.gumbel(PLAIN, ALL, 1.0, seed=0, tokens=SCOPE),
        iv.donor(PLAIN, kept, np.arange(T), tokens=SCOPE),
        iv.top_1(PLAIN, ALL, tokens=SCOPE),
        iv.replay(PLAIN, kept, tokens=SCOPE),
        iv.identity(PLAIN, L, tokens=SCOPE),
    ):
        np.testing.assert_array_equal(edit.tokens, np.tile(SCOPE, (L, 1)))


def test_suppress_exclude_and_zero():
    p = softmax(Z)
    there = np.broadcast_to(TARGET, Z.shape)
    expert, weight, probs = run(iv.suppress(PLAIN, TARGET))
    left = np.where(there, 0, p)
    np.testing.assert_array_equal(expert, best(left))
    np.testing.assert_allclose(probs, left / left.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(weight, take(probs, expert))
    expert, weight, _ = run(iv.exclude(PLAIN, TARGET))
    np.testing.assert_array_equal(expert, best(left))
    np.testing.assert_allclose(weight, take(p, expert), rtol=1e-5)
    expert, weight, _ = run(iv.zero(PLAIN, TARGET))
    np.testing.assert_array_equal(expert, best(p))
    np.testing.assert_allclose(weight, take(left, expert), rtol=1e-5)


def test_mean_ablate_is_zero_with_means():
    got, zeroed = iv.mean_ablate(PLAIN, TARGET, MEANS), iv.zero(PLAIN, TARGET)
    want = np.where(TARGET[..., None], MEANS, 0).astype(np.float32)
    np.testing.assert_array_equal(got.stand_in, want)
    for name, a, b in zip(got._fields, got, zeroed, strict=True):
        if name != "stand_in":
            np.testing.assert_array_equal(a, b)
    hole = np.where(TARGET[..., None], MEANS, np.nan)  # what nobody reads
    np.testing.assert_array_equal(iv.mean_ablate(PLAIN, TARGET, hole).stand_in, want)
    both = iv.stack([zeroed, got])
    assert both.stand_in.shape == (2, L, E, 5)
    assert not np.any(both.stand_in[0])


def test_gate_mass_orders_the_three():
    """64 experts, 8 chosen, not renormalised: S1 > S2 > S3, base > S2; renormalised: S1 = S2."""
    z = np.random.default_rng(1).normal(size=(200, 1, 64)).astype(np.float32)
    target = np.zeros((1, 64), bool)
    target[0, :12] = True
    config = GateConfig(num_experts=64, k=8)
    everyone = np.ones(200, bool)
    base = run(None, config, z)[:2]
    mass = {}
    for name in ("suppress", "exclude", "zero"):
        edited = run(getattr(iv, name)(config, target), config, z)[:2]
        got = dose(base, edited, target, where=everyone)
        assert got.layer.target_share[0] == 0
        mass[name] = float(got.layer.gate_mass[0])
    before = float(got.base_layer.gate_mass[0])
    # S2's replacements have smaller scores than what they replace, S1 lifts them, S3 has none.
    assert mass["zero"] < mass["exclude"] < min(mass["suppress"], before)
    config = GateConfig(num_experts=64, k=8, renormalise=True)
    a, b = (run(f(config, target), config, z) for f in (iv.suppress, iv.exclude))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_allclose(a[1], b[1], rtol=1e-5)


@pytest.mark.parametrize("name", ["suppress", "exclude", "zero", "mean_ablate"])
def test_nothing_of_the_target_is_left_in_any_gate(name):
    for config in GATES.values():
        expert, weight, _ = run(doses(config)[name], config)
        there = np.append(TARGET, np.zeros((L, 1), bool), axis=1)
        hit = there[np.arange(L)[:, None], expert]
        assert not weight[hit].any()
        assert hit.any() == (name in ("zero", "mean_ablate"))


def test_suppress_renormalises_a_sigmoid_only_if_the_gate_does():
    config = GateConfig(num_experts=E, k=K, score="sigmoid")
    a, b = (run(f(config, TARGET), config) for f in (iv.suppress, iv.exclude))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_a_suppressed_expert_frees_places_under_capacity():
    """All tokens to one expert of capacity 2: without it they fill the next one, T - 2 dropped."""
    config, z = GATES["switch"], np.tile(np.arange(E, dtype=np.float32), (T, 1, 1))
    base, got = run(None, config, z), run(iv.suppress(config, np.arange(E)[None] == 7), config, z)
    assert base[0][:, 0, 0].tolist() == [7, 7] + [E] * (T - 2)
    assert got[0][:, 0, 0].tolist() == [6, 6] + [E] * (T - 2)
    silent = run(iv.zero(config, np.arange(E)[None] == 7), config, z)
    np.testing.assert_array_equal(silent[0], base[0])
    assert not silent[1].any()


def test_force():
    p = softmax(Z)
    expert, weight, _ = run(iv.force(PLAIN, TARGET))
    np.testing.assert_array_equal(expert, best(p + np.where(TARGET, 10, 0)))
    np.testing.assert_allclose(weight, take(p, expert), rtol=1e-5)


def test_steer_is_a_ceiling_and_a_floor():
    forced, down = EMPTY.copy(), EMPTY.copy()
    forced[0, 3], forced[1, [0, 5]], down[0, [6, 7]], down[2, :7] = True, True, True, True
    expert, weight, probs = run(iv.steer(PLAIN, forced=forced, suppressed=down))
    s = np.log(softmax(Z))
    for t, m in itertools.product(range(T), range(L)):
        s[t, m], row = np.where(forced[m], s[t, m].max() + 0.01, s[t, m]), s[t, m].copy()
        s[t, m][down[m]] = row.min() - 0.01
    np.testing.assert_allclose(probs, softmax(s), rtol=2e-5)
    assert (expert[:, 0, 0] == 3).all()
    assert (np.sort(expert[:, 1]) == [0, 5]).all()
    # Both forced experts share the largest weight; the floor is no removal: one is still chosen.
    np.testing.assert_allclose(weight[:, 1, 0], weight[:, 1, 1], rtol=1e-5)
    assert down[2][expert[:, 2]].any(axis=1).all()


def test_bias_and_scale():
    amount = np.linspace(-2, 2, L * E).reshape(L, E)
    expert, weight, probs = run(iv.bias(PLAIN, TARGET, amount))
    p = softmax(Z + np.where(TARGET, amount, 0))
    np.testing.assert_allclose(probs, p, rtol=1e-5)
    np.testing.assert_array_equal(expert, best(p))
    np.testing.assert_allclose(weight, take(p, expert), rtol=1e-5)
    for factor in (0.25, amount):
        expert, weight, probs = run(iv.scale(PLAIN, TARGET, factor))
        p = softmax(Z)
        np.testing.assert_array_equal(expert, best(p))
        times = np.where(TARGET, factor, 1)[None]
        np.testing.assert_allclose(weight, take(p * times, expert), rtol=1e-5)
    silent, zeroed = run(iv.scale(PLAIN, TARGET, 0.0)), run(iv.zero(PLAIN, TARGET))
    np.testing.assert_array_equal(silent[1], zeroed[1])


def test_bias_rises_with_the_dose():
    base, shares = run(None)[:2], []
    for amount in (-2.0, -1.0, 0.0, 1.0, 2.0):
        edited = run(iv.bias(PLAIN, TARGET, amount))[:2]
        shares.append(dose(base, edited, TARGET, where=np.ones(T, bool)).overall.target_share)
    assert (np.diff(shares) > 0).all()


def test_random_is_equal_in_compute_and_other_in_every_layer():
    z = np.repeat(Z[:1, :1], L, axis=1).repeat(600, axis=0)
    expert, weight, _ = run(iv.random(PLAIN, ALL, seed=3), z=z)
    assert (expert < E).all()
    assert (expert[..., 0] != expert[..., 1]).all()
    for m in range(L):
        share = np.bincount(expert[:, m].ravel(), minlength=E) / 600
        np.testing.assert_allclose(share, K / E, atol=0.08)
    assert (expert[:, 0] != expert[:, 1]).any(axis=1).mean() > 0.5
    np.testing.assert_allclose(weight, take(softmax(z), expert), rtol=1e-5)
    np.testing.assert_array_equal(expert, run(iv.random(PLAIN, ALL, seed=3), z=z)[0])
    assert (expert != run(iv.random(PLAIN, ALL, seed=4), z=z)[0]).any()
    one = run(iv.random(PLAIN, np.arange(L) == 1, seed=3))[0]
    np.testing.assert_array_equal(one[:, [0, 2]], run(None)[0][:, [0, 2]])


def test_rank_shift():
    p = softmax(Z)
    expert, weight, _ = run(iv.rank_shift(PLAIN, ALL))
    np.testing.assert_array_equal(expert, best(p, 2 * K)[..., K:])
    np.testing.assert_allclose(weight, take(p, expert), rtol=1e-5)
    expert, _, _ = run(iv.rank_shift(PLAIN, np.arange(L) == 2, shift=1))
    np.testing.assert_array_equal(expert[:, :2], best(p)[:, :2])
    np.testing.assert_array_equal(expert[:, 2], best(p, 3)[:, 2, 1:])


@given(st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_permute_moves_the_whole_target_and_nothing_else(seed):
    base, got = run(None), run(iv.permute(PLAIN, TARGET, seed=seed))
    np.testing.assert_array_equal(got[1], base[1])
    for m in range(L):
        worker = dict(zip(base[0][:, m].ravel(), got[0][:, m].ravel(), strict=True))
        assert (got[0][:, m] == np.vectorize(worker.get)(base[0][:, m])).all()
        for e, by in worker.items():
            assert (by != e) == TARGET[m, e]
            assert TARGET[m, e] == TARGET[m, by]


def test_gumbel_samples_without_replacement():
    """The first draw has the softmax's probabilities, and so has the pair Plackett and Luce's."""
    z = np.repeat(Z[:1, :1], 4_000, axis=0)
    one = np.ones(1, bool)
    for temperature in (0.5, 2.0):
        expert, weight, _ = run(iv.gumbel(PLAIN, one, temperature, seed=0), z=z)
        p = softmax(z[0, 0] / temperature)
        seen = np.zeros((E, E))
        np.add.at(seen, (expert[:, 0, 0], expert[:, 0, 1]), 1)
        want = p[:, None] * p[None] / (1 - p[:, None])
        np.fill_diagonal(want, 0)
        off = ~np.eye(E, dtype=bool)
        assert not seen[~off].any()
        assert stats.chisquare(seen[off], want[off] / want.sum() * 4_000).pvalue > 1e-3
        np.testing.assert_allclose(weight, take(softmax(z), expert), rtol=1e-5)
    cold = run(iv.gumbel(PLAIN, ALL, 1e-6, seed=0))[0]
    np.testing.assert_array_equal(cold[1:], run(None)[0][1:])


def test_gumbel_is_of_the_layers_and_the_seed():
    got, again, other = (run(iv.gumbel(PLAIN, ALL, 3.0, seed=s))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(got, again)
    assert (got != other).any()
    first = run(iv.gumbel(PLAIN, np.arange(L) == 0, 3.0, seed=0))[0]
    np.testing.assert_array_equal(first[:, 0], got[:, 0])
    np.testing.assert_array_equal(first[:, 1:], run(None)[0][:, 1:])
    same = np.repeat(Z[:, :1], L, axis=1)
    drawn = run(iv.gumbel(PLAIN, ALL, 3.0, seed=0), z=same)[0]
    assert (drawn[:, 0] != drawn[:, 1]).any(), "noise of its own in each layer"


def test_gumbel_never_draws_what_is_not_available():
    z = np.where(np.arange(E) < 7, -np.inf, Z)
    expert, weight, _ = run(iv.gumbel(PLAIN, ALL, 3.0, seed=0), z=z)
    assert (expert == [7, E]).all()
    assert not weight[..., 1].any()


def test_donor():
    routes = best(np.random.default_rng(9).normal(size=(T - 3, L, E)))
    expert, weight, _ = run(iv.donor(PLAIN, routes, iv.aligned(T, T - 3)))
    np.testing.assert_array_equal(expert[: T - 3], routes)
    np.testing.assert_array_equal(expert[T - 3 :], run(None)[0][T - 3 :])
    np.testing.assert_allclose(weight, take(softmax(Z), expert), rtol=1e-5)
    position = np.full(T, -1)
    position[4] = 6
    expert, _, _ = run(iv.donor(PLAIN, routes, position))
    want = run(None)[0]
    want[4] = routes[6]
    np.testing.assert_array_equal(expert, want)
    assert iv.aligned(3, 5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", GATES)
def test_top_1(name):
    config = GATES[name]
    base, got = run(None, config), run(iv.top_1(config, np.arange(L) != 1), config)
    np.testing.assert_array_equal(got[0][..., 0], base[0][..., 0])
    np.testing.assert_array_equal(got[0][:, 1], base[0][:, 1])
    rest = got[0][:, [0, 2], 1:]
    assert (rest == E).all()
    assert not got[1][:, [0, 2], 1:].any()
    if config.renormalise or config.topk_first:
        np.testing.assert_allclose(got[1][:, [0, 2], 0], config.scale, rtol=1e-6)
    else:
        np.testing.assert_array_equal(got[1][..., 0], base[1][..., 0])


@pytest.mark.parametrize("name", GATES)
def test_replay_of_the_own_routes(name):
    """Expert and weight bit for bit, through a capacity too; other logits take the same routes."""
    config = GATES[name]
    base = run(None, config)
    own = run(iv.replay(config, base[0]), config)
    for a, b in zip(base, own, strict=True):
        assert a.tobytes() == b.tobytes()
    other = run(iv.replay(config, base[0], weight=base[1]), config, -Z)
    np.testing.assert_array_equal(other[0], base[0])
    np.testing.assert_array_equal(other[1], base[1])


def test_stack_runs_all_at_once():
    edits = doses(PLAIN) | {"identity": iv.identity(PLAIN, L)}
    stacked = iv.stack(list(edits.values()))
    assert {a.shape[:2] for a in stacked} == {(len(edits), L)}
    many = jax.jit(
        jax.vmap(jax.vmap(lambda z, e: route(z, PLAIN, edit=e), in_axes=(1, 0)), in_axes=(None, 0))
    )(Z, stacked)
    for n, (name, edit) in enumerate(edits.items()):
        expert, weight, _ = run(edit)
        np.testing.assert_array_equal(many.expert[n].transpose(1, 0, 2), expert, err_msg=name)
        np.testing.assert_allclose(many.weight[n].transpose(1, 0, 2), weight, rtol=1e-5)


def test_dose_against_a_loop():
    where = np.arange(T) != 5
    config = GATES["switch"]
    for cfg, edit in ((PLAIN, iv.zero(PLAIN, TARGET)), (config, iv.suppress(config, TARGET))):
        base, edited = run(None, cfg)[:2], run(edit, cfg)[:2]
        got = dose(base, edited, TARGET, where=where)
        rows, any_layer = np.flatnonzero(where), np.zeros(T, bool)
        sums = np.zeros((2, 2))
        for m in range(L):
            for s, (expert, weight) in enumerate((edited, base)):
                by_layer = (got.layer, got.base_layer)[s]
                k = [np.sum((expert[t, m] < E) & (weight[t, m] > 0)) for t in rows]
                assert by_layer.realised_k[m] == pytest.approx(np.mean(k))
                mass = weight[rows, m].astype(float).sum()
                assert by_layer.gate_mass[m] == pytest.approx(mass / len(rows))
                on = sum(
                    float(w)
                    for t in rows
                    for e, w in zip(expert[t, m], weight[t, m], strict=True)
                    if e < E and TARGET[m, e]
                )
                assert by_layer.target_share[m] == pytest.approx(on / mass)
                sums[s] += on, mass
            other = [set(base[0][t, m]) != set(edited[0][t, m]) for t in rows]
            any_layer[rows] |= other
            assert got.layer.changed[m] == pytest.approx(np.mean(other))
        assert not got.base_layer.changed.any()
        assert got.overall.changed == pytest.approx(any_layer[rows].mean())
        assert got.overall.target_share == pytest.approx(sums[0, 0] / sums[0, 1])
        assert got.base_overall.target_share == pytest.approx(sums[1, 0] / sums[1, 1])
        assert got.overall.realised_k == pytest.approx(got.layer.realised_k.mean())
        assert got.overall.gate_mass == pytest.approx(got.layer.gate_mass.mean())


def test_dose_of_an_order_and_of_nothing():
    base = (np.array([[[0, 1]], [[2, 3]]]), np.array([[[0.5, 0.25]], [[0.0, 0.0]]]))
    turned = (base[0][..., ::-1].copy(), base[1])
    target = np.array([[False, True, False, False]])
    got = dose(base, turned, target, where=np.ones(2, bool))
    assert got.overall.changed == 0
    assert got.overall.realised_k == 1
    assert got.base_overall.target_share == pytest.approx(1 / 3)
    assert got.overall.target_share == pytest.approx(2 / 3)
    dead = dose(base, base, target, where=np.array([False, True]))
    assert dead.overall.target_share == 0
    assert dead.overall.gate_mass == 0


ROUTES = np.zeros((T, L, K), int) + [0, 1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: iv.stack([]), "edits is empty"),
        (lambda: iv.suppress(PLAIN, TARGET[:, :5]), r"suppress has shape \(3, 1, 5\), the model"),
        (lambda: iv.bias(PLAIN, TARGET, np.inf), "amount=inf must be finite"),
        (lambda: iv.scale(PLAIN, TARGET, np.nan), "factor=nan must be finite"),
        (
            lambda: iv.mean_ablate(PLAIN, TARGET, np.where(TARGET[..., None], np.inf, MEANS)),
            "means of layer 0, expert 1 must be finite",
        ),
        (lambda: iv.rank_shift(PLAIN, ALL, shift=-1), "shift=-1 must be at least 0"),
        (
            lambda: iv.permute(PLAIN, TARGET & (np.arange(E) < 2), seed=0),
            "layer 0: the target has one",
        ),
        (lambda: iv.gumbel(PLAIN, ALL, -1.0, seed=0), "temperature=-1.0 must be a number >= 0"),
        (
            lambda: iv.gumbel(GateConfig(num_experts=E, k=K, choice="expert"), ALL, 1.0, seed=0),
            "here experts choose",
        ),
        (lambda: iv.steer(PLAIN, forced=TARGET, suppressed=TARGET), "share an expert"),
        (
            lambda: iv.steer(PLAIN, forced=TARGET, suppressed=EMPTY, margin=0.0),
            "margin=0.0 must be",
        ),
        (lambda: iv.replay(PLAIN, ROUTES[..., :1]), "expert has 1 slots, the gate has 2"),
        (lambda: iv.replay(PLAIN, ROUTES + E), "expert holds 8..9: ids go from 0 to 7"),
        (
            lambda: iv.replay(PLAIN, ROUTES * 0),
            r"token 0, layer 0: an expert stands twice in \[0 0\]",
        ),
        (lambda: iv.donor(PLAIN, ROUTES, np.array([0, T])), "position holds 0..12: the donor's"),
        (
            lambda: dose((ROUTES, Z[..., :K]), (ROUTES, Z[..., :K]), TARGET, where=SCOPE & False),
            "no token to count",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("means", [MEANS[:2], MEANS[:, :5], MEANS[..., 0]])
def test_means_of_another_shape(means, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"means has shape \(\d, \d.* the target has \(3, 8\)"):
        iv.mean_ablate(PLAIN, TARGET, means)
