"""Figures, charts and texts of the page about a Stage 2 study."""

import difflib
import math
import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from moe_jax.misrouting.measures import ACCURACY, HEADLINE
from moe_jax.misrouting.misroute_words import (
    BEYOND,
    LEVEL,
    TELLS,
    mark,
    marked,
    short_spec,
    verdict,
)
from moe_jax.misrouting.study_results import Agreement, Example, Measure, Row, Study
from moe_jax.reports.charts import ScatterPoint, Series, heat_map, interval_lines, interval_scatter
from moe_jax.reports.escape import one_line, visible
from moe_jax.reports.page import number, paragraph, tiles

_NAMED = 24  # experts that a chart names; of more only the selected ones
_LONGEST = 300  # characters of a prompt in a heading
_PIECES = re.compile(r"\s|\w+|[^\w\s]")


def subtitle(study: Study) -> str:
    """One line: what was done to which model."""
    pairs = ", ".join(f"{layer}:{expert}" for layer, expert in study.selected)
    plural = "s" if len(study.selected) != 1 else ""
    return f"{study.model}: expert{plural} {pairs} (layer:expert) misrouted"


def mine(study: Study) -> list[Row]:
    """The interventions on the selected experts."""
    return [row for row in study.rows if row.experts == "selected"]


def glance(study: Study) -> Markup:
    """The headline figures."""
    rows, a = mine(study), study.accuracy
    marks = [mark(row, ACCURACY) for row in rows]
    beyond = f"; {marks.count(BEYOND)} more than random sets do" if study.controls else ""
    faithful = [m for m in study.measures if m.group == "faithfulness"]
    known = [m for m in faithful if m.diagnosticity is not None]
    tell = sum(verdict(m) == TELLS for m in known)
    among = f"of {len(known)} measures of faithfulness" if known else "not measured: no such models"
    controls = f"{study.controls} random sets for each on experts"
    if not study.controls:
        controls = "no random sets"
    return tiles(
        [
            ("accuracy", a.mean, f"without intervention; 95%: {number(a.low)} to {number(a.high)}"),
            ("prompts", study.prompts, f"faithfulness on {study.measured:,} of them"),
            ("experts", len(study.selected), "selected"),
            ("interventions", len(rows), controls),
            (
                "change accuracy",
                sum(map(bool, marks)),
                f"of {len(rows)}, Holm p ≤ {LEVEL:g}{beyond}",
            ),
            ("tell planted models apart", tell if known else math.nan, among),
        ]
    )


def difficulty(study: Study) -> Markup:
    """Accuracy of the model as it is, level by level, with Wilson's intervals."""
    ends = [_wilson(share, n) for _, n, share in study.by_difficulty]
    series = Series(
        "accuracy",
        [share for *_, share in study.by_difficulty],
        [low for low, _ in ends],
        [high for _, high in ends],
    )
    labels = [f"{d:g} (n={n:,})" for d, n, _ in study.by_difficulty]
    return interval_lines("accuracy by difficulty", labels, [series], y_title="share right")


def pareto(study: Study) -> Markup:
    """Change of accuracy against change of the headline measure."""
    points, front = [], []
    for spec, sets in study.scatter.items():
        nan = math.nan
        points += [
            ScatterPoint(short_spec(spec), x, nan, nan, y, nan, nan, "control") for x, y in sets
        ]
        front += [False] * len(sets)
    for row in study.rows:
        x, y = (_of(row, name) for name in (ACCURACY, HEADLINE))
        kind = "selected experts" if row.experts == "selected" else "opposite experts"
        points.append(ScatterPoint(short_spec(row.spec), *x, *y, kind))
        front.append(f"{row.spec}/{row.experts}" in study.front)
    title = next((marked(m) for m in study.measures if m.name == HEADLINE), HEADLINE)
    return interval_scatter(
        "accuracy and faithfulness",
        points,
        x_title="change of accuracy",
        y_title=f"change of {title}",
        front=np.asarray(front, bool),
    )


def agreement(study: Study) -> tuple[Markup, str]:
    """Effects of single experts on answer and explanation."""
    found = study.agreement
    if found is None:
        return paragraph("No prompt has an explanation.", "missing"), ""
    chosen = [pair in study.selected for pair in zip(found.layer, found.expert, strict=True)]
    named = len(chosen) <= _NAMED
    nan, points = math.nan, []
    for i, (layer, expert) in enumerate(zip(found.layer, found.expert, strict=True)):
        name = f"{layer}:{expert}" if named or chosen[i] else ""
        kind = "selected" if chosen[i] else "others"
        x, y = float(found.answer[i]), float(found.explanation[i])
        points.append(ScatterPoint(name, x, nan, nan, y, nan, nan, kind))
    chart = interval_scatter(
        "each expert suppressed alone",
        points,
        x_title="loss of log P(own answer), nats",
        y_title="loss of log P(own explanation), nats a token",
    )
    maps = [
        _expert_map(f"needed by the {what}: loss of log-probability", values, found, chosen)
        for what, values in (("answer", found.answer), ("explanation", found.explanation))
    ]
    lead = (
        f"Rank correlation of the two effects over {len(chosen)} experts: "
        f"{number(found.spearman)} (p {number(found.p_spearman)}, experts of a layer and like "
        f"usage permuted); cosine {number(found.cosine)} (p {number(found.p_cosine)}). High: "
        "answer and explanation need the same experts. An outline marks the selected ones; the "
        "candidates are these and the most used others."
    )
    return chart + Markup("").join(maps), lead


def examples(study: Study) -> Markup:
    """Texts before and after."""
    other = [one for one in study.examples if one.before != one.after]
    if not other:
        return paragraph("No text to show: none that was kept is another one.", "missing")
    return Markup("").join(map(_example, other))


def headline(study: Study) -> Measure | None:
    """The measure of the Pareto plot."""
    return next((m for m in study.measures if m.name == HEADLINE), None)


def _example(one: Example) -> Markup:
    before, after = _differences(one.before, one.after)
    return Markup(
        "<h3>{}</h3><p>right answer: <b><bdi>{}</bdi></b></p>"
        '<div class="charts"><figure><figcaption>before: {}</figcaption>{}</figure>'
        "<figure><figcaption>{}: {}</figcaption>{}</figure></div>"
    ).format(
        _shortened(one.prompt.strip()),
        one_line(one.right),
        _judged(one.before_right),
        before,
        one_line(short_spec(one.spec)),
        _judged(one.after_right),
        after,
    )


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


def _judged(right: bool) -> str:
    return "right ✓" if right else "wrong ✗"


def _differences(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts, what the other has not underlined."""
    a, b = _PIECES.findall(before), _PIECES.findall(after)
    found: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, *ends in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        parts = "".join(a[ends[0] : ends[1]]), "".join(b[ends[2] : ends[3]])
        form = "{}" if kind == "equal" else '<span class="changed">{}</span>'
        for out, part in zip(found, parts, strict=True):
            if part:
                out.append(Markup(form).format(visible(part)))
    one, two = (Markup('<pre class="routed">{}</pre>').format(Markup("").join(x)) for x in found)
    return one, two


def _expert_map(
    name: str, values: Sequence[float] | np.ndarray, found: Agreement, chosen: Sequence[bool]
) -> Markup:
    layers, width = sorted(set(found.layer)), max(found.expert) + 1
    cells = np.full((len(layers), width), np.nan)
    outlined = np.zeros(cells.shape, bool)
    for layer, expert, value, is_mine in zip(
        found.layer, found.expert, values, chosen, strict=True
    ):
        at = layers.index(layer), expert
        cells[at], outlined[at] = value, is_mine
    return heat_map(
        name,
        cells,
        rows=[f"layer {m}" for m in layers],
        columns=[str(e) for e in range(width)],
        diverging=True,
        marked=outlined,
    )


def _of(row: Row, name: str) -> tuple[float, float, float]:
    effect = row.effects.get(name)
    if effect is None:
        return math.nan, math.nan, math.nan
    return effect.change


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n (Wilson 1927)."""
    z = 1.959964
    middle, room = (
        share + z * z / (2 * n),
        z * math.sqrt(share * (1 - share) / n + (z / 2 / n) ** 2),
    )
    return (middle - room) / (1 + z * z / n), (middle + room) / (1 + z * z / n)
