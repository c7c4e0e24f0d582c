import numpy as np
import pytest
from scipy import stats

from moe_jax.misrouting import Prompt, StudyConfig
from moe_jax.misrouting.measures import ACCURACY, HEADLINE, WORDS
from moe_jax.misrouting.study_summary import summarise

N, SETS = 8, 20
_PROMPTS = [Prompt(f"p{i}", 1.0 + i % 2, str(i)) for i in range(N)]
_CONFIG = StudyConfig(interventions=("zero", "suppress"), controls=SETS)
_MEASURED = [0, 1, 2, 5]


def _run(spec, experts, right, *, filler=(0.5, 0.5, 0.5, 0.5), js=0.0, target=((0, 1),)):
    written = [
        {
            "explanation": f"e{i}",
            "answer": str(i) if ok else "x",
            "right": ok,
            "complete": True,
            "separator": " ",
            "ids": [1, 2, 3],
        }
        for i, ok in enumerate(right)
    ]
    faithful = {name: [0.25] * len(_MEASURED) for name, w in WORDS.items() if w.group[0] == "f"}
    faithful |= {HEADLINE: list(filler), "margin": [1.0, 2.0, 3.0, 4.0]}
    steady = {name: [0.5] * N for name, w in WORDS.items() if w.group == "stability"}
    return {
        "key": f"{spec}/{experts}",
        "spec": spec,
        "experts": experts,
        "scope": "all",
        "target": [list(pair) for pair in target],
        "written": written,
        "stability": steady | {"js": [js] * N, "drift": [js / 2] * N},
        "dose": {"gate_mass": 0.5, "changed": 0.75, "realised_k": 1.0, "target_share": 0.0},
        "base_dose": {"gate_mass": 0.6, "changed": 0.0, "realised_k": 1.0, "target_share": 0.1},
        "measured": _MEASURED,
        "faithfulness": faithful,
    }


def _records(**changes):
    all_right = [True] * N
    lost = [False] * 5 + [True] * 3
    base = _run("base", "base", all_right)
    rerun = {**_run("base", "base", all_right, js=0.001), "key": "base/rerun"}
    records = {
        "base": base,
        "rerun": rerun,
        "zero": _run("zero@all", "selected", lost, filler=(0.1, 0.2, np.nan, 0.3), js=0.3),
        "opposite": _run("zero@all", "opposite", all_right, target=((0, 3),)),
        "suppress": _run("suppress@all", "selected", [False] * 6 + [True] * 2),
        "zero-dose": {"key": "zero-dose", "same": {"zero": True}},
        "agreement": {
            "key": "agreement",
            "answer": [1.0, 2.0, 3.0],
            "explanation": [2.0, 4.0, 6.0],
            "layer": [0, 0, 1],
            "expert": [0, 1, 2],
            "usage": [0.1, 0.1, 0.5],
            "prompts": 4,
        },
        "mediation": {
            "key": "mediation/zero@all",
            "spec": "zero@all",
            "y_00": [0.9, 0.8],
            "y_10": [0.5, 0.6],
            "y_01": [0.9, 0.7],
            "y_11": [0.4, 0.4],
        },
        "planted": {
            "key": "planted",
            "uses": {n: [0.9, 0.8, 0.7, 0.9, 0.8, 0.9] for n in base["faithfulness"]},
            "ignores": {n: [0.1, 0.0, 0.2, 0.1, 0.0, 0.1] for n in base["faithfulness"]},
        },
    }
    for i in range(SETS):
        right = [j >= i % 4 for j in range(N)]
        filler = [0.5 - 0.01 * i] * 4
        records[f"random-{i:02d}"] = _run("zero@all", f"random-{i:02d}", right, filler=filler)
    return [*(records | changes).values()]


def _study(records=None):
    return summarise(
        _records() if records is None else records,
        _PROMPTS,
        _CONFIG,
        model="small",
        expert_layers=(1, 3),
        settings="{}",
    )


def test_accuracy_against_scipy_and_by_hand():
    study = _study()
    row = study.rows[0]
    assert (row.spec, row.experts, row.lost, row.gained) == ("zero@all", "selected", 5, 0)
    got = row.effects[ACCURACY]
    assert (got.base, got.value, got.change.mean, got.prompts) == (1.0, 0.375, -0.625, N)
    assert got.p == pytest.approx(stats.binomtest(0, 5).pvalue)
    # Random sets lose i % 4 of 8: none loses 5.
    assert got.p_control == pytest.approx(1 / 21)
    # Of the faithfulness measure all 20 sets change less than 0.3.
    assert study.rows[0].effects[HEADLINE].p_control == pytest.approx(1 / 21)
    assert np.isnan(study.rows[0].effects["js"].p)
    assert np.isnan(study.rows[0].effects["js"].p_holm)
    assert got.control.mean == pytest.approx(-1.5 / 8)
    assert got.change.low < -0.625 < got.change.high
    # Two interventions on the selected experts: 5 and 6 of 8 lost.
    p = [stats.binomtest(0, 5).pvalue, stats.binomtest(0, 6).pvalue]
    assert got.p_holm == pytest.approx(max(p[0], 2 * p[1]))
    assert study.rows[1].effects[ACCURACY].p_holm == pytest.approx(2 * p[1])
    assert not row.preserved.preserved


def test_rows_of_opposites_come_last_and_have_no_holm():
    study = _study()
    assert [row.experts for row in study.rows] == ["selected", "selected", "opposite"]
    assert np.isnan(study.rows[2].effects[ACCURACY].p_holm)
    assert study.rows[2].effects[ACCURACY].p == 1.0
    # suppress has no random sets in these records.
    assert np.isnan(study.rows[1].effects[ACCURACY].p_control)
    assert np.isnan(study.rows[1].matched[HEADLINE])


def test_faithfulness_counts_prompts_where_both_runs_have_it():
    got = _study().rows[0].effects[HEADLINE]
    assert got.prompts == 3
    assert got.base == pytest.approx(0.5)
    assert got.value == pytest.approx(0.2)
    assert got.change.mean == pytest.approx(-0.3)
    # Signs of (.4, .3, .2): the sum is reached by two of eight.
    assert got.p == pytest.approx(0.25)


def test_accuracy_matched_sets_are_the_nearest():
    # All sets lose 0, 1, 2 or 3 of 8; the five nearest to 5 lost are those that lose 3.
    mine = np.mean([-0.4, -0.3, -0.2])
    others = [-0.01 * i for i in range(SETS) if i % 4 == 3]
    assert _study().rows[0].matched[HEADLINE] == pytest.approx(mine - np.mean(others))


def test_measures_carry_their_diagnosticity_and_the_floor():
    measures = {m.name: m for m in _study().measures}
    assert measures[HEADLINE].tells
    assert measures[HEADLINE].diagnosticity.value == 1.0
    assert measures[ACCURACY].diagnosticity is None
    assert measures["js"].floor == pytest.approx(0.001)
    assert measures["drift"].floor == pytest.approx(0.0005)
    assert measures[ACCURACY].floor == 0


def test_a_measure_that_is_the_same_for_both_truths_does_not_tell():
    flat = {"key": "planted"}
    for truth in ("uses", "ignores"):
        flat[truth] = {name: [0.5] * 6 for name in WORDS}
    measures = {m.name: m for m in _study(_records(planted=flat)).measures}
    assert measures[HEADLINE].diagnosticity.value == 0.5
    assert not measures[HEADLINE].tells


def test_without_planted_models_nothing_is_claimed():
    records = [r for r in _records() if r["key"] != "planted"]
    assert all(m.diagnosticity is None and not m.tells for m in _study(records).measures)


def test_the_rest_of_the_study():
    study = _study()
    assert study.selected == [(1, 1)]
    assert study.by_difficulty == [(1.0, 4, 1.0), (2.0, 4, 1.0)]
    assert study.accuracy.mean == 1.0
    assert (study.prompts, study.measured, study.controls) == (N, 4, SETS)
    assert len(study.scatter["zero@all"]) == SETS
    assert study.scatter["zero@all"][5] == (pytest.approx(-1 / 8), pytest.approx(-0.05))
    # The opposite loses nothing; zero and suppress lose accuracy, zero faithfulness too.
    assert study.front == ["zero@all/opposite"]
    assert study.agreement.layer == [1, 1, 3]
    assert study.agreement.spearman == pytest.approx(1)
    effect = study.mediation["zero@all"].mean.mean
    np.testing.assert_allclose(effect, [-0.3, -0.05, -0.1, -0.45], atol=1e-12)
    assert study.zero_dose == {"zero": True}
    first = study.examples[0]
    assert (first.before, first.after) == ("e0Answer: 0", "e0Answer: x")
    assert first.before_right
    assert not first.after_right


def test_a_measure_that_no_prompt_has_is_a_dash_not_an_error():
    empty = _run("zero@all", "selected", [True] * N, filler=[np.nan] * 4)
    got = _study(_records(zero=empty)).rows[0]
    assert got.effects[HEADLINE].prompts == 0
    assert np.isnan(got.effects[HEADLINE].p)
    assert HEADLINE not in got.against
