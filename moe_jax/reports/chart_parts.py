"""What the charts share: their frame, axes, legend, markers and the room that words take."""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from moe_jax.reports.escape import one_line
from moe_jax.reports.plots import nice_ticks, tick_labels

# Numbers in the palette in the order in which charts use them; .hue0 to .hue7 of page.css.
HUES = (5, 2, 0, 1, 8, 10, 3, 6)
SIZE = 12  # of letters, in units of the drawing
WIDTH = 460


class Scale(NamedTuple):
    """From values to places: `low` is drawn at `start`, `high` at `end`, linear between."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: int | float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


class Area(NamedTuple):
    """Edges of the part of a drawing that holds the data."""

    left: float
    top: float
    right: float
    bottom: float


def text_width(text: str, size: int | float = SIZE) -> float:
    """About how wide a text is: 0.62 of its size a letter, all of it for wide ones (Chinese)."""
    width = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        width += 1.0 if unicodedata.east_asian_width(character) in "WF" else 0.62
    return size * width


def short(text: str, most: int = 28) -> str:
    """The text in one line and at most `most` characters, the last "…" where it was longer."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def every(needed: int | float) -> int:
    """The least of 1, 2, 5, 10, 20, ... that is at least `needed`: label every n-th."""
    power = 1
    while True:
        for n in (1, 2, 5):
            if n * power >= needed:
                return n * power
        power *= 10


def figure(name: str, drawing: Markup, *, legend: Markup | None = None, note: str = "") -> Markup:
    """A chart with its name above, its legend under that and a note below."""
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}<div class="scroll">{}</div>{}</figure>'
    ).format(
        one_line(name),
        legend or "",
        drawing,
        Markup('<p class="quiet">{}</p>').format(note) if note else "",
    )


def nothing(name: str, why: str) -> Markup:
    """What stands in the place of a chart that has nothing to draw."""
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption><p class="quiet">{}</p></figure>'
    ).format(one_line(name), why)


def plot(label: str, height: int | float, parts: Iterable[Markup]) -> Markup:
    """A drawing that takes the width there is, with its content in words."""
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, height, short(label, 400), Markup("").join(parts))


def legend(entries: Iterable[tuple[Markup, str]]) -> Markup:
    """A list of (small drawing, what it stands for)."""
    items = [
        Markup("<li>{}<bdi>{}</bdi></li>").format(drawing, one_line(text))
        for drawing, text in entries
    ]
    return Markup('<ul class="marks">{}</ul>').format(Markup("").join(items)) if items else Markup()


def sample(style: str, shape: int, *, line: bool = False, size: int | float = 4) -> Markup:
    """The drawing of a legend's entry: a marker, on a piece of its line where there is one."""
    dash = Markup('<path class="series" d="M0 7H22"{}></path>').format(dashes(shape))
    return Markup(
        '<svg class="{}" width="{}" height="14" viewBox="{}" aria-hidden="true">{}{}</svg>'
    ).format(
        style,
        22 if line else 14,
        "0 0 22 14" if line else "4 0 14 14",
        dash if line else "",
        marker(shape, 11, 7, size),
    )


def dashes(number: int) -> Markup:
    """Attribute that breaks the line of every series after the fourth."""
    return Markup(' stroke-dasharray="6 3"') if number >= 4 else Markup()


def marker(shape: int, x: int | float, y: int | float, size: int | float, hint: str = "") -> Markup:
    """One of eight markers around (x, y), about `size` from the middle to the edge."""
    quarter = [(0.45, 0.45), (0.45, 1.35), (-0.45, 1.35)]
    plus = [corner for turn in range(4) for corner in (_turned(c, turn) for c in quarter)]
    star = [(k, 0.65 if k % 2 else 1.5) for k in range(10)]
    outlines = (
        [(math.cos(a * math.pi / 10), math.sin(a * math.pi / 10)) for a in range(20)],
        [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        [(0, -1.15), (1.1, 0.8), (-1.1, 0.8)],
        [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        [(0, 1.15), (1.1, -0.8), (-1.1, -0.8)],
        plus,
        [(0.71 * (a - b), 0.71 * (a + b)) for a, b in plus],
        [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in star],
    )
    corners = " ".join(f"{x + size * a:.2f},{y + size * b:.2f}" for a, b in outlines[shape])
    return Markup('<polygon class="mark" points="{}">{}</polygon>').format(corners, title(hint))


def _turned(corner: tuple[float, float], quarters: int) -> tuple[float, float]:
    x, y = corner
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def title(hint: str) -> Markup:
    """What is shown when the pointer rests on the element that this is put into."""
    return Markup("<title>{}</title>").format(one_line(hint)) if hint else Markup()


def ticks_with_zero(low: float, high: float) -> list[float]:
    """Round numbers around low..high, out to 0 where that makes the axis at most half longer."""
    room = 0.5 * (high - low)
    return nice_ticks(0.0 if 0 < low <= room else low, 0.0 if -room <= high < 0 else high, 5)


def height_lines(ticks: Sequence[int | float], scale: Scale, area: Area) -> Markup:
    """Level lines with their numbers at the left."""
    return Markup("").join(
        Markup(
            '<line class="{}" x1="{:g}" x2="{:g}" y1="{:.2f}" y2="{:.2f}"></line>'
            '<text x="{:g}" y="{:.2f}" text-anchor="end" dominant-baseline="central">{}</text>'
        ).format(
            "zero" if tick == 0 else "grid",
            area.left, area.right, scale.at(tick), scale.at(tick),
            area.left - 7, scale.at(tick), label,
        )
        for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    )  # fmt: skip


def upright_lines(ticks: Sequence[int | float], scale: Scale, area: Area) -> Markup:
    """Upright lines with their numbers below."""
    return Markup("").join(
        Markup(
            '<line class="{}" x1="{:.2f}" x2="{:.2f}" y1="{:g}" y2="{:g}"></line>'
            '<text x="{:.2f}" y="{:g}" text-anchor="middle">{}</text>'
        ).format(
            "zero" if tick == 0 else "grid",
            scale.at(tick), scale.at(tick), area.top, area.bottom,
            scale.at(tick), area.bottom + 17, label,
        )
        for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    )  # fmt: skip


def tilted(text: str, x: int | float, y: int | float, *, anchor: str, angle: int = -40) -> Markup:
    """A label that rises to the right."""
    return Markup(
        '<text transform="translate({:.2f} {:.2f}) rotate({})" text-anchor="{}">{}</text>'
    ).format(x, y, angle, anchor, text)
