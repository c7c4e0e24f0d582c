"""A map of rows and columns whose cells are coloured by value, as SVG."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from moe_jax.reports.chart_parts import (
    every,
    figure,
    legend,
    nothing,
    short,
    text_width,
    tilted,
    title,
)
from moe_jax.reports.escape import one_line
from moe_jax.reports.page import number

_MOST_ACROSS, _MOST_DOWN = 880, 560


class _Grid(NamedTuple):
    """Where the cells are: the corner of the first, their distances, and how labels are set."""

    left: float
    top: float
    across: float
    down: float
    is_tilted: bool
    each_column: int
    each_row: int


def heat_map(
    name: str,
    values: Float[np.ndarray, "r c"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    diverging: bool = False,
    marked: Bool[np.ndarray, "..."] | None = None,
    hints: Callable[[int, int], str] | None = None,
) -> Markup:
    """Cells whose colour is as strong as their value is large.

    The strength is value / max of one hue, or, where `diverging`, |value| / max |value| of one hue
    above zero and another below it. A cell that holds NaN is struck through.

    Args:
      name: heading.
      values: r rows from top to bottom, c columns from left to right.
      rows: the names of the rows; not all are printed where the cells are small.
      columns: those of the columns.
      diverging: the scale goes from -max |value| to max |value|, else from 0 to the maximum.
      marked: of the shape of values: cells to set off by an outline (a ring around them where they
        are small).
      hints: what is shown when the pointer rests on cell (row, column); None for "row, column:
        value".

    Raises:
      ValueError: names or marks that don't fit the values, an infinite value, or one below zero
        on a scale that starts there.
    """
    _check(values, rows, columns, diverging, marked)
    if not values.size:
        return nothing(name, "no cells")
    known = values[~np.isnan(values)].astype(np.float64)
    limit = float(np.abs(known).max(initial=0.0)) or 1.0
    grid = _layout([short(r, 24) for r in rows], [short(c, 24) for c in columns])
    parts = [_labels(grid, rows, columns), _cells(grid, values, limit, rows, columns, hints)]
    keys = [(_scale_bar(limit, diverging), "")]
    if known.size < values.size:
        parts.append(_strokes(grid, np.isnan(values)))
        keys.append((_sample(is_gap=True), "no value"))
    if marked is not None and marked.any():
        parts.append(_marks(grid, marked))
        keys.append((_sample(is_gap=False), "marked"))
    said = f"{one_line(name)}: {len(rows)} rows by {len(columns)} columns, "
    said += f"values from {number(known.min())} to {number(known.max())}" if known.size else "empty"
    slant = max(text_width(short(c, 24)) for c in columns) * 0.77 if grid.is_tilted else 12.0
    # A tilted label starts over its cell, so only the last ones reach beyond the map.
    width = grid.left + grid.across * len(columns) + slant
    height = grid.top + grid.down * len(rows) + 2
    drawing = Markup(
        '<svg class="map" width="{:.0f}" height="{:.0f}" viewBox="0 0 {:.0f} {:.0f}" role="img" '
        'aria-label="{}">{}</svg>'
    ).format(width, height, width, height, said[:400], Markup("").join(parts))
    return figure(name, drawing, legend=legend(keys))


def _check(
    values: Float[np.ndarray, "r c"],
    rows: Sequence[str],
    columns: Sequence[str],
    diverging: bool,
    marked: Bool[np.ndarray, "..."] | None,
) -> None:
    if (len(rows), len(columns)) != values.shape:
        raise ValueError(
            f"rows and columns name {len(rows)} x {len(columns)} cells, but values is "
            f"{values.shape[0]} x {values.shape[1]}"
        )
    if marked is not None and marked.shape != values.shape:
        raise ValueError(f"marked is {marked.shape}; it must be {values.shape} as values is")
    if np.isinf(values).any():
        raise ValueError("values holds an infinite number; NaN is what stands for no value")
    if not diverging and (values < 0).any():
        raise ValueError(
            f"values goes down to {np.nanmin(values):g}, but the scale starts at 0: "
            "diverging=True has one around 0"
        )


def _layout(rows: Sequence[str], columns: Sequence[str]) -> _Grid:
    widest = max(text_width(c) for c in columns)
    across = float(np.clip(_MOST_ACROSS / len(columns), 3.5, max(34.0, min(widest + 8, 150.0))))
    down = float(np.clip(_MOST_DOWN / len(rows), 6.0, 22.0))
    across = across if across < 8 else float(int(across))
    down = down if down < 8 else float(int(down))
    is_tilted = widest + 4 > across and max(map(len, columns)) > 4
    return _Grid(
        left=float(round(max(text_width(r) for r in rows) + 10)),
        top=float(round(widest * 0.65 + 18)) if is_tilted else 20.0,
        across=across,
        down=down,
        is_tilted=is_tilted,
        each_column=every(16 / across if is_tilted else (widest + 6) / across),
        each_row=every(13 / down),
    )


def _labels(grid: _Grid, rows: Sequence[str], columns: Sequence[str]) -> Markup:
    parts = []
    for i in range(0, len(rows), grid.each_row):
        y = grid.top + grid.down * (i + 0.5)
        parts.append(
            Markup(
                '<text x="{:g}" y="{:.1f}" text-anchor="end" dominant-baseline="central">{}</text>'
            ).format(grid.left - 6, y, short(rows[i], 24))
        )
    for j in range(0, len(columns), grid.each_column):
        x, label = grid.left + grid.across * (j + 0.5), short(columns[j], 24)
        if grid.is_tilted:
            parts.append(tilted(label, x, grid.top - 6, anchor="start"))
        else:
            parts.append(
                Markup('<text x="{:.1f}" y="{:g}" text-anchor="middle">{}</text>').format(
                    x, grid.top - 6, label
                )
            )
    return Markup("").join(parts)


def _cells(
    grid: _Grid,
    values: Float[np.ndarray, "r c"],
    limit: float,
    rows: Sequence[str],
    columns: Sequence[str],
    hints: Callable[[int, int], str] | None,
) -> Markup:
    """The bed that stands for zero and a rectangle a cell, which also carries the hint."""
    gap = 1 if min(grid.across, grid.down) >= 8 else 0
    parts = [
        Markup(
            '<rect class="bed" x="{:g}" y="{:g}" width="{:g}" height="{:g}"></rect>'
        ).format(
            grid.left, grid.top, grid.across * len(columns), grid.down * len(rows)
        )
    ]  # fmt: skip
    size = Markup('width="{:g}" height="{:g}"').format(grid.across - gap, grid.down - gap)
    for i, j in np.ndindex(values.shape):
        value = float(values[i, j])
        if hints is None:
            hint = f"{rows[i]}, {columns[j]}: {'no value' if np.isnan(value) else number(value)}"
        else:
            hint = hints(i, j)
        parts.append(
            Markup('<rect class="{}" x="{:g}" y="{:g}" {}{}>{}</rect>').format(
                _hue(value),
                grid.left + grid.across * j,
                grid.top + grid.down * i,
                size,
                _strength(value, limit),
                title(hint),
            )
        )
    return Markup("").join(parts)


def _hue(value: float) -> str:
    if np.isnan(value):
        return "gap"
    return "over" if value >= 0 else "under"


def _strength(value: float, limit: float) -> Markup:
    if np.isnan(value):
        return Markup()
    return Markup(' fill-opacity="{:.3f}"').format(abs(value) / limit)


def _strokes(grid: _Grid, where: Bool[np.ndarray, "r c"]) -> Markup:
    """One path of the strokes through the cells that hold nothing."""
    path = "".join(
        f"M{grid.left + grid.across * j:g} {grid.top + grid.down * (i + 1):g}"
        f"l{grid.across:g} {-grid.down:g}"
        for i, j in np.argwhere(where).tolist()
    )
    return Markup('<path class="strokes" d="{}"></path>').format(path)


def _marks(grid: _Grid, where: Bool[np.ndarray, "r c"]) -> Markup:
    parts = []
    for i, j in np.argwhere(where).tolist():
        x, y = grid.left + grid.across * j, grid.top + grid.down * i
        if min(grid.across, grid.down) < 9:
            parts.append(
                Markup('<circle class="spot" cx="{:g}" cy="{:g}" r="{}"></circle>').format(
                    x + grid.across / 2, y + grid.down / 2, 4
                )
            )
        else:
            parts.append(
                Markup(
                    '<rect class="ring" x="{:g}" y="{:g}" width="{:g}" height="{:g}"></rect>'
                ).format(x, y, grid.across - 1, grid.down - 1)
            )
    return Markup("").join(parts)


def _scale_bar(limit: float, diverging: bool) -> Markup:
    """The colours from the least to the largest value, with three numbers below."""
    low = -limit if diverging else 0.0
    steps = [low + (limit - low) * k / 20 for k in range(21)]
    parts = [
        Markup('<rect class="{}" x="{}" y="1" width="9" height="11"{}></rect>').format(
            _hue(step), 30 + 9 * k, _strength(step, limit)
        )
        for k, step in enumerate(steps)
    ]
    numbers = [number(step) for step in (low, (low + limit) / 2, limit)]
    parts += [
        Markup('<text x="{:g}" y="25" text-anchor="middle">{}</text>').format(x, shown)
        for x, shown in zip((34.5, 124.5, 214.5), numbers, strict=True)
    ]
    return Markup(
        '<svg class="scale" width="250" height="28" viewBox="0 0 250 28" role="img" '
        'aria-label="colours from {} to {}">{}</svg>'
    ).format(numbers[0], numbers[2], Markup("").join(parts))


def _sample(is_gap: bool) -> Markup:
    inner = (
        '<rect class="gap" x="1" y="1" width="12" height="12"></rect>'
        '<path class="strokes" d="M1 13l12 -12"></path>'
        if is_gap
        else '<rect class="ring" x="2" y="2" width="10" height="10"></rect>'
    )
    return Markup(
        '<svg width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">{}</svg>'
    ).format(Markup(inner))
