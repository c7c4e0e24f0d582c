"""Charts: round ticks, broken curves, thinning that keeps the peaks."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from moe_jax.reports import Bar, bar_chart, line_chart
from moe_jax.reports.plots import nice_ticks, thin, tick_labels
from tests.reports.reading import Page


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1, [0, 0.5, 1.0]),
        (0.12, 0.38, [0.1, 0.2, 0.3, 0.4]),
        (0, 0, [0, 0.5, 1.0]),
        (10, 10, [0, 10, 20]),
        (-2, 5, [-2.5, 0, 2.5, 5]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_enclose_the_values(low, width):
    high = low + width
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    "ticks, labels",
    [
        ([0, 0.5, 1.0], ["0", "0.5", "1"]),
        ([11.42, 11.425, 11.43], ["11.42", "11.425", "11.43"]),
        ([0.001, 0.01, 0.1], ["0.001", "0.01", "0.1"]),
        ([0.1 + 0.2, 0.4], ["0.3", "0.4"]),
        ([0, 2e6], ["0", "2e+06"]),
        ([100, 200, 300], ["100", "200", "300"]),
    ],
)
def test_tick_labels_differ_and_are_short(ticks, labels):
    assert tick_labels(ticks) == labels


def test_thinning_keeps_the_ends_and_the_peaks():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[5_001] = (5_001.0, 9.0)
    points[7_003] = (7_003.0, -9.0)
    kept = thin(points, 100)
    assert len(kept) <= 100
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {points[5_001], points[7_003]} <= set(kept)
    assert kept == sorted(kept)
    assert thin(points[:50], 100) == points[:50]


def polylines(chart):
    return [
        [tuple(map(float, pair.split(","))) for pair in found.split(" ")]
        for found in re.findall(r'points="([^"]*)"', chart)
    ]


def test_a_curve_falls_where_its_values_fall():
    (line,) = polylines(line_chart("loss", [(1, 3.0), (2, 2.0), (3, 1.0)]))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    # y grows downwards; equal steps are equally far apart.
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)
    assert line[0][1] < line[2][1]


def test_a_wide_range_is_drawn_in_logarithms():
    (line,) = polylines(line_chart("loss", [(1, 100.0), (2, 10.0), (3, 1.0)]))
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1], abs=0.2)


def test_what_is_not_finite_breaks_the_curve():
    chart = line_chart(
        "loss", [(1, 1.0), (2, 2.0), (3, math.nan), (4, 3.0), (5, math.inf), (6, 1.0), (7, 2.0)]
    )
    assert [len(line) for line in polylines(chart)] == [2, 2]
    assert chart.count("<circle") == 1
    assert not re.search(r"\bnan\b", chart)


@pytest.mark.parametrize("points", [[], [(1, math.nan)]])
def test_nothing_to_draw_is_said(points):
    assert "no finite value" in line_chart("loss", points)


def test_names_are_escaped():
    for chart in (line_chart("<b>&\x00", [(1, 1.0)]), bar_chart([Bar("<b>&\x00", 1.0, colour=2)])):
        assert isinstance(chart, Markup)
        assert "<b>&" not in chart
        assert any("<b>&␀" in text for text in Page(chart).text())


def test_bars_are_as_long_as_their_values():
    chart = bar_chart([Bar("a", 0.5), Bar("b", 0.25, own=True), Bar("c", 0.0, shown="none")])
    widths = [float(w) for w in re.findall(r'<rect class="bar" width="([\d.]+)%', chart)]
    assert widths == [85.0, 42.5, 0.0]
    assert Page(chart).text(tag="text") == ["0.500", "0.250", "none"]
    assert not re.search(r"\bnan\b", bar_chart([Bar("a", 0.0)]))
    assert Page(bar_chart([])).text(tag="text") == []
