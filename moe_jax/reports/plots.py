"""Small charts drawn as SVG, which takes its colours from the page and so suits light and dark."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from moe_jax.reports.escape import one_line
from moe_jax.reports.page import number

Point = tuple[int | float, int | float]

_WIDTH, _HEIGHT = 300, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 6, 8, 20


class Bar(NamedTuple):
    """One bar.

    Attributes:
      name: what it is of.
      value: its length, at least 0.
      colour: number of its colour; None for a plain one.
      own: is it the one that the chart is about?
      shown: the value as written at its end; "" for three decimals.
    """

    name: str
    value: int | float
    colour: int | None = None
    own: bool = False
    shown: str = ""


def bar_chart(bars: Sequence[Bar], *, most: int | float | None = None) -> Markup:
    """Horizontal bars with their names and values.

    Args:
      bars: from top to bottom.
      most: value that fills the width; None for the largest.
    """
    most = most or max((bar.value for bar in bars), default=0.0) or 1.0
    rows = []
    for bar in bars:
        share = min(max(bar.value / most, 0.0), 1.0)
        style = " ".join([f"k{bar.colour}"] * (bar.colour is not None) + ["own"] * bar.own)
        chip = Markup('<b class="chip">{}</b> ').format(bar.colour)
        rows.append(
            Markup(
                '<span class="{style}" title="{name}">{chip}<bdi>{name}</bdi></span>'
                '<svg class="{style}" role="img" aria-label="{name}: {shown}">'
                '<rect class="bar" width="{width:.2f}%" height="70%" y="15%" rx="2"></rect>'
                '<text x="{width:.2f}%" dx="6" y="50%" dominant-baseline="central">{shown}</text>'
                "</svg>"
            ).format(
                style=style,
                name=one_line(bar.name),
                chip=chip if bar.colour is not None else "",
                # The value stands to the right of the bar, so the bar leaves it room.
                width=85 * share,
                shown=bar.shown or f"{bar.value:.3f}",
            )
        )
    return Markup('<div class="bars">{}</div>').format(Markup("").join(rows))


def line_chart(name: str, points: Sequence[Point], *, most: int = 300) -> Markup:
    """One curve with its axes, its name and its last value.

    A value that is not finite breaks the curve. The y axis is logarithmic where all values are
    positive and span more than a factor of 50.

    Args:
      name: heading.
      points: (x, y) in the order of x.
      most: points to draw; of more, the lowest and highest of each stretch are drawn.
    """
    last = next((y for _, y in reversed(points) if math.isfinite(y)), math.nan)
    runs = [thin(run, most) for run in _runs(points)]
    values = [y for run in runs for _, y in run]
    caption = Markup("<figcaption><span>{}</span><b>{}</b></figcaption>").format(
        one_line(name), number(last)
    )
    if not values:
        return Markup('<figure>{}<p class="quiet">no finite value</p></figure>').format(caption)
    low, high = min(values), max(values)
    curved = low > 0 and high / low > 50
    ticks = _log_ticks(low, high) if curved else nice_ticks(low, high)
    scale = math.log10 if curved else float
    bottom, top = scale(min(ticks[0], low)), scale(max(ticks[-1], high))
    first, final = points[0][0], points[-1][0]

    def at(x: int | float, y: int | float) -> tuple[float, float]:
        across = (x - first) / ((final - first) or 1)
        up = (scale(y) - bottom) / ((top - bottom) or 1)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    return Markup(
        '<figure>{}<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg></figure>'
    ).format(
        caption,
        _WIDTH,
        _HEIGHT,
        f"{one_line(name)}: last value {number(last)}",
        _axes(ticks, [at(first, y)[1] for y in ticks], first, final),
        Markup("").join(_curve([at(x, y) for x, y in run]) for run in runs),
    )


def nice_ticks(low: int | float, high: int | float, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose low..high (1, 2, 2.5 or 5 times a power of ten)."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-30):
        low, high = (min(0.0, 2 * low), max(0.0, 2 * low)) if abs(low) > 1e-30 else (0.0, 1.0)
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, stop + 1)]


def tick_labels(ticks: Sequence[int | float]) -> list[str]:
    """The ticks in as few digits as tell each from the next."""
    steps = [abs(b - a) for a, b in itertools.pairwise(ticks)]
    for digits in range(4, 16):
        labels = [f"{tick:.{digits}g}" for tick in ticks]
        errors = [abs(float(label) - tick) for label, tick in zip(labels, ticks, strict=True)]
        if max(errors, default=0.0) <= 0.01 * min(steps, default=1.0):
            break
    return labels


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` of the points, peaks kept: the lowest and highest of each stretch."""
    if len(points) <= most:
        return list(points)
    stretches, kept = max(1, (most - 2) // 2), [points[0]]
    for i in range(stretches):
        a = 1 + i * (len(points) - 2) // stretches
        b = 1 + (i + 1) * (len(points) - 2) // stretches
        part = points[a:b]
        if part:
            ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
            kept += sorted(ends)
    return [*kept, points[-1]]


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches of finite values."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _log_ticks(low: int | float, high: int | float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, (last - first) // 4)
    return [10.0**i for i in range(first, last + step, step)]


def _axes(
    ticks: list[float], heights: list[float], first: int | float, final: int | float
) -> Markup:
    lines = Markup("").join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"></line>'
            '<text x="{}" y="{:.1f}" text-anchor="end" dominant-baseline="central">{}</text>'
        ).format(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 6, y, label)
        for label, y in zip(tick_labels(ticks), heights, strict=True)
    )
    foot = _HEIGHT - 4
    return lines + Markup(
        '<text x="{}" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">step {}</text>'
    ).format(_LEFT, foot, f"{first:,.0f}", _WIDTH - _RIGHT, foot, f"{final:,.0f}")


def _curve(places: list[tuple[float, float]]) -> Markup:
    if len(places) == 1:
        return Markup('<circle class="dot" r="3" cx="{:.1f}" cy="{:.1f}"></circle>').format(
            *places[0]
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return Markup('<polyline class="curve" points="{}"></polyline>').format(path)
