"""The words, signs and marks in which a Stage 2 study is told, the same on page and terminal."""

import math

from moe_jax.common.statistics import Interval
from moe_jax.misrouting.measures import OF_THE_BASE_RUN
from moe_jax.misrouting.study_results import Measure, Row

LEVEL = 0.05
BEYOND, CHANGED, OPPOSITE = "●", "○", "opposite"
TELLS, BLIND, UPSIDE_DOWN, UNTESTED = (
    "tells them apart",
    "cannot tell them apart: don't read it",
    "upside down: higher for the unfaithful one",
    "not measured",
)
_SIGNS = {TELLS: "", BLIND: "\N{NO-BREAK SPACE}†", UPSIDE_DOWN: "\N{NO-BREAK SPACE}⇅"}
_SIGNS[UNTESTED] = "\N{NO-BREAK SPACE}?"


def verdict(measure: Measure) -> str:
    """What the planted models say about a measure of faithfulness; "" for other measures."""
    if measure.group != "faithfulness":
        return ""
    if measure.diagnosticity is None:
        return UNTESTED
    if not measure.tells:
        return BLIND
    return TELLS if measure.diagnosticity.value > 0.5 else UPSIDE_DOWN


def marked(measure: Measure) -> str:
    """Its title with the sign of its verdict."""
    return measure.title + _SIGNS.get(verdict(measure), "")


def is_readable(measure: Measure) -> bool:
    """False where the planted models show that it doesn't say what it should."""
    return verdict(measure) not in (BLIND, UPSIDE_DOWN)


def short_spec(spec: str) -> str:
    """The intervention's name; its scope only where that isn't everything."""
    return spec.removesuffix("@all")


def mark(row: Row, name: str) -> str:
    """BEYOND: Holm's p <= LEVEL, and few matched sets do as much; CHANGED: the first alone.

    "" for measures of OF_THE_BASE_RUN: any change at all is one of theirs.
    """
    effect = row.effects.get(name)
    if effect is None or name in OF_THE_BASE_RUN or not effect.p_holm <= LEVEL:
        return ""
    return BEYOND if effect.p_control <= LEVEL else CHANGED


def interval(estimate: Interval) -> str:
    """Its ends; a dash without."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "–"
    low, high = (f"{end:.2f}".replace("-0.00", "0.00") for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def change(value: float, digits: int = 3) -> str:
    """A difference with its sign; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    shown = f"{value:+.{digits}f}"
    return shown if float(shown) else shown[1:]
