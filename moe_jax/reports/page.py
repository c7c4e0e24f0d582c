"""One self-contained page: sections of tables, bars, charts and texts, in one style.

Nothing in the page comes from elsewhere, and its content security policy forbids the browser to
fetch anything or to run any script but the one whose hash it names, so a hostile text that got
through the escaping would still be inert.
"""

import base64
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from moe_jax.reports.escape import one_line, visible
from moe_jax.reports.palette import stylesheet


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      anchor: its name in the address, letters and hyphens.
      title: its heading.
      body: its content.
      lead: one sentence under the heading.
    """

    anchor: str
    title: str
    body: Markup
    lead: str = ""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      title: its heading.
      hint: what it holds, shown when the pointer rests on the heading.
      number: numbers stand to the right and are sorted by value, the largest first.
      wide: a column of words that needs room.
    """

    title: str
    hint: str = ""
    number: bool = True
    wide: bool = False


class Cell(NamedTuple):
    """A cell that is shown in another way than it is sorted.

    Attributes:
      html: what is shown.
      value: what it is sorted by.
    """

    html: Markup
    value: int | float | str


def render_page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", num_colours: int = 0
) -> str:
    """The whole page as text, to be written as UTF-8.

    Args:
      title: heading and window title.
      sections: its parts, in order.
      subtitle: one line under the heading.
      num_colours: how many colours of factors and labels the page uses.
    """
    style, script = _file("page.css") + stylesheet(num_colours), _file("page.js")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=one_line(title),
            subtitle=one_line(subtitle),
            sections=sections,
            policy=policy,
            style=Markup(style),
            script=Markup(script),
        )
    )


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell | str | int | float]],
    *,
    caption: str = "",
    own: int | None = None,
) -> Markup:
    """A table that is sorted by a click on a heading.

    Args:
      columns: its columns.
      rows: for each row its cells; a number is shown with three decimals (an int as it is, NaN as
        a dash), a string as it is.
      caption: what the table shows.
      own: row to be set off in bold.
    """
    head = Markup("").join(
        Markup('<th scope="col"{}{}><button type="button">{}</button></th>').format(
            Markup(' class="num"') if c.number else "",
            Markup(' title="{}"').format(c.hint) if c.hint else "",
            c.title,
        )
        for c in columns
    )
    body = Markup("").join(
        Markup("<tr{}>{}</tr>").format(
            Markup(' class="own"') if i == own else "",
            Markup("").join(_cell(c, x) for c, x in zip(columns, row, strict=True)),
        )
        for i, row in enumerate(rows)
    )
    return Markup(
        '<div class="scroll"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(Markup("<caption>{}</caption>").format(caption) if caption else "", head, body)


def tiles(figures: Sequence[tuple[str, int | float, str]]) -> Markup:
    """Figures side by side, each (name, value, what it means)."""
    return Markup('<div class="tiles">{}</div>').format(
        Markup("").join(
            Markup('<div class="tile"><span>{}</span><b>{}</b><small>{}</small></div>').format(
                name, number(value), meaning
            )
            for name, value, meaning in figures
        )
    )


def definitions(entries: Mapping[str, str]) -> Markup:
    """A list of terms with their meanings."""
    return Markup("<dl>{}</dl>").format(
        Markup("").join(
            Markup("<dt>{}</dt><dd>{}</dd>").format(*entry) for entry in entries.items()
        )
    )


def verbatim(text: str, summary: str) -> Markup:
    """A text as it is, folded away under a line that says what it is."""
    return Markup("<details><summary>{}</summary><pre>{}</pre></details>").format(
        summary, visible(text)
    )


def paragraph(text: str, style: str = "") -> Markup:
    """A paragraph of plain text; the style "missing" sets off what the page can't show."""
    return Markup("<p{}>{}</p>").format(
        Markup(' class="{}"').format(style) if style else "", visible(text)
    )


def number(value: int | float) -> str:
    """A figure as people read it: whole numbers whole, few digits, a dash for none."""
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:,.{3 if abs(value) < 1 else 2}f}"


def _cell(column: Column, content: Cell | str | int | float) -> Markup:
    if isinstance(content, Cell):
        html, value = content
    elif isinstance(content, str):
        html, value = Markup("<bdi>{}</bdi>").format(one_line(content)), one_line(content)
    else:
        finite = math.isfinite(content)
        shown = number(content) if isinstance(content, int) or not finite else f"{content:.3f}"
        html, value = Markup.escape(shown), content if finite else ""
    kind = Markup(' class="num"') if column.number else ""
    kind = kind or (Markup(' class="wide"') if column.wide else "")
    return Markup('<td{} data-v="{}">{}</td>').format(kind, value, html)


def _hash(content: str) -> str:
    """The source expression by which a content security policy allows an inline block."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


_TEMPLATES = Path(__file__).parent / "templates"
