"""Where names go beside their points so that they rarely cover anything."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from moe_jax.reports.chart_parts import SIZE, text_width

# Directions in the order in which a reader would want them, and how far from the point.
_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
_DISTANCES = (8.0, 18.0, 30.0)
_APART = 5.0  # the least gap between two labels in a row


class Box(NamedTuple):
    """A rectangle by its edges; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def place_labels(
    points: Sequence[tuple[float, float, str]], taken: Sequence[Box], within: Box
) -> tuple[Markup, int]:
    """Labels in the order of the points, each where it covers least.

    Of 24 places around its point (eight directions, three distances, the nearer the better) a label
    takes the one with the smallest area over what is taken; it never covers another label or leaves
    the drawing. A farther one gets a thin line to its point.

    Args:
      points: (x, y, label).
      taken: what labels should not cover.
      within: the edges of the drawing.

    Returns:
      The labels, and how many of them found no room.
    """
    placed: list[Box] = []
    parts, hidden = [], 0
    for x, y, label in points:
        best: tuple[float, float, Box] | None = None
        for distance in _DISTANCES:
            for direction in _DIRECTIONS:
                box = _beside(x, y, text_width(label), direction, distance)
                if box.overlap(within) < 0.999 * _area(box) or any(map(box.overlap, placed)):
                    continue
                cost = sum(map(box.overlap, taken)) + 6.0 * (distance - _DISTANCES[0])
                if best is None or cost < best[0]:
                    best = cost, distance, box
        if best is None:
            hidden += 1
            continue
        left, top, right, bottom = best[2]
        placed.append(Box(left - _APART, top, right + _APART, bottom))
        parts.append(_drawn(x, y, label, best[2], best[1] > _DISTANCES[0]))
    return Markup("").join(parts), hidden


def _beside(x: float, y: float, width: float, direction: tuple[int, int], distance: float) -> Box:
    """The box of a label of this width in a direction from its point."""
    across, up = direction
    reach = distance * (0.6 if across and up else 1.0)
    left = x + {1: reach, -1: -reach - width, 0: -width / 2}[across]
    top = y + {1: reach, -1: -reach - SIZE, 0: -SIZE / 2}[up]
    return Box(left, top, left + width, top + SIZE)


def _area(box: Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)


def _drawn(x: float, y: float, label: str, box: Box, is_far: bool) -> Markup:
    end_x = min(max(x, box.left), box.right)
    end_y = min(max(y, box.top), box.bottom)
    line = Markup('<path class="leader" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"></path>')
    return Markup(
        '{}<text class="name" x="{:.1f}" y="{:.1f}" dominant-baseline="central">{}</text>'
    ).format(
        line.format(x, y, end_x, end_y) if is_far else "",
        box.left,
        (box.top + box.bottom) / 2,
        label,
    )
