"""A page is one file: nothing from elsewhere, everything from outside escaped."""

import base64
import hashlib
import math
import re

import pytest
from markupsafe import Markup

from moe_jax.reports import Cell, Column, Section, page, render_page, table
from tests.reports.reading import HOSTILE, Page


def sections(body="", lead=""):
    return [
        Section("one", "First", Markup("<p>{}</p>").format(body), lead),
        Section("two", "Second", Markup("")),
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_titles_and_texts_are_escaped(name):
    text = HOSTILE[name]
    html = render_page(text, [*sections(lead=text)], subtitle=text)
    html.encode("utf-8") if name != "surrogate" else None
    found = Page(html)
    assert found.text(tag="h1") == [page.one_line(text)]
    assert found.text(style="subtitle") == [page.one_line(text)]
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)


def test_nothing_comes_from_elsewhere():
    html = render_page("t", sections(), num_colours=20)
    found = Page(html)
    assert not any(tag in ("link", "img", "iframe", "base", "form") for tag, _ in found.tags)
    for _, attributes in found.tags:
        assert not {"src", "action", "style"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?:", html)


def test_the_policy_allows_this_script_and_style_only():
    html = render_page("t", sections(), num_colours=3)
    found = Page(html)
    (policy,) = [
        a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = found.text(tag=tag)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_table_keeps_numbers_for_sorting():
    columns = [Column("Name", number=False), Column("F1", "a <hint>"), Column("Count")]
    rows = [["<i>", 0.12345, 1200], [Cell(Markup("<b>x</b>"), "y"), math.nan, 0]]
    found = Page(table(columns, rows, caption="A & B", own=1))
    cells = [(a["data-v"], a.get("class")) for tag, a in found.tags if tag == "td"]
    assert cells == [
        ("<i>", None),
        ("0.12345", "num"),
        ("1200", "num"),
        ("y", None),
        ("", "num"),
        ("0", "num"),
    ]
    assert found.text(tag="td") == ["<i>", "0.123", "1,200", "x", "–", "0"]
    assert found.text(tag="caption") == ["A & B"]
    assert [a.get("class") for tag, a in found.tags if tag == "tr"] == [None, None, "own"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        table([Column("a")], [[1.0, 2.0]])


@pytest.mark.parametrize(
    "value, shown",
    [(0.0, "0"), (3, "3"), (12345, "12,345"), (0.5, "0.500"), (11.163, "11.16"), (0.00034, "0.00034"),
     (-0.25, "-0.250"), (math.nan, "–"), (math.inf, "–"), (1234.5, "1,234.50")],
)  # fmt: skip
def test_figures_are_short(value, shown):
    assert page.number(value) == shown


def test_blocks_escape_what_they_are_given():
    bad = "<script>x</script>"
    blocks = [
        page.tiles([(bad, 1.0, bad)]), page.definitions({bad: bad}), page.verbatim(bad, bad), page.paragraph(bad),
    ]  # fmt: skip
    for block in blocks:
        found = Page(block)
        assert not any(tag == "script" for tag, _ in found.tags)
        assert any(bad in text for text in found.text())
