"""Points with an interval in both directions and the front of the best, as SVG."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from markupsafe import Markup

from moe_jax.reports.chart_parts import (
    HUES,
    WIDTH,
    Area,
    Scale,
    figure,
    height_lines,
    legend,
    marker,
    nothing,
    plot,
    sample,
    short,
    text_width,
    ticks_with_zero,
    upright_lines,
)
from moe_jax.reports.escape import one_line
from moe_jax.reports.label_places import Box, place_labels
from moe_jax.reports.page import number
from moe_jax.reports.plots import tick_labels

_HEIGHT = 310
_INSET = 10  # between the outermost lines and the edge, for the markers
_CONTROL = "control"


class ScatterPoint(NamedTuple):
    """One point.

    Attributes:
      name: printed beside it.
      x, x_low, x_high: its place and the ends of the interval; no bar where an end is not finite.
      y, y_low, y_high: the same upwards.
      kind: points of a kind share colour and shape; "control" ones are small, pale and unnamed.
    """

    name: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    kind: str = ""


def interval_scatter(
    name: str,
    points: Sequence[ScatterPoint],
    *,
    x_title: str,
    y_title: str,
    front: Bool[np.ndarray, " n"] | None = None,
) -> Markup:
    """Crosses of intervals, lines at zero, and the front as steps.

    The steps go along the edge of what the front's points dominate, where a larger y is better. A
    point without a finite place is left out, and a name that would cover another is left to the
    point's tooltip; a note says how many of each there are.

    Args:
      name: heading.
      points: n points of at most eight kinds besides "control".
      x_title: what the places from left to right are.
      y_title: what the heights are.
      front: the points that the steps join.

    Raises:
      ValueError: too many kinds, front of another length, an interval whose low is above its high.
    """
    kinds = _check(points, front)
    points = [_floats(p) for p in points]
    drawn = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not drawn:
        return nothing(name, "no point with a finite value")
    x_ticks, y_ticks = _ticks(drawn, "x"), _ticks(drawn, "y")
    left = max(text_width(t) for t in tick_labels(y_ticks)) + 12
    right = max(text_width(t) for t in tick_labels(x_ticks)) / 2
    area = Area(left, 28.0, WIDTH - max(right - _INSET, 4.0), 28.0 + _HEIGHT)
    x_scale = Scale(x_ticks[0], x_ticks[-1], area.left + _INSET, area.right - _INSET)
    y_scale = Scale(y_ticks[0], y_ticks[-1], area.bottom - _INSET, area.top + _INSET)
    best = [] if front is None else [p for p, b in zip(points, front, strict=True) if b]
    best = sorted((p for p in best if p in drawn), key=lambda p: (p.x, p.y))
    # Controls first, so that they lie under the others.
    order = sorted(drawn, key=lambda p: p.kind != _CONTROL)
    names, hidden = _names([*best, *(p for p in order if p not in best)], x_scale, y_scale, area)
    parts = [
        upright_lines(x_ticks, x_scale, area),
        height_lines(y_ticks, y_scale, area),
        Markup('<text class="axis" x="2" y="13">{}</text>').format(short(y_title, 70)),
        Markup('<text class="axis" x="{:g}" y="{:g}" text-anchor="end">{}</text>').format(
            area.right, area.bottom + 36, short(x_title, 70)
        ),
        _front(best, x_scale, y_scale),
        *(_cross(p, _style(p.kind, kinds), x_scale, y_scale) for p in order),
        *(_point(p, kinds, x_scale, y_scale) for p in order),
        names,
    ]
    said = (
        f"{one_line(name)}: {len(drawn)} points, {one_line(x_title)} from "
        f"{number(min(p.x for p in drawn))} to {number(max(p.x for p in drawn))}, "
        f"{one_line(y_title)} from {number(min(p.y for p in drawn))} to "
        f"{number(max(p.y for p in drawn))}"
    )
    notes = [f"{len(points) - len(drawn)} without a value left out"] * (len(drawn) < len(points))
    notes += [f"{hidden} of the names only where the pointer rests on the point"] * (hidden > 0)
    drawing = plot(said, area.bottom + 44, parts)
    return figure(name, drawing, legend=_legend(kinds, best), note="; ".join(notes))


def _check(points: Sequence[ScatterPoint], front: Bool[np.ndarray, "..."] | None) -> list[str]:
    """The kinds in the order in which they are met."""
    if front is not None and front.shape != (len(points),):
        raise ValueError(f"front is {front.shape}; it must be ({len(points)},), one for each point")
    for p in points:
        for axis, low, high in (("x", p.x_low, p.x_high), ("y", p.y_low, p.y_high)):
            if low > high:
                raise ValueError(
                    f"point {p.name!r}: {axis}_low = {low:g} is above {axis}_high = {high:g}"
                )
    kinds = list(dict.fromkeys(p.kind for p in points))
    if len(set(kinds) - {_CONTROL}) > len(HUES):
        raise ValueError(
            f"points are of {len(kinds)} kinds; {len(HUES)} besides {_CONTROL!r} is as many as "
            "can be told apart in one chart"
        )
    return kinds


def _floats(p: ScatterPoint) -> ScatterPoint:
    """The point with Python's numbers, whatever numbers it was given."""
    x, x_low, x_high, y, y_low, y_high = map(float, p[1:7])
    return ScatterPoint(p.name, x, x_low, x_high, y, y_low, y_high, p.kind)


def _ticks(points: Sequence[ScatterPoint], axis: str) -> list[float]:
    values = [getattr(p, axis + end) for p in points for end in ("", "_low", "_high")]
    finite = [float(v) for v in values if math.isfinite(v)]
    return ticks_with_zero(min(finite), max(finite))


def _shape(kind: str, kinds: Sequence[str]) -> int:
    return 0 if kind == _CONTROL else [k for k in kinds if k != _CONTROL].index(kind)


def _style(kind: str, kinds: Sequence[str]) -> str:
    return "pale" if kind == _CONTROL else f"hue{_shape(kind, kinds)}"


def _cross(p: ScatterPoint, style: str, x_scale: Scale, y_scale: Scale) -> Markup:
    path = ""
    if math.isfinite(p.x_low) and math.isfinite(p.x_high):
        path += f"M{x_scale.at(p.x_low):.2f} {y_scale.at(p.y):.2f}H{x_scale.at(p.x_high):.2f}"
    if math.isfinite(p.y_low) and math.isfinite(p.y_high):
        path += f"M{x_scale.at(p.x):.2f} {y_scale.at(p.y_low):.2f}V{y_scale.at(p.y_high):.2f}"
    if not path:
        return Markup()
    return Markup('<path class="error {}" d="{}"></path>').format(style, path)


def _point(p: ScatterPoint, kinds: Sequence[str], x_scale: Scale, y_scale: Scale) -> Markup:
    hint = (
        f"{p.name}: {number(p.x)} [{number(p.x_low)}, {number(p.x_high)}] across, "
        f"{number(p.y)} [{number(p.y_low)}, {number(p.y_high)}] up"
    )
    size = 2.6 if p.kind == _CONTROL else 4.5
    return Markup('<g class="{}">{}</g>').format(
        _style(p.kind, kinds),
        marker(_shape(p.kind, kinds), x_scale.at(p.x), y_scale.at(p.y), size, hint),
    )


def _front(best: Sequence[ScatterPoint], x_scale: Scale, y_scale: Scale) -> Markup:
    """Steps whose inner corner has the x of the higher point and the y of the lower one."""
    path = ""
    for i, p in enumerate(best):
        if i:
            before = best[i - 1]
            higher = p if p.y > before.y else before
            path += f"L{x_scale.at(higher.x):.2f} {y_scale.at(min(p.y, before.y)):.2f}"
        path += f"{'L' if i else 'M'}{x_scale.at(p.x):.2f} {y_scale.at(p.y):.2f}"
    return Markup('<path class="front" d="{}"></path>').format(path) if len(best) > 1 else Markup()


def _names(
    points: Sequence[ScatterPoint], x_scale: Scale, y_scale: Scale, area: Area
) -> tuple[Markup, int]:
    """The names of the points that have one, and how many found no room."""
    named = [p for p in points if p.kind != _CONTROL and p.name]
    taken, places = [], []
    if x_scale.low <= 0 <= x_scale.high:
        taken.append(Box(x_scale.at(0) - 2, area.top, x_scale.at(0) + 2, area.bottom))
    if y_scale.low <= 0 <= y_scale.high:
        taken.append(Box(area.left, y_scale.at(0) - 2, area.right, y_scale.at(0) + 2))
    for p in points:
        x, y = x_scale.at(p.x), y_scale.at(p.y)
        size = 3.0 if p.kind == _CONTROL else 6.0
        taken.append(Box(x - size, y - size, x + size, y + size))
    for p in named:
        places.append((x_scale.at(p.x), y_scale.at(p.y), short(p.name)))
        x, y = places[-1][:2]
        if math.isfinite(p.x_low) and math.isfinite(p.x_high):
            taken.append(Box(x_scale.at(p.x_low), y - 0.7, x_scale.at(p.x_high), y + 0.7))
        if math.isfinite(p.y_low) and math.isfinite(p.y_high):
            taken.append(Box(x - 0.7, y_scale.at(p.y_high), x + 0.7, y_scale.at(p.y_low)))
    return place_labels(places, taken, Box(*area))


def _legend(kinds: Sequence[str], best: Sequence[ScatterPoint]) -> Markup:
    entries = [
        (
            sample(_style(kind, kinds), _shape(kind, kinds), size=2.6 if kind == _CONTROL else 4.5),
            short(kind, 60) or "other",
        )
        for kind in kinds
        if kinds != [""]
    ]
    if len(best) > 1:
        step = '<svg width="22" height="14" viewBox="0 0 22 14" aria-hidden="true">'
        step += '<path class="front" d="M1 3H11V11H21"></path></svg>'
        entries.append((Markup(step), "front"))
    return legend(entries)
