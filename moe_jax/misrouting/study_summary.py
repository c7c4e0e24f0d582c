"""From the records of a study to its figures. Letters: n prompts, r random sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.common.statistics import (
    Interval,
    bootstrap_interval,
    empirical_p,
    holm,
    mcnemar,
    sign_flip,
    tost,
)
from moe_jax.misrouting.agreement import expert_agreement, usage_strata
from moe_jax.misrouting.conditions import BASE
from moe_jax.misrouting.diagnosticity import Diagnosticity, diagnosticity, tells_apart
from moe_jax.misrouting.measures import ACCURACY, HEADLINE, OF_THE_BASE_RUN, WORDS
from moe_jax.misrouting.mediation import (
    AgainstPerformance,
    Mediation,
    faithfulness_against_performance,
    pareto_front,
    routing_mediation,
)
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.study_config import StudyConfig
from moe_jax.misrouting.study_results import (
    Agreement,
    Effect,
    Example,
    Measure,
    Row,
    Study,
)

Record = Mapping[str, Any]
_NONE = Interval(np.nan, np.nan, np.nan)
_EXAMPLES = 8


def summarise(
    records: Sequence[Record],
    prompts: Sequence[Prompt],
    config: StudyConfig,
    *,
    model: str,
    expert_layers: Sequence[int],
    settings: str,
) -> Study:
    """All figures of a finished study.

    Args:
      records: what `study.run_study` gave.
      prompts: those that were tested.
      config: the settings.
      model: name.
      expert_layers: number in the model of each layer with a mixture.
      settings: the config as text, for the page.
    """
    by_key = {record["key"]: record for record in records}
    base = by_key[f"{BASE}/{BASE}"]
    runs = [r for r in records if "written" in r and r["spec"] != BASE]
    shown = [r for r in runs if not r["experts"].startswith("random-")]
    shown.sort(key=lambda r: r["experts"] != "selected")
    sets: dict[str, list[Record]] = {r["spec"]: [] for r in runs}
    for run in runs:
        if run["experts"].startswith("random-"):
            sets[run["spec"]].append(run)
    rows = _with_holm([_row(base, run, sets[run["spec"]], config) for run in shown])
    measures = _measures(base, by_key["base/rerun"], by_key.get("planted"), config)
    right = _values(base, ACCURACY)
    return Study(
        model=model,
        prompts=len(prompts),
        measured=len(base["measured"]),
        controls=config.controls,
        selected=[(expert_layers[m], e) for m, e in shown[0]["target"]],
        accuracy=_estimate(right, config),
        by_difficulty=_by_difficulty(right, prompts),
        measures=measures,
        rows=rows,
        scatter={spec: _scatter(base, controls) for spec, controls in sets.items()},
        front=_front(rows),
        agreement=_agreement(by_key["agreement"], expert_layers, config),
        mediation={
            record["spec"]: _mediation(record, config)
            for record in records
            if record["key"].startswith("mediation/")
        },
        zero_dose=by_key["zero-dose"]["same"],
        examples=_examples(base, shown, prompts, config),
        settings=settings,
    )


def _values(record: Record, name: str) -> Float[np.ndarray, " n"]:
    """A measure of each prompt, NaN where it isn't defined or wasn't measured."""
    if name == ACCURACY:
        return np.asarray([one["right"] for one in record["written"]], np.float64)
    if name in record["stability"]:
        return np.asarray(record["stability"][name], np.float64)
    found = np.full(len(record["written"]), np.nan)
    if name in record["faithfulness"]:
        found[np.asarray(record["measured"], int)] = record["faithfulness"][name]
    return found


def _changes(base: Record, run: Record, name: str) -> Float[np.ndarray, " n"]:
    return _values(run, name) - _values(base, name)


def _estimate(value: Float[np.ndarray, " n"], config: StudyConfig) -> Interval:
    finite = value[np.isfinite(value)]
    if not len(finite):
        return _NONE
    got = bootstrap_interval(finite, seed=config.seed)
    return Interval(float(got.mean), float(got.low), float(got.high))


def _row(base: Record, run: Record, sets: Sequence[Record], config: StudyConfig) -> Row:
    names = [n for n in WORDS if n != "complete" or "complete" in run["stability"]]
    effects = {name: _effect(base, run, sets, name, config) for name in names}
    before, after = (_values(record, ACCURACY) > 0 for record in (base, run))
    test = mcnemar(before, after)
    faithful = [n for n in names if WORDS[n].group == "faithfulness" and effects[n].prompts > 0]
    return Row(
        run["spec"],
        run["experts"],
        effects,
        dict(run["dose"]),
        dict(run["base_dose"]),
        test.lost,
        test.gained,
        tost(after.astype(float) - before, config.margin, bound=1.0),
        {name: _against(base, run, name, config) for name in faithful},
        {name: _matched(base, run, sets, name) for name in faithful},
    )


def _effect(
    base: Record, run: Record, sets: Sequence[Record], name: str, config: StudyConfig
) -> Effect:
    before, after = _values(base, name), _values(run, name)
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return Effect(np.nan, np.nan, _NONE, np.nan, np.nan, _NONE, np.nan, 0)
    change = (after - before)[both]
    if name == ACCURACY:
        p = mcnemar(before > 0, after > 0).p
    elif name in OF_THE_BASE_RUN:
        p = np.nan
    else:
        p = sign_flip(change, seed=config.seed).p
    random = np.asarray([_mean(_changes(base, one, name)) for one in sets])
    random = random[np.isfinite(random)]
    control, p_control = _NONE, np.nan
    if len(random):
        low, high = np.quantile(random, [0.025, 0.975])
        control = Interval(float(random.mean()), float(low), float(high))
        # Of sizes, so that 20 sets can say 1/21: doubling the smaller tail could say 2/21 at best.
        p_control = float(empirical_p(np.asarray(abs(change.mean())), np.abs(random)))
    return Effect(
        float(before[both].mean()),
        float(after[both].mean()),
        _estimate(change, config),
        p,
        np.nan,
        control,
        p_control,
        int(both.sum()),
    )


def _mean(value: Float[np.ndarray, " n"]) -> float:
    finite = value[np.isfinite(value)]
    return float(finite.mean()) if len(finite) else np.nan


def _with_holm(rows: Sequence[Row]) -> list[Row]:
    """Holm's p over the interventions on the selected experts, for each measure alone."""
    mine = [i for i, row in enumerate(rows) if row.experts == "selected"]
    found = [row._replace(effects=dict(row.effects)) for row in rows]
    for name in WORDS:
        tested = [i for i in mine if np.isfinite(rows[i].effects[name].p)]
        if tested:
            p = holm(np.asarray([rows[i].effects[name].p for i in tested]))
            for i, adjusted in zip(tested, p, strict=True):
                one = found[i].effects[name]
                found[i].effects[name] = one._replace(p_holm=float(adjusted))
    return found


def _against(base: Record, run: Record, name: str, config: StudyConfig) -> AgainstPerformance:
    faithful, performance = _changes(base, run, name), _changes(base, run, ACCURACY)
    lengths = [
        np.asarray([len(one["ids"]) for one in record["written"]], np.float64)
        for record in (base, run)
    ]
    given = np.stack([_changes(base, run, "margin"), lengths[1] - lengths[0]], axis=1)
    strength = np.asarray(run["stability"]["drift"], np.float64)
    on = np.isfinite(faithful) & np.isfinite(given).all(axis=1)
    same: Bool[np.ndarray, " n"] = np.asarray(
        [a["answer"] == b["answer"] for a, b in zip(base["written"], run["written"], strict=True)]
    )
    return faithfulness_against_performance(
        faithful[on], performance[on], same[on], strength[on], given[on], seed=config.seed
    )


def _matched(base: Record, run: Record, sets: Sequence[Record], name: str) -> float:
    """Change of faithfulness less that of the random sets that come nearest in accuracy.

    The nearest quarter of the sets, at least 5 (all, if there are fewer).
    """
    if not sets:
        return np.nan
    mine = _mean(_changes(base, run, ACCURACY))
    gap = np.asarray([abs(_mean(_changes(base, one, ACCURACY)) - mine) for one in sets])
    nearest = np.argsort(gap, kind="stable")[: max(5, len(sets) // 4)]
    others = [_mean(_changes(base, sets[i], name)) for i in nearest]
    return _mean(_changes(base, run, name)) - _mean(np.asarray(others))


def _scatter(base: Record, sets: Sequence[Record]) -> list[tuple[float, float]]:
    return [
        (_mean(_changes(base, one, ACCURACY)), _mean(_changes(base, one, HEADLINE))) for one in sets
    ]


def _front(rows: Sequence[Row]) -> list[str]:
    points = [
        (row.effects[ACCURACY].change.mean, row.effects[HEADLINE].change.mean, row) for row in rows
    ]
    points = [point for point in points if np.isfinite(point[1])]
    if not points:
        return []
    on = pareto_front(np.asarray([p for p, _, _ in points]), np.asarray([f for _, f, _ in points]))
    return [f"{points[i][2].spec}/{points[i][2].experts}" for i in on]


def _measures(
    base: Record, rerun: Record, planted: Record | None, config: StudyConfig
) -> list[Measure]:
    found = []
    for name, words in WORDS.items():
        truth = None
        if words.group == "faithfulness" and planted is not None:
            truth = _diagnosticity(planted, name, config)
        floor = _mean(_changes(base, rerun, name))
        if name in ("js", "drift"):
            floor = _mean(_values(rerun, name))
        tells = truth is not None and tells_apart(truth)
        found.append(Measure(name, *words, truth, tells, floor))
    return found


def _diagnosticity(planted: Record, name: str, config: StudyConfig) -> Diagnosticity | None:
    uses, ignores = (np.asarray(planted[truth][name], np.float64) for truth in ("uses", "ignores"))
    both = np.isfinite(uses) & np.isfinite(ignores)
    return diagnosticity(uses[both], ignores[both], seed=config.seed) if both.any() else None


def _by_difficulty(
    right: Float[np.ndarray, " n"], prompts: Sequence[Prompt]
) -> list[tuple[float, int, float]]:
    levels = np.asarray([prompt.difficulty for prompt in prompts])
    return [
        (float(d), int(np.sum(levels == d)), float(right[levels == d].mean()))
        for d in np.unique(levels)
    ]


def _agreement(
    record: Record, expert_layers: Sequence[int], config: StudyConfig
) -> Agreement | None:
    if not record["prompts"]:
        return None
    answer, explanation = (np.asarray(record[k], np.float64) for k in ("answer", "explanation"))
    layer = np.asarray(record["layer"], int)
    strata = usage_strata(layer, np.asarray(record["usage"], np.float64), bins=2)
    got = expert_agreement(answer, explanation, strata, seed=config.seed)
    return Agreement(
        got.spearman,
        got.p_spearman,
        got.cosine,
        got.p_cosine,
        [expert_layers[m] for m in layer],
        list(record["expert"]),
        answer,
        explanation,
    )


def _mediation(record: Record, config: StudyConfig) -> Mediation:
    y = [np.asarray(record[name], np.float64) for name in ("y_00", "y_10", "y_01", "y_11")]
    return routing_mediation(*y, seed=config.seed)


def _examples(
    base: Record, shown: Sequence[Record], prompts: Sequence[Prompt], config: StudyConfig
) -> list[Example]:
    """Prompts of the first interventions, those whose answer changes first."""
    found: list[Example] = []
    mine = [run for run in shown if run["experts"] == "selected"]
    share = max(1, _EXAMPLES // max(1, len(mine)))
    for run in mine:
        pairs = list(zip(base["written"], run["written"], strict=True))
        same = [
            (a["right"] == b["right"]) + (_said(a, config) == _said(b, config)) for a, b in pairs
        ]
        for i in np.argsort(same, kind="stable")[:share]:
            before, after = pairs[i]
            found.append(
                Example(
                    prompts[i].text,
                    prompts[i].answer,
                    run["spec"],
                    _said(before, config),
                    _said(after, config),
                    bool(before["right"]),
                    bool(after["right"]),
                )
            )
    return found


def _said(one: Record, config: StudyConfig) -> str:
    return one["explanation"] + config.delimiter + one["separator"] + one["answer"]
