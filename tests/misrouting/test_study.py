import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.common import Log
from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, StudyConfig
from moe_jax.misrouting.answering import context_of
from moe_jax.misrouting.conditions import Condition
from moe_jax.misrouting.means import expert_means
from moe_jax.misrouting.selection import Selection
from moe_jax.misrouting.study import run_study, study_of
from moe_jax.misrouting.study_runs import Planted, StudyRuns
from moe_jax.misrouting.study_summary import summarise
from moe_jax.models import load_lm
from tests.misrouting import small_lm

_CONFIG = StudyConfig(
    interventions=("suppress", "random@explanation"),
    controls=0,
    max_new_tokens=6,
    answer_tokens=3,
    faithfulness_prompts=3,
    batch_size=4,
)
_PROMPTS = [
    Prompt(f"{a}+{b}=\n", 1.0 + (a > 4), str(a + b), "", f"{a}+{b}={a + b}\n")
    for a, b in ((1, 2), (7, 8), (3, 3), (9, 1), (2, 6))
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "olmoe", seed=1))


def _selection(lm) -> Selection:
    shape = len(lm.config.expert_layers), lm.config.experts.gate.num_experts
    target = np.zeros(shape, bool)
    target[0, 1] = True
    usage = np.random.default_rng(0).random(shape)
    return Selection(target, usage, usage)


@pytest.fixture(scope="module")
def finished(lm, other, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    seen: list[tuple[int, int, str]] = []
    records = run_study(
        lm,
        _PROMPTS,
        _selection(lm),
        _CONFIG,
        workdir,
        planted=Planted(lm, other),
        progress=lambda *a: seen.append(a),
    )
    return workdir, records, seen


def test_every_run_is_done_once_and_reported(finished):
    _, records, seen = finished
    keys = [
        *("base/base", "base/rerun", "zero-dose", "suppress@all/selected"),
        *("suppress@all/opposite", "random@explanation/selected", "agreement"),
        *("mediation/suppress@all", "planted"),
    ]
    assert [record["key"] for record in records] == keys
    assert seen == [(i, 9, key) for i, key in enumerate(keys)] + [(9, 9, "")]


def test_the_base_is_stable_and_its_rerun_within_rounding(finished):
    _, records, _ = finished
    base, rerun = records[:2]
    assert rerun["written"] == base["written"]
    for record in (base, rerun):
        np.testing.assert_allclose(record["stability"]["js"], 0, atol=1e-9)
        assert record["stability"]["same_start"] == [1.0] * 5
    for name, values in base["faithfulness"].items():
        np.testing.assert_allclose(rerun["faithfulness"][name], values, atol=1e-4)
    assert len(base["measured"]) == 3


def test_the_same_models_are_not_told_apart_and_others_differ(finished):
    _, records, _ = finished
    truth = records[-1]
    assert truth["ignores"]["filler"] != truth["uses"]["filler"]


@pytest.mark.parametrize("keep", [1, 4, 8])
def test_a_study_that_was_stopped_goes_on_to_the_same_end(finished, lm, other, tmp_path, keep):
    workdir, records, _ = finished
    lines = (workdir / "conditions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "conditions.jsonl").write_text("".join(lines[:keep]) + lines[keep][:20])
    seen: list[str] = []
    again = run_study(
        lm,
        _PROMPTS,
        _selection(lm),
        _CONFIG,
        tmp_path,
        planted=Planted(lm, other),
        progress=lambda done, total, key: seen.append(key),
    )
    assert len(seen) == len(records) - keep + 1
    assert (tmp_path / "conditions.jsonl").read_text() == "".join(lines)
    assert json.dumps(again) == json.dumps(records)


def test_a_finished_study_can_be_summed_up(finished, lm):
    _, records, _ = finished
    study = summarise(
        records,
        _PROMPTS,
        _CONFIG,
        model=lm.name,
        expert_layers=lm.config.expert_layers,
        settings="",
    )
    assert [row.spec for row in study.rows] == [
        "suppress@all",
        "random@explanation",
        "suppress@all",
    ]
    assert all(study.zero_dose.values())
    assert set(study.mediation) == {"suppress@all"}


_LEVEL = np.array([prompt.difficulty for prompt in _PROMPTS])


def _own_routes(lm) -> list[np.ndarray]:
    """What each prompt's tokens take anyway."""
    ids = [lm.tokenizer.encode(prompt.text).ids for prompt in _PROMPTS]
    return [np.asarray(lm.model(jnp.asarray([one])).routing.expert[0]) for one in ids]


@pytest.fixture(scope="module")
def routed(lm, tmp_path_factory):
    """A study of interventions that are made of the run without one, or of records."""
    config = dataclasses.replace(
        _CONFIG, interventions=("mean", "donor", "donor_peer@explanation", "replay@prompt")
    )
    workdir = tmp_path_factory.mktemp("routed")
    routes = _own_routes(lm)
    records = run_study(lm, _PROMPTS, _selection(lm), config, workdir, recorded=routes)
    return config, {record["key"]: record for record in records}, Log(workdir / "conditions.jsonl")


def test_own_routes_replayed_change_nothing(routed):
    _, records, _ = routed
    base, now = records["base/base"], records["replay@prompt/selected"]
    assert now["written"] == base["written"]
    assert now["dose"]["changed"] == 0
    np.testing.assert_allclose(now["stability"]["js"], 0, atol=1e-6)


def test_donors_are_followed_where_experts_are_selected(routed, lm):
    config, records, log = routed
    study = StudyRuns(lm, _PROMPTS, config, log)
    for name, scope, peers in (("donor", "all", False), ("donor_peer", "explanation", True)):
        record = records[f"{name}@{scope}/selected"]
        assert record["dose"]["changed"] > 0
        run = Condition(f"{name}@{scope}", "selected", scope, _selection(lm).target)
        edit = study.edit(run)
        assert edit.scope == scope
        theirs = [routes.prompt for routes in edit.routes]
        donor = [
            [i for i, own in enumerate(_own_routes(lm)) if np.array_equal(own[:, 0], mine[:, 0])]
            for mine in theirs
        ]
        for number, found in enumerate(donor):
            assert any(i != number and (_LEVEL[i] == _LEVEL[number]) == peers for i in found), (
                number,
                found,
            )
        # Layer 0 has the selected expert; layer 1 is left alone.
        assert all((mine[:, 1] == -1).all() and (mine[:, 0] >= 0).all() for mine in theirs)


def test_mean_outputs_are_those_of_the_run_without_intervention(routed, lm):
    config, records, log = routed
    study = StudyRuns(lm, _PROMPTS, config, log)
    target = _selection(lm).target
    edit = study.edit(Condition("mean@all", "selected", "all", target)).edit
    texts = [
        context_of(lm, prompt, one.explanation, config, one.separator + one.answer).ids
        for prompt, one in zip(_PROMPTS, study.base, strict=True)
    ]
    means = expert_means(lm.model, texts, batch_size=4).mean
    np.testing.assert_allclose(np.asarray(edit.stand_in)[target], means[target], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(edit.zero)[:, 0], target)
    assert np.abs(means[target]).max() > 0
    record = records["mean@all/selected"]
    assert max(record["stability"]["js"]) > 0
    # The mean is nearer to the expert's output than nothing is.
    zeroed = study.condition(Condition("zero@all", "selected", "all", target))
    assert np.mean(record["stability"]["js"]) < np.mean(zeroed["stability"]["js"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"interventions": ("replay",)}, "replay needs --routes=FILE"),
        ({"recorded": [np.zeros((5, 2, 2), int)] * 5}, "--routes is given, and no intervention"),
        ({"interventions": ("donor",), "level": 1.0}, "donor needs a prompt of another difficulty"),
        (
            {"interventions": ("replay",), "recorded": [np.zeros((9, 2, 2), int)] * 5},
            "prompt 0 has 5 tokens here, its record 9",
        ),
    ],
)
def test_routes_that_are_missing_or_of_other_texts(lm, tmp_path, change, says):
    change = dict(change)
    recorded, level = change.pop("recorded", None), change.pop("level", None)
    prompts = [p if level is None else p._replace(difficulty=level) for p in _PROMPTS]
    config = dataclasses.replace(_CONFIG, **change)
    with pytest.raises(UserError, match=says):
        run_study(lm, prompts, _selection(lm), config, tmp_path, recorded=recorded)
    assert not list(tmp_path.iterdir())


def test_what_identifies_a_study(lm):
    a = study_of(lm, _PROMPTS, _selection(lm), None, _CONFIG)
    assert a.selected == [[0, 1]]
    assert a.planted == ("", "")
    assert a.prompts != study_of(lm, _PROMPTS[:-1], _selection(lm), None, _CONFIG).prompts
    routes = _own_routes(lm)
    given = study_of(lm, _PROMPTS, _selection(lm), None, _CONFIG, recorded=routes)
    other = study_of(lm, _PROMPTS, _selection(lm), None, _CONFIG, recorded=routes[::-1])
    assert len({a.routes, given.routes, other.routes}) == 3
    b = study_of(lm, _PROMPTS, _selection(lm), Planted(lm, lm), _CONFIG)
    assert (len(a.weights), b.weights) == (1, a.weights * 3)


def test_other_weights_under_the_same_name_are_another_study(lm):
    graph, state = nnx.split(lm.model)
    other = lm._replace(model=nnx.merge(graph, jax.tree.map(lambda leaf: leaf * 2, state)))
    a, b = (study_of(one, _PROMPTS, _selection(lm), None, _CONFIG) for one in (lm, other))
    assert dataclasses.replace(b, weights=a.weights) == a
    assert b.weights != a.weights


def test_nothing_to_misroute_is_refused(lm, tmp_path):
    none = _selection(lm)._replace(target=np.zeros_like(_selection(lm).target))
    with pytest.raises(UserError, match="no expert is selected"):
        run_study(lm, _PROMPTS, none, _CONFIG, tmp_path)
    dense = lm._replace(config=type(lm.config)())
    with pytest.raises(UserError, match="has no experts"):
        run_study(dense, _PROMPTS, _selection(lm), _CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"interventions": ()}, r"interventions=\(\): must name at least one"),
        ({"interventions": ("zero", "zero@all")}, "zero@all is there twice"),
        ({"controls": 5}, "controls=5: must be at least 20"),
        ({"delimiter": ""}, "delimiter='': must be a text that isn't empty"),
        ({"options": 0}, "options=0: must be at least 1"),
        ({"margin": 0.0}, "margin=0.0: must be more than 0 and less than 1"),
    ],
)
def test_a_wrong_setting_is_named(change, says):
    with pytest.raises(UserError, match=says):
        StudyConfig(**change).validate()
    StudyConfig().validate()


def test_a_study_goes_on_under_its_own_settings(finished, lm, tmp_path):
    """Studies that were begun before settings were recorded go on."""
    lines = (finished[0] / "conditions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "conditions.jsonl").write_text(lines[0])
    record = json.loads(lines[0])
    with (
        jax.default_prng_impl("rbg"),
        pytest.raises(
            UserError, match=r"conditions\.jsonl: base/base was begun with jax_default_prng"
        ),
    ):
        run_study(lm, _PROMPTS, _selection(lm), _CONFIG, tmp_path)
    assert (tmp_path / "conditions.jsonl").read_text() == lines[0]
    assert record.pop("jax")["jax_default_prng_impl"] == "threefry2x32"
    older = json.dumps(record) + "\n"
    (tmp_path / "conditions.jsonl").write_text(older)

    def stop(done, total, key):
        raise KeyboardInterrupt

    with jax.default_prng_impl("rbg"), pytest.raises(KeyboardInterrupt):
        run_study(lm, _PROMPTS, _selection(lm), _CONFIG, tmp_path, progress=stop)
