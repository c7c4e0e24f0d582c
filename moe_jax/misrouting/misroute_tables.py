"""The tables of the page about a Stage 2 study. Each gives its content, some their lead as well."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from moe_jax.common.statistics import Interval
from moe_jax.misrouting.measures import ACCURACY, HEADLINE, OF_THE_BASE_RUN
from moe_jax.misrouting.misroute_words import (
    BEYOND,
    OPPOSITE,
    change,
    interval,
    is_readable,
    mark,
    marked,
    short_spec,
    verdict,
)
from moe_jax.misrouting.specs import ON_LAYERS
from moe_jax.misrouting.study_results import Measure, Row, Study
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import Cell, Column, number, paragraph, table

MAIN = (ACCURACY, "js", "rouge_l", HEADLINE, "early", "corrupt_drop", "cc_shap")
"""Columns of the table of interventions."""
_DOSES = (
    ("gate_mass", "gate mass", "sum of a token's combine weights, mean over tokens"),
    ("target_share", "on the experts", "share of the gate mass that is on the chosen experts"),
    ("realised_k", "experts a token", "chosen and of a weight other than 0"),
)


def folded(summary: str, content: Markup) -> Markup:
    """A part that a click opens."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, content)


def interventions(study: Study) -> Markup:
    """Interventions by measures, the main ones."""
    shown = [m for m in _by_name(study, MAIN) if any(_has(row, m) for row in study.rows)]
    columns = [
        Column("intervention", number=False),
        *(Column(_heading(m), f"change of: {m.meaning}") for m in shown),
    ]
    rows: list[list[Any]] = [
        [_name(row), *(_effect_cell(row, m, bool(study.controls)) for m in shown)]
        for row in study.rows
    ]
    return table(columns, rows)


def all_measures(study: Study) -> Markup:
    """Interventions and measures, one a line, everything in its own column."""
    columns = [
        Column("intervention", number=False),
        Column("measure", number=False),
        Column("before"),
        Column("with\nit"),
        Column("change"),
        Column("95%\ninterval"),
        Column("p", "of no change, this test alone"),
        Column("Holm\np", "over the interventions on the selected experts"),
        Column("sets", "mean change of the matched random sets"),
        Column("range\nof sets", "2.5% to 97.5% of the sets"),
        Column("p of\nsets", "share of sets that change as much or more"),
        Column("prompts"),
    ]
    rows: list[list[Any]] = []
    for row in study.rows:
        for measure in study.measures:
            if _has(row, measure):
                e, grey = row.effects[measure.name], not is_readable(measure)
                cells: list[Any] = [_plain(e.base, grey), _plain(e.value, grey)]
                cells += [_shown(change(e.change.mean), e.change.mean, grey)]
                cells += [_shown(interval(e.change), e.change.low, grey)]
                tested = measure.name not in OF_THE_BASE_RUN
                both = (e.p, e.p_holm) if tested else (math.nan, math.nan)
                cells += [_shown(number(p), p, grey) for p in both]
                cells += [_shown(change(e.control.mean), e.control.mean, grey)]
                cells += [_shown(interval(e.control), e.control.low, grey)]
                cells += [_shown(number(e.p_control), e.p_control, grey), e.prompts]
                rows.append([_name(row), marked(measure), *cells])
    return table(columns, rows)


def doses(study: Study) -> Markup:
    """How much each intervention changed of the routing itself."""
    columns = [
        Column("intervention", number=False),
        Column("tokens changed", "share of tokens whose set of experts is another, in any layer"),
        *(Column(title, f"before → with it: {hint}") for _, title, hint in _DOSES),
    ]
    rows: list[list[Any]] = []
    for row in study.rows:
        cells: list[Any] = [_plain(row.dose.get("changed", math.nan))]
        for name, _, _ in _DOSES:
            before, after = (d.get(name, math.nan) for d in (row.base_dose, row.dose))
            both = math.isfinite(before) or math.isfinite(after)
            cells.append(_shown(f"{number(before)} → {number(after)}" if both else "–", after))
        rows.append([_name(row, ", "), *cells])
    return table(columns, rows)


def faithfulness(study: Study) -> Markup:
    """Each measure of faithfulness: its value, and does it tell the planted models apart?"""
    columns = [
        Column("measure", number=False),
        Column("this model", "mean without intervention"),
        Column("diagnosticity", "share of pairs in which the faithful model has more; 0.5 chance"),
        Column("95% interval"),
        Column("sign test p"),
        Column("verdict", number=False, wide=True),
    ]
    rows: list[list[Any]] = []
    for m in study.measures:
        if m.group == "faithfulness":
            d, grey = m.diagnosticity, not is_readable(m)
            base = next((r.effects[m.name].base for r in study.rows if _has(r, m)), math.nan)
            value, low, high, p = (math.nan,) * 4 if d is None else (d.value, d.low, d.high, d.p)
            rows.append(
                [marked(m), _plain(base, grey), _plain(value, grey)]
                + [_shown(interval(Interval(value, low, high)), low, grey)]
                + [_shown(number(p), p, grey), verdict(m)]
            )
    return table(columns, rows)


def matched(study: Study) -> Markup:
    """Faithfulness beside performance: the headline measure in view, the others folded away."""
    names = [m for m in study.measures if m.group == "faithfulness"]
    first = [m for m in names if m.name == HEADLINE]
    rest = [m for m in names if m.name != HEADLINE]
    body = _against(study, first)
    return body + (folded("the other measures of faithfulness", _against(study, rest)))


def mediation(study: Study) -> Markup:
    """Effects on the probability of the right answer, by the way they take."""
    columns = [
        Column("intervention", number=False),
        Column("through the\nexplanation", "NIE: explanation written with it, answer without"),
        Column("past it", "NDE: explanation written without it, answer with"),
        Column("both together", "INT: what is left when both ways are open"),
        Column("total", "TE = NIE + NDE + INT"),
        Column("share through\nthe explanation", "NIE / TE where TE is not near 0"),
        Column("prompts"),
    ]
    rows: list[list[Any]] = []
    for spec, found in study.mediation.items():
        arrays = [np.asarray(a, np.float64).tolist() for a in found.mean]
        cells = [_estimate_cell(Interval(*values)) for values in zip(*arrays, strict=True)]
        share = Interval(*(float(x) for x in found.share))
        rows.append([short_spec(spec), *cells, _share_cell(share), len(found.effect)])
    if not rows:
        return paragraph("No intervention acts on all tokens: nothing to take apart.", "missing")
    return table(columns, rows)


def sanity(study: Study) -> Markup:
    """Dose zero, and the noise floor."""
    zero = table(
        [Column("at dose zero", number=False), Column("bitwise the same", number=False)],
        [[name, "yes" if same else "NO"] for name, same in study.zero_dose.items()],
    )
    floor = table(
        [Column("measure", number=False), Column("noise", "mean change when nothing is changed")],
        [[m.title, _shown(_small(m.floor), m.floor)] for m in study.measures],
    )
    return Markup('<div class="charts"><div>{}</div><div>{}</div></div>').format(zero, floor)


def _against(study: Study, measures: Sequence[Measure]) -> Markup:
    columns = [
        Column("intervention", number=False),
        Column("measure", number=False),
        Column("change\nall prompts"),
        Column("accuracy", "its change, on the same prompts"),
        Column("unchanged\nanswers", "change among prompts whose answer stays the same"),
        Column("such\nprompts"),
        Column("accuracy-\nmatched", "change less that of the random sets of nearest accuracy"),
        Column("with drift", "partial rank correlation, given changes of margin and length"),
        Column("accuracy kept", "two one-sided tests within the margin, on all prompts"),
    ]
    rows: list[list[Any]] = []
    for row in study.rows:
        for m in measures:
            if m.name not in row.against:
                continue
            found, grey = row.against[m.name], not is_readable(m)
            kept = "yes" if row.preserved.preserved else "not shown"
            less = row.matched.get(m.name, math.nan)
            rows.append(
                [_name(row), marked(m)]
                + [_estimate_cell(Interval(*map(float, found.faithfulness)), grey)]
                + [_estimate_cell(Interval(*map(float, found.performance)))]
                + [_estimate_cell(Interval(*map(float, found.unchanged)), grey)]
                + [found.rows_unchanged, _shown(change(less), less, grey)]
                + [_plain(found.partial, grey), f"{kept} (p {number(row.preserved.p)})"]
            )
    return table(columns, rows)


def _effect_cell(row: Row, measure: Measure, has_controls: bool) -> Cell:
    """Four short lines: the change, its interval, its p, and the random sets."""
    if not _has(row, measure):
        return Cell(Markup.escape("–"), "")
    e, grey = row.effects[measure.name], not is_readable(measure)
    if not e.prompts:
        return Cell(Markup.escape("–"), "")
    sign = "" if grey else mark(row, measure.name)
    own = Markup("<strong>{} {}</strong>" if sign == BEYOND else "{} {}").format(
        sign, change(e.change.mean)
    )
    lines = [interval(e.change)]
    if measure.name not in OF_THE_BASE_RUN:
        is_other = row.experts == OPPOSITE
        lines.append(f"p {number(e.p)}" if is_other else f"Holm p {number(e.p_holm)}")
    small = Markup("").join(Markup("<br><small>{}</small>").format(line) for line in lines)
    if has_controls and math.isfinite(e.control.mean):
        small += Markup('<br><small title="{}">sets {}, p {}</small>').format(
            f"2.5% to 97.5% of the sets: {interval(e.control)}",
            change(e.control.mean, 2),
            number(e.p_control),
        )
    return Cell(_greyed(own + small, grey), e.change.mean)


def _estimate_cell(estimate: Interval, grey: bool = False) -> Cell:
    if not math.isfinite(estimate.mean):
        return Cell(Markup.escape("–"), "")
    html = Markup("{}<br><small>{}</small>").format(change(estimate.mean), interval(estimate))
    return Cell(_greyed(html, grey), estimate.mean)


def _share_cell(share: Interval) -> Cell:
    if not math.isfinite(share.mean):
        return Cell(Markup.escape("–"), "")
    html = Markup("{}<br><small>{}</small>").format(f"{share.mean:.2f}", interval(share))
    return Cell(html, share.mean)


def _heading(measure: Measure) -> str:
    """Narrow: a word a line, then the group."""
    return f"{marked(measure)}\n{measure.group}".replace(" ", "\n", 1)


def _shown(text: str, value: float, grey: bool = False) -> Cell:
    return Cell(_greyed(Markup.escape(text), grey), value if math.isfinite(value) else "")


def _plain(value: float, grey: bool = False) -> Cell:
    # Adding 0 makes a zero of -0.0.
    return _shown(f"{round(value, 3) + 0:.3f}" if math.isfinite(value) else "–", value, grey)


def _greyed(html: Markup, grey: bool) -> Markup:
    return Markup('<span class="quiet">{}</span>').format(html) if grey else html


def _small(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) and value else number(value)


def _name(row: Row, between: str = "") -> Cell:
    """Intervention and experts, on two lines unless something is to stand between them."""
    spec = one_line(short_spec(row.spec))
    on = f"{row.experts} experts"
    if re.split("[=@]", row.spec)[0] in ON_LAYERS:
        on = "their layers"
    form = "{}" + (between or "<br>") + "<small>{}</small>"
    return Cell(Markup(form).format(spec, one_line(on)), f"{spec}, {row.experts}")


def _has(row: Row, measure: Measure) -> bool:
    return measure.name in row.effects


def _by_name(study: Study, names: Sequence[str]) -> list[Measure]:
    found = {m.name: m for m in study.measures}
    return [found[name] for name in names if name in found]
