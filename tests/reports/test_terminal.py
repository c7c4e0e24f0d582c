"""Terminal output: colours or brackets, and no text that drives the terminal."""

import io
import re

import pytest
from rich.console import Console

from moe_jax.reports import Column, Key, Span, coloured_text, show_table, visible
from moe_jax.reports.terminal import factor_chip, legend, shows_colour
from tests.reports.reading import HOSTILE

NAMES = ["cheese", "factor 1", "popes"]


def console(*, colour, width=80):
    return Console(
        file=io.StringIO(), force_terminal=colour, color_system="truecolor" if colour else None,
        width=width, legacy_windows=False, _environ={},
    )  # fmt: skip


def printed(out, *items, **options):
    out.print(*items, **options)
    return out.file.getvalue()


def spans(*found):
    return [Span(a, b, [float(k == factor) for k in range(3)]) for a, b, factor in found]


def test_without_colours_the_factor_is_said_in_brackets():
    text = coloured_text(
        "the curd is cut. lava!",
        spans((0, 3, 0), (4, 8, 0), (9, 11, 1), (12, 16, 2)),
        NAMES,
        colour=False,
    )
    assert text.plain == "[0 cheese: the curd] [factor 1: is] [2 popes: cut.] lava!"
    assert not text.spans


def test_with_colours_each_stretch_begins_with_its_number():
    text = coloured_text("the curd is", spans((0, 3, 0), (4, 8, 0), (9, 11, 1)), NAMES, colour=True)
    assert text.plain == " 0:the curd   1:is "
    shown = printed(console(colour=True), text)
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).split() == ["0:the", "curd", "1:is"]
    assert "48;2;126;254;205" in shown  # the first fill, #7efecd


def test_a_thirteenth_factor_looks_different_from_the_first():
    chips = [str(factor_chip(i, colour=True).style) for i in range(2)]
    assert chips[0] != chips[1]
    probs = [[0.0] * 13, [0.0] * 13]
    probs[0][0] = probs[1][12] = 1.0
    found = [Span(0, 1, probs[0]), Span(2, 3, probs[1])]
    text = coloured_text("a b", found, [f"f{i}" for i in range(13)], colour=True)
    fills = [str(s.style) for s in text.spans if "bold" not in str(s.style)]
    assert fills[1] == fills[0] + " underline"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_shown_as_it_is(name):
    text = HOSTILE[name]
    shown = coloured_text(text, spans((0, 1, 0), (2, 4, 2)), [text, text, text], colour=False)
    out = printed(console(colour=False, width=40_000), shown, soft_wrap=True)
    assert visible(text[4:]).expandtabs() in out.replace("\t", "        ") or "\t" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out)
    assert "\n" not in out.strip("\n") or "\n" in text


def test_hostile_names_do_not_drive_the_terminal():
    out = console(colour=False, width=200)
    bad = "[bold]x[/bold] \x1b[2J \n next"
    show_table(out, bad, [Column(bad, number=False), Column("n")], [[bad, 1.0], ["b", 2]])
    shown = out.file.getvalue()
    assert "\x1b" not in shown
    assert "[bold]x[/bold] ␛[2J ␊ next" in shown
    assert legend([Key(0, bad)]).renderables[0].plain == " 0  [bold]x[/bold] ␛[2J ␊ next "
    coloured = printed(console(colour=True, width=200), legend([Key(0, bad)]))
    assert "\x1b[2J" not in coloured
    assert "[bold]x[/bold]" in coloured


@pytest.mark.parametrize("width", [60, 200])
def test_numbers_are_never_cut_off(width):
    out = console(colour=False, width=width)
    columns = [Column("Label", number=False), *[Column(f"n{i}") for i in range(7)]]
    show_table(out, "", columns, [["a rather long label " * 3, *[0.125] * 7]], own=0)
    assert out.file.getvalue().count("0.125") == 7
    assert all(len(line) <= width for line in out.file.getvalue().splitlines())


@pytest.mark.parametrize(
    "environment, colour",
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_only_where_they_are_wanted(environment, colour):
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ=environment)
    assert shows_colour(terminal) is colour
    assert not shows_colour(Console(file=io.StringIO(), _environ=environment))


def test_a_break_never_parts_a_number_from_its_words():
    text = coloured_text(
        "aaaa bbbb cccc", spans((0, 4, 0), (5, 9, 1), (10, 14, 2)), NAMES, colour=True
    )
    for width in range(8, 30):
        shown = re.sub(r"\x1b\[[\d;]*m", "", printed(console(colour=True, width=width), text))
        for word in ("0:aaaa", "1:bbbb", "2:cccc"):
            assert word in shown
