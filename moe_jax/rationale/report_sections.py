"""The sections of the report, each from an `Assessment` to HTML, and the tables they show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from moe_jax.rationale.display import display_spans, keys_of, label_colours, names_of
from moe_jax.rationale.glossary import ERASER, FAITHFULNESS, MEANINGS, MONITORS, NO_GOLD
from moe_jax.rationale.results import Assessment, LabelScores
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import Cell, Column, definitions, paragraph, table, tiles
from moe_jax.reports.plots import Bar, bar_chart, line_chart
from moe_jax.reports.tokens import legend_html, text_html

_EVALUATED = ("model/macro_f1", "model/ami", "monitors/usage_perplexity", "monitors/dead_factors")
_MOST_CHARTS = 16


def reading(assessment: Assessment) -> str:
    """The result in a sentence or two."""
    if not assessment.methods:
        return _unlabelled(assessment)
    model, others = assessment.methods[0], assessment.methods[1:]
    f1 = model.one_to_one.macro_f1
    monitors = assessment.monitors
    interval = ""
    if "macro_f1_low" in monitors and "macro_f1_high" in monitors:
        low, high = monitors["macro_f1_low"], monitors["macro_f1_high"]
        interval = f" (95% interval {low:.3f} to {high:.3f})"
    text = (
        f"On the test tokens the factors find the {len(assessment.labels)} gold labels with a "
        f"macro F1 of {f1:.3f}{interval}"
    )
    if not others:
        return text + "."
    best = max(others, key=lambda m: m.one_to_one.macro_f1)
    gap = f1 - best.one_to_one.macro_f1
    side = "above" if gap > 0 else "below"
    compared = f"{abs(gap):.3f} {side}" if abs(gap) >= 0.0005 else "level with"
    return (
        f"{text}, {compared} the best baseline, {best.name}, which reaches "
        f"{best.one_to_one.macro_f1:.3f}."
    )


def glance(assessment: Assessment) -> Markup:
    """Head figures: macro P, R and F1 of the model beside each baseline."""
    if not assessment.methods:
        return paragraph(reading(assessment)) + paragraph(NO_GOLD, "missing")
    model = assessment.methods[0]
    bars = bar_chart(
        [
            Bar(one_line(m.name), m.one_to_one.macro_f1, own=i == 0)
            for i, m in enumerate(assessment.methods)
        ],
        most=1.0,
    )
    head = Markup(
        '<div class="head"><div><p class="big"><small>macro F1 on test tokens</small>{}</p>{}</div>'
        "<div>{}</div></div>"
    ).format(f"{model.one_to_one.macro_f1:.3f}", paragraph(reading(assessment)), bars)
    columns = [
        Column("Method", number=False),
        Column("Macro precision"),
        Column("Macro recall"),
        Column("Macro F1"),
        Column("Many-to-one F1", "several factors may stand for one label"),
        Column("AMI", "adjusted mutual information: 0 is chance, 1 is perfect"),
    ]
    rows: list[list[Any]] = [
        [
            m.name,
            *_macro(m.one_to_one),
            m.many_to_one.macro_f1,
            m.ami,
        ]
        for m in assessment.methods
    ]
    return head + Markup("<h3>The model beside the baselines</h3>") + table(columns, rows, own=0)


def texts(assessment: Assessment) -> tuple[Markup, str]:
    """Sample texts with coloured words, and what to do with them."""
    if not assessment.samples:
        return paragraph("The assessment holds no sample texts.", "missing"), ""
    num_factors = len(assessment.usage)
    colours = label_colours(assessment.mapping, len(assessment.labels), num_factors)
    spans = [display_spans(sample, colours) for sample in assessment.samples]
    gold = any(span.gold is not None for row in spans for span in row)
    shown = [text_html(s.text, row) for s, row in zip(assessment.samples, spans, strict=True)]
    lead = (
        "Test texts. The colour and the small number tell which factor took a word; point at a "
        "word (or go through a text with the arrow keys) for the probability of each factor, and "
        "press a factor's name to see it alone."
    )
    if gold:
        lead += " The line under a word has the colour of its gold label."
    keys = [key for key in keys_of(assessment) if gold or key.is_factor]
    return coloured_texts(shown, legend_html(keys), gold=gold), lead


def coloured_texts(shown: Sequence[Markup], legend: Markup, *, gold: bool) -> Markup:
    """Texts under their legend and the switches that say how they are drawn."""
    switch = Markup('<label><input type="checkbox" value="{}"{}> {}</label>')
    choice = Markup(
        '<fieldset><legend>Colour by</legend><label><input type="radio" name="by" value="factor" '
        'checked> factor</label><label><input type="radio" name="by" value="gold"> gold label'
        "</label></fieldset>"
    )
    switches = [
        choice if gold else Markup(""),
        switch.format("underline", Markup(" checked"), "underline gold label") if gold else "",
        switch.format("shade", Markup(" checked"), "paler where less certain"),
        switch.format("tags", Markup(" checked"), "numbers"),
    ]
    return Markup(
        '<div class="controls" hidden>{}</div><div class="sticky">{}</div>'
        '<div class="texts by-factor underline shade tags">{}</div>'
    ).format(Markup("").join(switches), legend, Markup("\n").join(shown))


def factors(assessment: Assessment) -> tuple[Markup, str]:
    """A row for each factor, and what the table shows."""
    columns, rows = factor_table(assessment)
    for factor, row in enumerate(rows):
        chip = Markup('<b class="chip k{0}">{0}</b>').format(factor)
        row[0] = Cell(chip, factor)
    body = table(columns, rows)
    lead = "Press a heading to sort."
    missed = _missed(assessment)
    if not assessment.methods:
        lead += " Without gold labels a factor goes by its most typical words."
        body += paragraph(NO_GOLD, "missing")
    elif missed:
        body += paragraph("Gold labels that no factor stands for: " + ", ".join(missed) + ".")
    return body, lead


def factor_table(
    assessment: Assessment, *, short: bool = False
) -> tuple[list[Column], list[list[Any]]]:
    """Columns and rows of the per-factor figures, baselines' F1 beside the model's.

    Args:
      assessment: what the evaluation found.
      short: short headings and no typical words, for a terminal.
    """
    names, methods = names_of(assessment), assessment.methods
    columns = [Column("#", "number of the factor"), Column("Label", number=False)]
    if not methods:
        columns[1] = Column("Name", number=False)
    else:
        columns += [
            Column("P" if short else "Precision"),
            Column("R" if short else "Recall"),
            Column("F1", "of the label that the factor stands for"),
            *[Column(f"{_short(m.name)}" if short else f"{m.name}\nF1") for m in methods[1:]],
            Column("gold" if short else "Support", "test tokens that carry the label"),
        ]
    columns.append(
        Column("share" if short else "Share", "part of the test tokens that the factor took")
    )
    if not short:
        columns.append(Column("Typical words", number=False, wide=True))
    rows = []
    for factor, name in enumerate(names):
        label = int(assessment.mapping[factor]) if factor < len(assessment.mapping) else -1
        row: list[Any] = [factor, name]
        if methods and label >= 0:
            own = methods[0].one_to_one
            row += [float(own.precision[label]), float(own.recall[label]), float(own.f1[label])]
            row += [float(m.one_to_one.f1[label]) for m in methods[1:]]
            row.append(int(own.support[label]))
        elif methods:
            row[1] = "no label"
            row += [math.nan] * (3 + len(methods))
        row.append(float(assessment.usage[factor]))
        if not short:
            row.append(typical(assessment, factor))
        rows.append(row)
    return columns, rows


def typical(assessment: Assessment, factor: int) -> str:
    """The typical words of a factor in one line."""
    return ", ".join(word for word, _ in assessment.top_words[factor]) or "–"


def usage(assessment: Assessment) -> Markup:
    """How the tokens are shared out, and the collapse monitors."""
    num_factors = len(assessment.usage)
    figures = [
        (name, assessment.monitors[key], meaning.format(e=num_factors))
        for key, (name, meaning) in MONITORS.items()
        if key in assessment.monitors
    ]
    order = sorted(range(num_factors), key=lambda k: -assessment.usage[k])
    names = names_of(assessment)
    bars = bar_chart(
        [
            Bar(names[k], float(assessment.usage[k]), colour=k, shown=f"{assessment.usage[k]:.1%}")
            for k in order
        ]
    )
    return (
        tiles(figures)
        + Markup("<h3>Share of the test tokens that each factor took</h3>")
        + bars
        + paragraph(f"Even shares would be {1 / num_factors:.1%} each.", "quiet")
    )


def rationales(assessment: Assessment) -> Markup:
    """ERASER's measures in both forms, and faithfulness beside random tokens."""
    parts = []
    if assessment.rationale_scores:
        rows: list[list[Any]] = [
            [name, *[assessment.rationale_scores.get(f"{key}_{form}", math.nan) for form in _FORMS]]
            for key, name in ERASER.items()
        ]
        columns = [Column("Measure", number=False), Column("Compatible"), Column("Corrected")]
        parts.append(table(columns, rows, caption="Agreement with the gold labels (ERASER)"))
    else:
        parts.append(paragraph("Agreement with gold rationales: " + NO_GOLD, "missing"))
    if assessment.faithfulness:
        forms = ("compat", "random", "corrected")
        rows = [
            [name, *[assessment.faithfulness.get(f"{key}_{form}", math.nan) for form in forms]]
            for key, name in FAITHFULNESS.items()
        ]
        columns = [
            Column("Measure", number=False),
            Column("Factor's tokens"),
            Column("Random tokens", "as many, drawn at random"),
            Column("Difference"),
        ]
        title = "Do the factors' tokens carry the sentence embedding? (cosines)"
        parts.append(Markup("<h3></h3>") + table(columns, rows, caption=title))
    else:
        parts.append(paragraph("Faithfulness was not measured for this model.", "missing"))
    return Markup("").join(parts)


def training(history: Sequence[Mapping[str, Any]]) -> Markup:
    """A curve for each figure of the training steps, then for the main ones of the evaluations."""
    curves = series(history)
    steps = {n: p for n, p in curves.items() if not n.startswith("eval/") and _telling(n, p)}
    evals = {n.removeprefix("eval/"): p for n, p in curves.items() if n.startswith("eval/")}
    chosen = {n: evals[n] for n in _EVALUATED if n in evals} or dict(list(evals.items())[:6])
    if not steps and not chosen:
        return paragraph("No metrics were recorded for this run.", "missing")
    parts = []
    for title, group in (("Training batches", steps), ("Evaluations", chosen)):
        if group:
            shown = list(group.items())[:_MOST_CHARTS]
            charts = Markup("").join(line_chart(name, points) for name, points in shown)
            parts.append(Markup('<h3>{}</h3><div class="charts">{}</div>').format(title, charts))
    left = len(steps) - min(len(steps), _MOST_CHARTS) + len(evals) - len(chosen)
    if left:
        parts.append(paragraph(f"Not shown here: {left} of the figures in metrics.jsonl.", "quiet"))
    return Markup("").join(parts)


def series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Figures by name as (step, value) in the order of steps; null becomes NaN.

    Of two values at one step the later one counts. Names keep the order in which they appear.
    """
    found: dict[str, dict[float, float]] = {}
    for line in history:
        for name, value in line.items():
            if name == "step" or isinstance(value, bool | str | list | dict):
                continue
            points = found.setdefault(name, {})
            points[float(line.get("step", len(points)))] = (
                math.nan if value is None else float(value)
            )
    return {name: sorted(points.items()) for name, points in found.items()}


def meanings() -> Markup:
    """How the figures are defined."""
    return definitions(MEANINGS)


_FORMS = ("compat", "corrected")


def _telling(name: str, points: list[tuple[float, float]]) -> bool:
    """Leave out the count of skipped steps where none was."""
    return name != "skipped" or any(value for _, value in points)


def _macro(scores: LabelScores) -> tuple[float, float, float]:
    return scores.macro_precision, scores.macro_recall, scores.macro_f1


def _short(name: str) -> str:
    return {"majority": "maj.", "random": "rand."}.get(name, name)


def _missed(assessment: Assessment) -> list[str]:
    """Labels that occur in the test tokens and that no factor stands for."""
    support = assessment.methods[0].one_to_one.support if assessment.methods else ()
    taken = {int(label) for label in assessment.mapping}
    return [
        assessment.labels[label]
        for label, count in enumerate(support)
        if count and label not in taken
    ]


def _unlabelled(assessment: Assessment) -> str:
    used = assessment.monitors.get("usage_perplexity")
    text = f"The model splits the tokens among {len(assessment.usage)} factors"
    return text + (f", of which {used:.1f} are in use (perplexity)." if used else ".")
