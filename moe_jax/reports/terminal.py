"""Texts with coloured words, keys and tables, for a terminal, a pipe or a file.

Where colours can't be shown (a pipe, `NO_COLOR`, a dumb terminal) the same is said in brackets:
"[3 cheese: Cheddar is hard]". Text from outside is only ever a `rich.text.Text`, never markup, and
its control characters are spelled out, so it can't drive the terminal.
"""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe_jax.reports.escape import one_line, visible
from moe_jax.reports.page import Column, number
from moe_jax.reports.palette import LIGHT_INK, swatch, weave
from moe_jax.reports.tokens import Key, Span, check_spans

# What tells a thirteenth factor from the first, which has the same colour.
_WEAVES = ("", " underline", " italic", " underline italic")


def shows_colour(console: Console) -> bool:
    """Does this console show colours (a terminal, and nobody asked for none)?"""
    return console.color_system is not None and not console.no_color


def coloured_text(text: str, spans: Sequence[Span], names: Sequence[str], *, colour: bool) -> Text:
    """A text with its words coloured by factor, or in brackets with the factor's name.

    Neighbouring words of one factor are one stretch; each begins with the factor's number.

    Args:
      text: the text.
      spans: its words in order; characters in none of them are left as they are.
      names: name of each factor.
      colour: colours, or brackets?

    Raises:
      ValueError: spans that overlap, are out of order or outside the text.
    """
    check_spans(text, spans)
    out, position = Text(), 0
    for first, last in _stretches(spans):
        factor, start, end = spans[first].factor, spans[first].start, spans[last].end
        out.append(visible(text[position:start]))
        inside = visible(text[start:end])
        if colour:
            # No space after the number: a line must not break between it and its words.
            out.append(f" {factor}:", style=_chip(factor))
            out.append(inside + " ", style=_fill(factor))
        else:
            out.append(f"[{_called(factor, names)}: {inside}]")
        position = end
    out.append(visible(text[position:]))
    return out


def legend(keys: Sequence[Key]) -> Columns:
    """The factors by number and name in their colours, side by side."""
    entries = []
    for key in keys:
        entry = Text()
        entry.append(f" {key.colour} ", style=_chip(key.colour))
        entry.append(f" {one_line(key.name)} ", style=_fill(key.colour))
        entries.append(entry)
    return Columns(entries)


def show_table(
    console: Console,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | int | float | Text]],
    *,
    own: int | None = None,
) -> None:
    """Print a table; numbers to the right with three decimals, an int as it is.

    Args:
      console: where to.
      title: what the table shows.
      columns: its columns; where there is no room those of words are cut off, never numbers.
      rows: its cells.
      own: row to be set off in bold.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = [
        max(cell_len(text) for text in [one_line(column.title), *(row[i].plain for row in cells)])
        for i, column in enumerate(columns)
    ]
    roomy = sum(widths) + 2 * (len(columns) - 1) <= console.width
    shown = Table(
        title=Text(one_line(title), style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1 if roomy else 0, 0, 0),
    )
    for column, width in zip(columns, _fitted(columns, widths, console.width), strict=True):
        shown.add_column(
            Text(one_line(column.title)),
            justify="right" if column.number else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=width,
        )
    for i, row in enumerate(cells):
        shown.add_row(*row, style="bold" if i == own else None)
    console.print(shown)


def factor_chip(factor: int, *, colour: bool) -> Text:
    """The number of a factor in its colour."""
    return Text(f" {factor} ", style=_chip(factor)) if colour else Text(str(factor))


def _fitted(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The widths, those of words cut (the widest first, to 8 at least) until they fit."""
    fitted = list(widths)
    excess = sum(widths) + len(widths) - 1 - room
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        if excess > 0 and not columns[i].number and fitted[i] > 8:
            cut = min(excess, fitted[i] - 8)
            fitted[i], excess = fitted[i] - cut, excess - cut
    return fitted


def _stretches(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """First and last index of each maximal run of spans of one factor."""
    found: list[tuple[int, int]] = []
    for i, span in enumerate(spans):
        if found and spans[i - 1].factor == span.factor:
            found[-1] = found[-1][0], i
        else:
            found.append((i, i))
    return found


def _called(factor: int, names: Sequence[str]) -> str:
    name = one_line(names[factor])
    return name if name == f"factor {factor}" else f"{factor} {name}"


def _fill(factor: int) -> str:
    return f"{LIGHT_INK} on {swatch(factor).light_fill}{_WEAVES[weave(factor)]}"


def _chip(factor: int) -> str:
    return f"bold #ffffff on {swatch(factor).light_line}"


def _cell(content: str | int | float | Text) -> Text:
    if isinstance(content, Text):
        return content
    if isinstance(content, str):
        return Text(one_line(content))
    return Text(number(content) if isinstance(content, int) else f"{content:.3f}")
