"""Stage 1's evaluation: against loops and scores by hand, its error rate, and wrong settings."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt
from moe_jax.misrouting.collect import collect
from moe_jax.misrouting.profile import check, compare, profile
from moe_jax.misrouting.profile_config import ProfileSettings
from moe_jax.misrouting.profile_data import ModelShape
from tests.misrouting import small_study
from tests.misrouting.small_study import EXPERTS, MODEL, QUICK, K

PLANTED = {"each": 20, "planted": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def planted():
    return small_study.study(**PLANTED)


def test_usage_and_level_means_by_loops(planted):
    prompts, _, result = planted
    for i, reading in enumerate(small_study.readings(prompts, planted=0.8, seed=3)):
        for layer in range(2):
            for e in range(EXPERTS):
                times = sum(e in row for row in reading.expert[reading.where][:, layer].tolist())
                assert result.usage[i, layer, e] == pytest.approx(times / (11 * K))
    for d in range(3):
        mine = [result.usage[i] for i, p in enumerate(prompts) if p.difficulty == d + 1]
        np.testing.assert_allclose(result.means.mean[d], sum(mine) / 20)
    assert (result.means.low <= result.means.mean).all()
    assert (result.means.mean <= result.means.high).all()
    np.testing.assert_array_equal(result.tokens, 11)
    np.testing.assert_array_equal(result.length, 12)
    assert not result.dropped.any()


def test_the_interval_of_a_level_is_about_two_standard_errors(planted):
    result = small_study.study(dataclasses.replace(QUICK, samples=4_000), **PLANTED)[2]
    mine = result.usage[result.level == 1]
    error = mine.std(axis=0) / np.sqrt(len(mine))
    np.testing.assert_allclose(result.means.high[1] - result.means.low[1], 3.92 * error, rtol=0.1)


def test_scores_and_ranks(planted):
    prompts, collected, _ = planted
    prompts = [p._replace(group="") for p in prompts]
    result = profile(collected, prompts, MODEL, QUICK)
    s = result.scores
    np.testing.assert_allclose(s.score, result.means.mean[2] - result.means.mean[0])
    order = sorted(range(8), key=lambda c: -abs(s.score.ravel()[c]))
    assert result.ranking.tolist() == order
    for at in np.ndindex(2, EXPERTS):
        tau = stats.kendalltau(result.usage[(slice(None), *at)], result.level)
        assert s.p_jonckheere[at] == pytest.approx(tau.pvalue, rel=0.02)
    assert (s.low <= s.score).all()
    assert (s.score <= s.high).all()
    assert s.inclusion.sum() == pytest.approx(len(result.selection.expert))


def test_the_planted_expert_is_found_and_holds_on_the_other_half(planted):
    _, _, result = planted
    assert result.ranking[0] == 2  # layer index 0, expert 2
    assert result.scores.score[0, 2] > 0
    assert result.scores.p_family[0, 2] <= 0.05
    assert result.scores.clr_p_family[0, 2] <= 0.05
    assert result.scores.p_family[1].min() > 0.05
    chosen = result.selection
    assert (chosen.layer[0], chosen.expert[0]) == (1, 2)  # by the layer's number in the model
    assert chosen.p_holm[0] <= 0.05
    assert chosen.agreement > 0


def test_the_rate_of_false_findings():
    """60 studies of nothing: as many with a finding as 5% chance allows."""
    found = 0
    for seed in range(60):
        result = small_study.study(
            dataclasses.replace(QUICK, seed=seed), each=8, samples=0, seed=seed
        )[2]
        found += bool((result.scores.p_family <= 0.05).any())
    low, high = stats.binom.interval(0.998, 60, 0.05)
    assert low <= found <= high


def test_halves_are_apart_and_select_on_a_alone(planted):
    _, collected, result = planted
    chosen = result.selection
    assert sorted([*chosen.half_a, *chosen.half_b]) == list(range(60))
    assert set(np.bincount(result.level[chosen.half_a])) <= {9, 10, 11}
    rate = collected.rate[chosen.half_a]
    level = result.level[chosen.half_a]
    score = rate[level == 2].mean(0) - rate[level == 0].mean(0)
    np.testing.assert_allclose(chosen.score_a[0], score.ravel()[np.abs(score).argmax()])
    np.testing.assert_allclose(chosen.usage_mean, rate.mean(0))
    assert np.sign(chosen.z[0, 2]) == np.sign(chosen.score_a[0])


def test_without_halves_all_prompts_select_and_test():
    settings = dataclasses.replace(QUICK, select_half=False, top=3)
    result = small_study.study(settings)[2]
    chosen = result.selection
    assert chosen.half_a.tolist() == chosen.half_b.tolist() == list(range(18))
    np.testing.assert_array_equal(chosen.score_a, chosen.score_b)
    np.testing.assert_allclose(chosen.score_a, result.scores.score.ravel()[result.ranking[:3]])


def test_weights_of_the_levels():
    settings = dataclasses.replace(QUICK, weights=(-1.0, 0.5, 0.5))
    result = small_study.study(settings)[2]
    m = result.means.mean
    np.testing.assert_allclose(result.scores.score, (m[1] + m[2]) / 2 - m[0])


def test_an_unused_expert_does_not_fall_with_length():
    """One pseudo count for prompts of all lengths: log-ratios of 0 are the same in all of them."""
    prompts = small_study.prompts(8)
    readings = []
    for r, p in zip(small_study.readings(prompts, tokens=40), prompts, strict=True):
        n = 8 * int(p.difficulty)
        expert = np.tile(np.array([0, 1], np.int32), (n, 2, 1))  # the same everywhere
        readings.append(
            r._replace(
                ids=r.ids[:n],
                pieces=r.pieces[:n],
                where=r.where[:n],
                expert=expert,
                weight=r.weight[:n],
                probs=r.probs[:n],
            )
        )
    result = profile(collect(readings, prompts, MODEL), prompts, MODEL, QUICK)
    np.testing.assert_array_equal(result.scores.clr_p, 1)
    np.testing.assert_allclose(result.scores.clr_score, 0, atol=1e-12)


def test_strata_are_groups_and_lengths():
    prompts = small_study.prompts(8)
    made = small_study.readings(prompts)
    rows = []
    for i, r in enumerate(made):
        where = np.arange(12) < (4 if i % 4 < 2 else 11)
        rows.append(r._replace(where=where))
    collected = collect(rows, prompts, MODEL)
    plain = profile(collected, prompts, MODEL, QUICK)
    assert sorted(set(plain.stratum)) == [0, 1]
    binned = profile(collected, prompts, MODEL, dataclasses.replace(QUICK, length_bins=2))
    pairs = {(p.group, int(n)) for p, n in zip(prompts, collected.tokens, strict=True)}
    assert len(set(binned.stratum.tolist())) == len(pairs) == 4
    keys = {
        (s, p.group, int(n))
        for s, p, n in zip(binned.stratum.tolist(), prompts, collected.tokens, strict=True)
    }
    assert len(keys) == 4


def test_groups_that_hold_one_level_each_can_not_be_compared():
    prompts = [p._replace(group=f"{p.difficulty}") for p in small_study.prompts()]
    collected = collect(small_study.readings(prompts), prompts, MODEL)
    with pytest.raises(UserError, match="no group of prompts has two levels"):
        profile(collected, prompts, MODEL, QUICK)


def test_balance_pairs_and_tokens_by_loops(planted):
    prompts, _, result = planted
    b, made = result.balance, small_study.readings(prompts, planted=0.8, seed=3)
    rows = [
        (int(i), row)
        for r in made
        for i, row, here in zip(r.ids, r.expert.tolist(), r.where, strict=True)
        if here
    ]
    for layer in range(2):
        times = [sum(e in row[layer] for _, row in rows) for e in range(EXPERTS)]
        np.testing.assert_allclose(b.load[layer], np.array(times) / sum(times))
        both = sum({0, 3} <= set(row[layer]) for _, row in rows)
        assert b.pairs[layer, 0, 3] == b.pairs[layer, 3, 0] == both
    first = result.top_tokens[0]
    assert (first.layer, first.expert) == (1, 2)
    for piece, times, rate in zip(first.pieces, first.times, first.rate, strict=True):
        mine = [row for i, row in rows if "abcde"[i] == piece]
        assert times == sum(2 in row[0] for row in mine)
        assert rate == pytest.approx(times / len(mine))
    assert list(first.times) == sorted(first.times, reverse=True)
    assert (b.entropy > 0).all()
    assert (b.entropy <= 2).all()


def test_rare_tokens_are_not_listed():
    result = small_study.study(dataclasses.replace(QUICK, minimum=10_000))[2]
    assert not any(t.pieces for t in result.top_tokens)
    assert np.isnan(result.balance.vocabulary).all()


def test_a_model_beside_itself_and_another(planted):
    _, collected, result = planted
    same = compare(result, collected, "twin", collected)
    np.testing.assert_array_equal(same.jaccard, 1)
    np.testing.assert_allclose(same.score, result.scores.score)
    assert same.score_correlation == pytest.approx(1)
    rng = np.random.default_rng(0)
    expert = np.argsort(rng.random((*collected.expert.shape[:2], EXPERTS)), axis=2)[:, :, :K]
    other = compare(result, collected, "other", collected._replace(expert=expert.astype(np.int32)))
    # Two random pairs of four share 0, 1 or 2 with chances 1/6, 4/6, 1/6.
    np.testing.assert_allclose(other.jaccard, 4 / 6 / 3 + 1 / 6, atol=0.06)


def test_models_that_can_not_be_compared(planted):
    _, collected, result = planted
    with pytest.raises(UserError, match="wide has 2 x 5 layers x experts, small has 2 x 4"):
        compare(result, collected, "wide", collected._replace(rate=np.zeros((60, 2, 5))))
    with pytest.raises(UserError, match="reads other tokens"):
        compare(result, collected, "odd", collected._replace(ids=collected.ids + 1))


@pytest.mark.parametrize("kind", ["selection", "gate", "soft"])
def test_kinds_of_usage_sum_to_what_they_should(kind):
    found = small_study.prompts()
    made = small_study.readings(found)
    rate = collect(made, found, MODEL, kind=kind).rate.sum(axis=2)
    if kind == "gate":
        expected = [r.weight[r.where].sum(axis=2).mean(axis=0) for r in made]
    else:
        expected = np.full_like(rate, {"selection": 2, "soft": 1}[kind])
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_dropped_choices_are_a_share():
    found = small_study.prompts()
    made = small_study.readings(found)
    lost = made[4].expert.copy()
    lost[:, 1, 0] = EXPERTS  # one choice of two, in the second layer
    made[4] = made[4]._replace(expert=lost)
    collected = collect(reversed(made), found, MODEL)
    np.testing.assert_allclose(collected.dropped[4], [0, 0.5])
    assert collected.dropped.sum() == 0.5


def test_the_readings_must_be_all_and_hold_what_usage_needs():
    found = small_study.prompts()
    made = small_study.readings(found)
    with pytest.raises(ValueError, match="readings of 17 prompts, there are 18"):
        collect(made[1:], found, MODEL)
    bare = [r._replace(weight=None, probs=None) for r in made]
    assert np.isnan(collect(bare, found, MODEL).entropy).all()
    for kind in ("gate", "soft"):
        with pytest.raises(UserError, match=f"usage='{kind}' needs"):
            collect(bare, found, MODEL, kind=kind)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"usage": "some"}, "usage='some': must be one of selection"),
        ({"permutations": 18}, "permutations=18: must be at least 19 .with fewer"),
        ({"samples": 0}, "samples=0"),
        ({"length_bins": -1}, "length_bins=-1"),
        ({"top": -2}, "top=-2"),
        ({"minimum": 0}, "minimum=0"),
        ({"seed": -1}, "seed=-1"),
        ({"weights": (-1.0, 1.0)}, r"2 numbers for 3 levels of difficulty \(1, 2, 3\)"),
        ({"weights": (-1.0, 0.0, 2.0)}, "add up to 1: they must add up to 0"),
        ({"weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"weights": (-1.0, float("nan"), 1.0)}, r"weights\[1\]=nan: must be a finite"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(UserError, match=message):
        check(small_study.prompts(), ProfileSettings(**change))


def test_levels_that_can_not_be_studied():
    few = [*small_study.prompts(), Prompt("x", 9.0, "")]
    with pytest.raises(UserError, match=r"difficulty 9 has 1 prompt\(s\)"):
        check(few, QUICK)
    with pytest.raises(UserError, match="a trend needs 2 levels"):
        check(small_study.prompts(levels=1), QUICK)


def test_more_to_select_than_there_are():
    with pytest.raises(UserError, match="top=9 is more than the model's 8 experts"):
        small_study.study(dataclasses.replace(QUICK, top=9))


def test_one_choice_a_token_has_no_pairs():
    model = ModelShape("one", (0, 1), EXPERTS, 1)
    found = small_study.prompts()
    made = [
        r._replace(expert=r.expert[:, :, :1], weight=r.weight[:, :, :1])
        for r in small_study.readings(found)
    ]
    result = profile(collect(made, found, model), found, model, QUICK)
    assert result.balance.pairs.shape == (0, EXPERTS, EXPERTS)
    np.testing.assert_allclose(result.usage.sum(axis=2), 1)
