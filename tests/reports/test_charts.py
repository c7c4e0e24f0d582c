"""Charts: places and colours against values worked by hand, hostile names, gaps, bad input."""

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.reports import Section, one_line, render_page, swatch, visible
from moe_jax.reports.chart_parts import HUES, every, ticks_with_zero
from moe_jax.reports.charts import (
    RoutedToken,
    ScatterPoint,
    Series,
    heat_map,
    interval_lines,
    interval_scatter,
    routed_text,
)
from moe_jax.reports.label_places import Box, place_labels
from tests.reports.reading import HOSTILE, Page

NAN = math.nan


def tree(chart):
    return ElementTree.fromstring(str(chart))


def found(chart, tag, style):
    """Elements of the drawing (not of the legend) with this tag and class."""
    drawing = tree(chart).find("div/svg")
    return [e for e in drawing.iter(tag) if style in (e.get("class") or "").split()]


def hints(elements):
    return [e.findtext("title") for e in elements]


def middle(polygon):
    """The middle of a marker with as many corners on each side."""
    pairs = [tuple(map(float, pair.split(","))) for pair in polygon.get("points").split(" ")]
    return tuple(sum(c) / len(pairs) for c in zip(*pairs, strict=True))


def cells(chart):
    """By hint: (class, x, y, opacity)."""
    return {
        e.findtext("title"): (
            e.get("class"), float(e.get("x")), float(e.get("y")), e.get("fill-opacity"),
        )
        for e in tree(chart).find("div/svg").iter("rect")
        if e.find("title") is not None
    }  # fmt: skip


def test_cells_are_on_a_grid_and_as_strong_as_their_value():
    values = np.array([[0.0, 1.0, 2.0], [4.0, 3.0, 0.5]])
    found_cells = cells(heat_map("m", values, rows=["a", "b"], columns=["x", "y", "z"]))
    strengths = {hint: float(cell[3]) for hint, cell in found_cells.items()}
    assert strengths == {
        "a, x: 0": 0, "a, y: 1": 0.25, "a, z: 2": 0.5,
        "b, x: 4": 1, "b, y: 3": 0.75, "b, z: 0.500": 0.125,
    }  # fmt: skip
    x = [found_cells[h][1] for h in ("a, x: 0", "a, y: 1", "a, z: 2")]
    assert x[2] - x[1] == x[1] - x[0] > 0
    assert [found_cells[h][1] for h in ("b, x: 4", "b, y: 3", "b, z: 0.500")] == x
    assert found_cells["b, x: 4"][2] > found_cells["a, x: 0"][2]


def test_a_diverging_scale_is_symmetric_around_zero():
    values = np.array([[-0.5, -0.25, 0.0, 0.25, 0.5, 1.0]], np.float32)
    chart = heat_map("m", values, rows=["r"], columns=list("abcdef"), diverging=True)
    styles = [(cell[0], float(cell[3])) for cell in cells(chart).values()]
    assert styles == [
        ("under", 0.5), ("under", 0.25), ("over", 0), ("over", 0.25), ("over", 0.5), ("over", 1),
    ]  # fmt: skip
    assert Page(chart).text(tag="svg", style="scale") == ["-101"]


def test_marked_and_missing_cells_are_set_off():
    values = np.array([[1.0, NAN], [2.0, 3.0]])
    marked = np.array([[False, False], [True, False]])
    chart = heat_map("m", values, rows=["a", "b"], columns=["x", "y"], marked=marked)
    by_hint = cells(chart)
    (ring,) = found(chart, "rect", "ring")
    assert (float(ring.get("x")), float(ring.get("y"))) == by_hint["b, x: 2"][1:3]
    assert by_hint["a, y: no value"][0] == "gap"
    (strokes,) = found(chart, "path", "strokes")
    assert strokes.get("d").count("M") == 1
    assert Page(chart).text(tag="li")[1:] == ["no value", "marked"]
    (drawing,) = [a for t, a in Page(chart).tags if t == "svg" and a.get("class") == "map"]
    assert drawing["aria-label"] == "m: 2 rows by 2 columns, values from 1 to 3"


def test_hints_may_come_from_elsewhere():
    chart = heat_map(
        "m", np.ones((1, 2)), rows=["a"], columns=["x", "y"], hints=lambda r, c: f"<{r}{c}>"
    )
    assert list(cells(chart)) == ["<00>", "<01>"]


def test_a_large_map_keeps_every_cell_and_its_labels_apart():
    rows, columns = [f"layer {i}" for i in range(64)], [str(i) for i in range(256)]
    marked = np.zeros((64, 256), bool)
    marked[60, 200] = True
    values = np.arange(64 * 256.0).reshape(64, 256)
    chart = heat_map("m", values, rows=rows, columns=columns, marked=marked)
    assert len(found(chart, "rect", "over")) == 64 * 256
    texts = tree(chart).find("div/svg").findall("text")
    across = [float(e.get("x")) for e in texts if e.get("text-anchor") == "middle"]
    down = [float(e.get("y")) for e in texts if e.get("text-anchor") == "end"]
    assert min(b - a for a, b in itertools.pairwise(across)) > 3 * 7
    assert min(b - a for a, b in itertools.pairwise(down)) >= 12
    width, height = (float(tree(chart).find("div/svg").get(k)) for k in ("width", "height"))
    assert width < 1000
    assert height < 650
    (spot,) = found(chart, "circle", "spot")
    _, x, y, _ = cells(chart)[f"layer 60, 200: {60 * 256 + 200:,}"]
    assert 0 < float(spot.get("cx")) - x < 4
    assert 0 < float(spot.get("cy")) - y < 9


@pytest.mark.parametrize("value", [0.0, NAN])
def test_maps_without_any_strength(value):
    chart = heat_map("m", np.full((2, 2), value), rows=["a", "b"], columns=["x", "y"])
    assert {cell[3] for cell in cells(chart).values()} == {"0.000" if value == 0 else None}
    assert not re.search(r"\bnan\b", str(chart))


def test_a_map_without_cells_says_so():
    assert Page(heat_map("m", np.zeros((0, 3)), rows=[], columns=list("abc"))).text(tag="p") == [
        "no cells"
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"rows": ["a"]}, "name 1 x 2 cells, but values is 2 x 2"),
        ({"marked": np.zeros((2, 3), bool)}, r"marked is \(2, 3\)"),
        ({"values": np.array([[1, np.inf], [0, 0]])}, "infinite"),
        ({"values": np.array([[1, -0.5], [NAN, 0]])}, "down to -0.5"),
    ],
)
def test_bad_maps_are_refused(change, words):
    given = {"values": np.ones((2, 2)), "rows": ["a", "b"], "columns": ["x", "y"], **change}
    with pytest.raises(ValueError, match=words):
        heat_map("m", **given)


def bars(path):
    """Each upright bar of a path as (x, lower end, upper end)."""
    return [
        tuple(map(float, bar)) for bar in re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", path.get("d"))
    ]


def test_points_and_bars_are_where_the_axis_has_their_values():
    one = Series("one", [0.0, 1.0, 2.0], [0.0, 0.5, 2.0], [1.0, 1.5, 4.0])
    chart = interval_lines("n", ["a", "b", "c"], [one], y_title="height")
    levels = {
        float(text.text): float(text.get("y"))
        for text in tree(chart).find("div/svg").findall("text")
        if text.get("text-anchor") == "end"
    }
    assert list(levels) == [0, 1, 2, 3, 4]
    assert np.ptp(np.diff(list(levels.values()))) < 0.02
    points = found(chart, "polygon", "mark")
    assert hints(points) == ["one, a: 0 [0, 1]", "one, b: 1 [0.500, 1.50]", "one, c: 2 [2, 4]"]
    places = [middle(p) for p in points]
    assert [y for _, y in places] == pytest.approx([levels[0], levels[1], levels[2]], abs=0.02)
    (error,) = found(chart, "path", "error")
    half = (levels[0] - levels[1]) / 2
    wanted = [
        (levels[0], levels[1]), (levels[1] + half, levels[1] - half), (levels[2], levels[4]),
    ]  # fmt: skip
    for (x, y), bar, ends in zip(places, bars(error), wanted, strict=True):
        assert bar == pytest.approx((x, *ends), abs=0.02)
        assert y <= bar[1] + 0.02


def test_series_of_a_category_stand_side_by_side():
    series = [Series(f"s{i}", [1.0] * 5, [0.9] * 5, [1.1] * 5) for i in range(8)]
    chart = interval_lines("n", [f"level {i}" for i in range(5)], series)
    x = np.array([middle(p)[0] for p in found(chart, "polygon", "mark")]).reshape(8, 5)
    flat = x.T.ravel()  # category by category
    assert (np.diff(flat) > 5).all()
    gap_within, gap_between = x[1, 0] - x[0, 0], x[0, 1] - x[7, 0]
    assert gap_between > 1.5 * gap_within
    # Each category's name is in the middle of its markers.
    texts = [e for e in tree(chart).find("div/svg").iter("text") if "level" in e.text]
    assert x.mean(axis=0) == pytest.approx([float(e.get("x")) for e in texts], abs=0.05)
    assert Page(chart).text(tag="li") == [f"s{i}" for i in range(8)]


def test_gaps_break_the_line_and_leave_out_the_bar():
    s = Series("s", [1.0, NAN, 3.0, 4.0], [0.5, NAN, NAN, 3.5], [1.5, NAN, 3.5, math.inf])
    chart = interval_lines("n", list("abcd"), [s])
    (line,), (error,) = found(chart, "path", "series"), found(chart, "path", "error")
    assert re.sub(r"[^ML]", "", line.get("d")) == "MML"
    assert len(bars(error)) == 1
    assert hints(found(chart, "polygon", "mark")) == ["s, a: 1 [0.500, 1.50]", "s, c: 3", "s, d: 4"]
    assert not re.search(r"\b(nan|inf)\b", str(chart))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 1e9])
def test_equal_values_and_a_single_point_are_drawn_inside(value):
    lines = interval_lines("n", ["a"], [Series("s", [value], [value], [value])])
    point = ScatterPoint("p", value, value, value, value, value, value)
    for chart in (lines, interval_scatter("n", [point], x_title="x", y_title="y")):
        (mark,) = found(chart, "polygon", "mark")
        x, y = middle(mark)
        _, _, width, height = map(float, tree(chart).find("div/svg").get("viewBox").split())
        assert 0 < x < width
        assert 0 < y < height


@pytest.mark.parametrize("labels, series", [([], []), (["a"], []), ([], [Series("s", [], [], [])])])
def test_lines_without_values_say_so(labels, series):
    assert Page(interval_lines("n", labels, series)).text(tag="p") == ["no finite value"]


def test_bad_series_are_refused():
    good = Series("good", [1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="high of series 'bad' has 1 values for 2 labels"):
        interval_lines("n", ["a", "b"], [good, good._replace(name="bad", high=[1.0])])
    with pytest.raises(ValueError, match=r"'bad': low\[1\] = 3 is above high\[1\] = 2"):
        interval_lines("n", ["a", "b"], [good._replace(name="bad", low=[1.0, 3.0])])
    with pytest.raises(ValueError, match="series holds 9; 8 is"):
        interval_lines("n", ["a", "b"], [good] * 9)


def point(name, x, y, kind="", half=0.5):
    return ScatterPoint(name, x, x - half, x + half, y, y - half, y + half, kind)


def scales(chart):
    """Functions from values to places, read off the ticks."""
    texts = tree(chart).find("div/svg").findall("text")
    plain = [e for e in texts if not e.get("class")]
    across = [(float(e.text), float(e.get("x"))) for e in plain if e.get("text-anchor") == "middle"]
    up = [(float(e.text), float(e.get("y"))) for e in plain if e.get("text-anchor") == "end"]
    return [
        lambda v, t=ticks: t[0][1] + (v - t[0][0]) * (t[-1][1] - t[0][1]) / (t[-1][0] - t[0][0])
        for ticks in (across, up)
    ]


def test_points_crosses_and_steps_are_where_the_axes_have_them():
    points = [point("a", -4, 3), point("b", 2, 1), point("c", -1, -1, half=1), point("d", -2, 2)]
    front = np.array([True, True, False, True])
    chart = interval_scatter("n", points, x_title="loss", y_title="gain", front=front)
    across, up = scales(chart)
    places = {e.findtext("title").split(":")[0]: middle(e) for e in found(chart, "polygon", "mark")}
    for p in points:
        assert places[p.name] == pytest.approx((across(p.x), up(p.y)), abs=0.05)
    cross = found(chart, "path", "error")[2].get("d")
    numbers = list(map(float, re.findall(r"[\d.]+", cross)))
    wanted = [across(-2), up(-1), across(0), across(-1), up(-2), up(0)]
    assert numbers == pytest.approx(wanted, abs=0.05)
    (steps,) = found(chart, "path", "front")
    numbers = np.array(list(map(float, re.findall(r"[\d.]+", steps.get("d"))))).reshape(-1, 2)
    # From the left: down from a to the height of d, across to d, down to that of b, across to b.
    wanted = [(-4, 3), (-4, 2), (-2, 2), (-2, 1), (2, 1)]
    assert numbers == pytest.approx(np.array([(across(x), up(y)) for x, y in wanted]), abs=0.05)
    zeros = found(chart, "line", "zero")
    assert [float(z.get("x1")) for z in zeros if z.get("x1") == z.get("x2")] == pytest.approx(
        [across(0)], abs=0.05
    )
    assert [float(z.get("y1")) for z in zeros if z.get("y1") == z.get("y2")] == pytest.approx(
        [up(0)], abs=0.05
    )


def test_kinds_share_a_colour_and_controls_have_no_name():
    points = [
        point("c1", 0, 0, "control"), point("s1", 1, 1, "selected"), point("o1", 2, 2, "opposite"),
        point("s2", 3, 3, "selected"),
    ]  # fmt: skip
    chart = interval_scatter("n", points, x_title="x", y_title="y")
    styles = {
        group.find("polygon/title").text.split(":")[0]: group.get("class")
        for group in tree(chart).find("div/svg").iter("g")
    }
    assert styles == {"c1": "pale", "s1": "hue0", "o1": "hue1", "s2": "hue0"}
    assert sorted(e.text for e in found(chart, "text", "name")) == ["o1", "s1", "s2"]
    assert Page(chart).text(tag="li") == ["control", "selected", "opposite"]
    assert not Page(interval_scatter("n", [point("a", 1, 1)], x_title="", y_title="")).text(
        tag="li"
    )


def test_what_a_scatter_leaves_out_is_said():
    points = [point("a", 1, 1), point("lost", NAN, 1), *[point("same place", 2, 2)] * 40]
    page = Page(interval_scatter("n", points, x_title="x", y_title="y"))
    drawn = page.text(tag="text", style="name")
    assert drawn.count("a") == 1
    hidden = 40 - drawn.count("same place")
    assert hidden > 0
    assert page.text(tag="p") == [
        f"1 without a value left out; {hidden} of the names only where the pointer rests on the "
        "point"
    ]
    empty = interval_scatter("n", [point("lost", NAN, 1)], x_title="x", y_title="y")
    assert Page(empty).text(tag="p") == ["no point with a finite value"]
    assert Page(interval_scatter("n", [], x_title="x", y_title="y")).text(tag="p") == [
        "no point with a finite value"
    ]


def test_bad_scatters_are_refused():
    def draw(points, **options):
        return interval_scatter("n", points, x_title="x", y_title="y", **options)

    with pytest.raises(ValueError, match="point 'bad': y_low = 2 is above y_high = 1"):
        draw([point("a", 0, 0), ScatterPoint("bad", 0, 0, 0, 1, 2, 1)])
    with pytest.raises(ValueError, match=r"front is \(2,\); it must be \(1,\)"):
        draw([point("a", 0, 0)], front=np.ones(2, bool))
    with pytest.raises(ValueError, match="points are of 9 kinds"):
        draw([point("a", 0, 0, f"kind {i}") for i in range(9)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), max_size=15))
def test_labels_never_cover_each_other(places):
    within = Box(0, 0, 300, 200)
    html, hidden = place_labels([(x, y, "label") for x, y in places], [], within)
    texts = ElementTree.fromstring(f"<svg>{html}</svg>").findall("text")
    assert len(texts) + hidden == len(places)
    boxes = [
        Box(float(e.get("x")), float(e.get("y")) - 6, float(e.get("x")) + 37, float(e.get("y")) + 6)
        for e in texts
    ]
    assert all(a.overlap(b) < 3 for a, b in itertools.combinations(boxes, 2))
    assert all(b.left > -0.1 and b.right < 300.3 and b.top > -0.1 for b in boxes)


def test_a_lone_label_is_at_the_right_and_moves_when_that_is_taken():
    def x_of(taken):
        html, _ = place_labels([(100.0, 50.0, "ab")], taken, Box(0, 0, 300, 200))
        return float(ElementTree.fromstring(f"<svg>{html}</svg>").find("text").get("x"))

    assert x_of([]) == 108
    assert x_of([Box(104, 30, 200, 70)]) == pytest.approx(100 - 8 - 2 * 0.62 * 12, abs=0.1)


def test_tokens_are_shaded_by_tenths_and_underlined_where_changed():
    tokens = [
        RoutedToken("The", "expert 3", 0.0), RoutedToken(" cat", "e 1", 0.04),
        RoutedToken("\n", "", 0.05), RoutedToken("sat", "e 2", 0.55, changed=True),
        RoutedToken("", "nowhere", 0.5), RoutedToken(".", "", 1, changed=True),
    ]  # fmt: skip
    page = Page(routed_text(tokens))
    spans = [(a.get("class"), a.get("title")) for tag, a in page.tags if tag == "span"]
    assert spans == [
        (None, "expert 3"), (None, "e 1"), ("t1", None), ("t6 changed", "e 2"),
        ("t10 changed", None),
    ]  # fmt: skip
    assert page.text(tag="p") == ["The cat\nsat."]


def test_a_text_without_tokens_and_bad_shades():
    assert Page(routed_text([RoutedToken("", "n", 0.5)])).text(tag="p") == ["no tokens"]
    for shade in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=rf"tokens\[1\].shade is {shade}"):
            routed_text([RoutedToken("a", "", 0), RoutedToken("b", "", shade)])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name):
    text = HOSTILE[name]
    charts = [
        heat_map(text, np.ones((1, 1)), rows=[text], columns=[text], hints=lambda r, c: text),
        heat_map(text, np.ones((1, 1)), rows=[text], columns=[text]),
        interval_lines(text, [text], [Series(text, [1.0], [1.0], [1.0])], y_title=text),
        interval_scatter(text, [point(text, 1, 1, text)], x_title=text, y_title=text),
        routed_text([RoutedToken(text, text, 0.5)]),
    ]
    for chart in charts:
        page = Page(str(chart))
        assert {tag for tag, _ in page.tags} <= {
            "figure", "figcaption", "div", "svg", "rect", "text", "title", "path", "g", "polygon",
            "line", "ul", "li", "bdi", "p", "span",
        }  # fmt: skip
        for _, attributes in page.tags:
            assert not {"style", "href", "src", "id"} & set(attributes)
            assert not any(key.startswith("on") for key in attributes)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", str(chart))
    for chart in charts[:4]:
        assert Page(str(chart)).text(tag="figcaption") == [one_line(text)]
    assert Page(str(charts[4])).text(tag="p") == [visible(text)]


def test_a_page_of_charts_needs_nothing_from_elsewhere():
    chart = heat_map("m", np.full((1, 1), NAN), rows=["a"], columns=["b"])
    html = render_page("t", [Section("a", "A", chart)])
    assert "url(" not in html
    assert 'style="' not in html


def test_the_stylesheet_has_the_colours_of_the_palette():
    html = render_page("t", [])
    for i, index in enumerate(HUES):
        colour = swatch(index)
        line = f"light-dark({colour.light_line}, {colour.dark_line})"
        assert f".hue{i} {{ --line: {line}; }}" in html
    for tenths in range(1, 11):
        assert f".routed .t{tenths} {{ --sure: {10 * tenths}%; }}" in html


@pytest.mark.parametrize(
    "low, high, first, last",
    [(1, 3, 0, 3), (2, 3, 2, 3), (-3, -1, -3, 0), (-3, -2, -3, -2), (-1, 1, -1, 1)],
)
def test_axes_reach_zero_where_it_is_near(low, high, first, last):
    ticks = ticks_with_zero(float(low), float(high))
    assert (ticks[0], ticks[-1]) == pytest.approx((first, last), abs=0.01)


def test_labels_are_thinned_by_round_steps():
    assert [every(n) for n in (0.2, 1, 1.1, 2.5, 5.01, 11, 99)] == [1, 1, 2, 5, 10, 20, 100]
