"""Lines over ordered categories with an interval at each point, as SVG."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from moe_jax.reports.chart_parts import (
    HUES,
    WIDTH,
    Area,
    Scale,
    dashes,
    every,
    figure,
    height_lines,
    legend,
    marker,
    nothing,
    plot,
    sample,
    short,
    text_width,
    tilted,
    title,
)
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import number
from moe_jax.reports.plots import nice_ticks, tick_labels

_HEIGHT = 270


class Series(NamedTuple):
    """One line.

    Attributes:
      name: what it is of.
      mean: its value in each category; one that is not finite breaks the line.
      low, high: the ends of the interval around it; no bar where one of them is not finite.
    """

    name: str
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def interval_lines(
    name: str, labels: Sequence[str], series: Sequence[Series], *, y_title: str = ""
) -> Markup:
    """Each series as a line with points and bars, side by side within a category.

    Args:
      name: heading.
      labels: the categories from left to right, for instance levels of difficulty.
      series: at most eight.
      y_title: what the heights are.

    Raises:
      ValueError: more than eight series, lengths that differ from that of labels, low > high.
    """
    if len(series) > len(HUES):
        raise ValueError(
            f"series holds {len(series)}; {len(HUES)} is as many as can be told apart in one chart"
        )
    lines = [_checked(s, len(labels)) for s in series]
    finite = np.concatenate([x[np.isfinite(x)] for x in lines] or [np.empty(0)])
    if not finite.size:
        return nothing(name, "no finite value")
    ticks = nice_ticks(float(finite.min()), float(finite.max()), 5)
    names = [short(label, 24) for label in labels]
    left = max(text_width(t) for t in tick_labels(ticks)) + 12
    band = (WIDTH - left - 8) / len(labels)
    widest = max(map(text_width, names))
    is_tilted = _crowded(names, band) and max(map(len, names)) > 4
    foot = 24.0
    if is_tilted:  # The first label ends in the middle of its band and reaches to the left.
        left = max(left, 0.77 * widest - band / 2)
        band = (WIDTH - left - 8) / len(labels)
        foot += 0.65 * widest
    top = 28.0 if y_title else 10.0
    area = Area(left, top, WIDTH - 8, top + _HEIGHT)
    scale = Scale(ticks[0], ticks[-1], area.bottom, area.top)
    parts = [height_lines(ticks, scale, area), _categories(names, area, band, is_tilted)]
    if y_title:
        parts.append(Markup('<text class="axis" x="2" y="13">{}</text>').format(short(y_title, 70)))
    step = min(0.7 * band / len(series), 13.0)
    for i, (s, values) in enumerate(zip(series, lines, strict=True)):
        middle = area.left + band / 2 + (i - (len(series) - 1) / 2) * step
        places = [middle + band * j for j in range(len(labels))]
        parts.append(_line(i, s.name, labels, values, places, scale))
    said = (
        f"{one_line(name)}: {len(series)} series over {len(labels)} categories from "
        f"{names[0]} to {names[-1]}, values from {number(finite.min())} to {number(finite.max())}"
    )
    keys = legend(
        (sample(f"hue{i}", i, line=True), short(s.name, 60)) for i, s in enumerate(series)
    )
    return figure(name, plot(said, round(area.bottom + foot), parts), legend=keys)


def _checked(series: Series, count: int) -> Float[np.ndarray, "3 n"]:
    """The series as mean, low and high, or an error that says what is wrong with it."""
    for field in ("mean", "low", "high"):
        if len(getattr(series, field)) != count:
            raise ValueError(
                f"{field} of series {series.name!r} has {len(getattr(series, field))} values for "
                f"{count} labels"
            )
    values = np.array([series.mean, series.low, series.high], np.float64)
    wrong = np.flatnonzero(values[1] > values[2])
    if wrong.size:
        at = int(wrong[0])
        raise ValueError(
            f"series {series.name!r}: low[{at}] = {values[1, at]:g} is above "
            f"high[{at}] = {values[2, at]:g}"
        )
    return values


def _crowded(names: Sequence[str], band: float) -> bool:
    """Would neighbouring names touch, each in the middle of its band?"""
    return any(text_width(a + b) / 2 + 6 > band for a, b in itertools.pairwise(names))


def _categories(names: Sequence[str], area: Area, band: float, is_tilted: bool) -> Markup:
    parts = []
    needed = 15.0 if is_tilted else band
    if not is_tilted and _crowded(names, band):
        needed = max(map(text_width, names)) + 6
    for j in range(0, len(names), every(needed / band)):
        x = area.left + band * (j + 0.5)
        if is_tilted:
            parts.append(tilted(names[j], x + 4, area.bottom + 14, anchor="end"))
        else:
            parts.append(
                Markup('<text x="{:.2f}" y="{:g}" text-anchor="middle">{}</text>').format(
                    x, area.bottom + 17, names[j]
                )
            )
    return Markup("").join(parts)


def _line(
    index: int,
    name: str,
    labels: Sequence[str],
    values: Float[np.ndarray, "3 n"],
    places: Sequence[float],
    scale: Scale,
) -> Markup:
    """The strokes between neighbours, the bars and, above them, the points."""
    path, bars, points, pen_down = "", "", [], False
    for label, x, (mean, low, high) in zip(labels, places, values.T.tolist(), strict=True):
        if not np.isfinite(mean):
            pen_down = False
            continue
        path += f"{'L' if pen_down else 'M'}{x:.2f} {scale.at(mean):.2f}"
        pen_down = True
        hint = f"{name}, {label}: {number(mean)}"
        if np.isfinite(low) and np.isfinite(high):
            bars += f"M{x:.2f} {scale.at(low):.2f}V{scale.at(high):.2f}"
            hint += f" [{number(low)}, {number(high)}]"
        points.append(marker(index, x, scale.at(mean), 3.8, hint))
    return Markup(
        '<g class="hue{}"><path class="series" d="{}"{}></path>'
        '<path class="error" d="{}"></path>{}{}</g>'
    ).format(index, path, dashes(index), bars, Markup("").join(points), title(name))
