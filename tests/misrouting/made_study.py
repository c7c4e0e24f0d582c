"""A Stage 2 study made of numbers: no model."""

import numpy as np

from moe_jax.common import Equivalence, Interval
from moe_jax.misrouting import Study
from moe_jax.misrouting.diagnosticity import Diagnosticity
from moe_jax.misrouting.measures import ACCURACY, WORDS
from moe_jax.misrouting.mediation import AgainstPerformance, Mediation
from moe_jax.misrouting.study_results import Agreement, Effect, Example, Measure, Row

NAN = float("nan")
NONE = Interval(NAN, NAN, NAN)
TRUTH = {
    "filler": Diagnosticity(0.95, 0.85, 1.0, 0.001, 0.05),
    "early": Diagnosticity(0.05, 0.0, 0.15, 0.001, 0.05),
    "cc_shap": Diagnosticity(0.5, 0.4, 0.6, 1.0, 0.05),
    "corrupt_drop": None,
}
"""Tells apart, upside down, blind, not measured."""
NAMES = (ACCURACY, "js", "rouge_l", *TRUTH)


def effect(change=0.0, *, p_holm=1.0, p_control=1.0, base=0.5, p=0.25):
    return Effect(
        base,
        base + change,
        Interval(change, change - 0.125, change + 0.125),
        p,
        p_holm,
        Interval(0.03125, -0.0625, 0.09375),
        p_control,
        40,
    )


def nothing():
    return Effect(NAN, NAN, NONE, NAN, NAN, NONE, NAN, 0)


def against(unchanged=True):
    def interval(x):
        return Interval(*(np.asarray(x + d) for d in (0.0, -0.25, 0.25)))

    kept = interval(0.0625) if unchanged else interval(NAN)
    return AgainstPerformance(interval(0.5), interval(-0.5), kept, 7 if unchanged else 0, NAN)


def row(spec="suppress@all", experts="selected", **effects):
    found = {name: effect() for name in NAMES} | effects
    dose = {"realised_k": 2.0, "gate_mass": 0.75, "target_share": 0.125, "changed": 0.375}
    return Row(
        spec,
        experts,
        found,
        dose,
        dose | {"changed": 0.0, "target_share": NAN},
        5,
        1,
        Equivalence(-0.1, -0.2, 0.0, 0.75, False),
        {"filler": against(), "early": against(unchanged=False)},
        {"filler": 0.1875, "early": NAN},
    )


def measures(truth=TRUTH):
    found = []
    for name in NAMES:
        d = truth.get(name)
        tells = d is not None and (d.low > 0.5 or d.high < 0.5)
        found.append(Measure(name, *WORDS[name], d, tells, 0.0 if name != "js" else 2.5e-14))
    return found


def study(**changes):
    rows = [
        row(
            accuracy=effect(-0.375, p_holm=0.01, p_control=0.04),
            js=effect(0.25, p_holm=0.001, p_control=0.04, base=0.0),
            filler=effect(-0.25, p_holm=0.02, p_control=0.5),
            early=effect(-0.25, p_holm=0.02, p_control=0.04),
        ),
        row("random@answer", cc_shap=nothing(), filler=nothing()),
        row(experts="opposite", accuracy=effect(p_holm=NAN)),
    ]
    values = np.array([[0.1, -0.2, 0.05, -0.05], [0.3, -0.1, -0.05, 0.15]])
    mediation = Mediation(
        values,
        Interval(values.mean(axis=0), values.min(axis=0), values.max(axis=0)),
        Interval(*(np.asarray(NAN),) * 3),
    )
    found = Study(
        model="a model",
        prompts=40,
        measured=12,
        controls=20,
        selected=[(1, 2), (3, 0)],
        accuracy=Interval(0.625, 0.5, 0.75),
        by_difficulty=[(1.0, 30, 0.7), (2.5, 10, 0.4)],
        measures=measures(),
        rows=rows,
        scatter={"suppress@all": [(-0.1, 0.05), (0.0, NAN)], "random@answer": []},
        front=["suppress@all/opposite"],
        agreement=Agreement(
            0.5, 0.02, NAN, NAN, [1, 1, 3], [0, 2, 0], np.array([0.1, 0.9, -0.2]), np.zeros(3)
        ),
        mediation={"suppress@all": mediation},
        zero_dose={"suppress": True, "bias=0": False},
        examples=[
            Example("2+2=\n", "4", "suppress@all", "2+2=4\nAnswer:4", "2+2=5\nAnswer:5", True, False),
            Example("1+1=\n", "2", "suppress@all", "never shown", "never shown", True, True),
        ],
        settings="seed = 0",
    )  # fmt: skip
    return found._replace(**changes)
