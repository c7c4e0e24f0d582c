"""Charts for self-contained pages: maps, lines and points with intervals, and shaded texts.

All are SVG or HTML without style attributes, links or ids, so that they may stand in any page of
`moe_jax.reports.page`, several times over; their colours are those of the page's stylesheet.
"""

from moe_jax.reports.heat_map import heat_map
from moe_jax.reports.interval_lines import Series, interval_lines
from moe_jax.reports.interval_scatter import ScatterPoint, interval_scatter
from moe_jax.reports.routed_text import RoutedToken, routed_text

__all__ = [
    "RoutedToken",
    "ScatterPoint",
    "Series",
    "heat_map",
    "interval_lines",
    "interval_scatter",
    "routed_text",
]
