"""Colours of factors: twelve that colour-blind readers can tell apart, on light and dark paper.

The fills were found by simulated annealing that maximises the smallest OKLab distance of any two,
as seen with normal, protan, deutan and tritan vision (simulation of Machado, Oliveira and Fernandes
2009), and were then put in the order in which each is farthest from those before it. Twelve is as
many as can be told apart at all, so a factor is never known by its colour alone: its number is
printed beside it, and a thirteenth factor gets the first colour again with stripes over it.
"""

from typing import NamedTuple

LIGHT_PAPER, LIGHT_INK = "#ffffff", "#14171b"
DARK_PAPER, DARK_INK = "#15181d", "#f2f4f7"


class Swatch(NamedTuple):
    """One colour in its four uses, each "#rrggbb".

    Attributes:
      light_fill: behind LIGHT_INK text.
      light_line: for lines, bars and words on LIGHT_PAPER.
      dark_fill: behind DARK_INK text.
      dark_line: for lines, bars and words on DARK_PAPER.
    """

    light_fill: str
    light_line: str
    dark_fill: str
    dark_line: str


PALETTE = (
    Swatch("#7efecd", "#008359", "#05362d", "#7efecd"),
    Swatch("#9579d4", "#8064bd", "#7059b4", "#967ad6"),
    Swatch("#e98b5a", "#b35a27", "#913802", "#e98b5a"),
    Swatch("#319ea0", "#008082", "#07747f", "#279fa1"),
    Swatch("#fbe173", "#8a7100", "#7e6822", "#fbe173"),
    Swatch("#bcd9fe", "#4876ad", "#08519c", "#a9daff"),
    Swatch("#a98818", "#8f6e00", "#573700", "#a98818"),
    Swatch("#54c9e3", "#007e96", "#08485f", "#54c9e3"),
    Swatch("#b9c85b", "#6e7a00", "#4e573a", "#b9c85b"),
    Swatch("#f5abb3", "#a95d67", "#9c5068", "#fca7b0"),
    Swatch("#d16673", "#b9515f", "#5d0100", "#d46976"),
    Swatch("#92a3fd", "#606dc2", "#3b1e6f", "#92a3fd"),
)

_WEAVES = (
    "",
    "repeating-linear-gradient(45deg,var(--weft) 0 2px,transparent 2px 6px)",
    "repeating-linear-gradient(-45deg,var(--weft) 0 1px,transparent 1px 4px)",
    "repeating-linear-gradient(90deg,var(--weft) 0 1px,transparent 1px 5px)",
)


def swatch(index: int) -> Swatch:
    """Colour of factor `index` (from 0); they repeat after the last."""
    return PALETTE[index % len(PALETTE)]


def weave(index: int) -> int:
    """Which of four patterns goes over the colour: 0 (plain) for the first twelve factors."""
    return index // len(PALETTE) % len(_WEAVES)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two "#rrggbb" colours, 1 to 21 (WCAG 2.2: (L1 + 0.05) / (L2 + 0.05))."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def stylesheet(num_colours: int) -> str:
    """CSS for `num_colours` colours.

    `.k3` is colour 3 itself (keys, bars). `.f3` is a word whose factor is 3 and `.g3` one whose
    gold label has colour 3: inside `.by-factor` or `.by-gold` that sets `--fill`; `.g3` also sets
    `--gold`, the colour of the underline.
    """
    rules = []
    for i in range(num_colours):
        s = swatch(i)
        fill = f"--fill:light-dark({s.light_fill},{s.dark_fill})"
        line = f"light-dark({s.light_line},{s.dark_line})"
        pattern = f";--weave:{_WEAVES[weave(i)]}" if weave(i) else ""
        rules += [
            f".k{i}{{{fill};--line:{line}{pattern}}}",
            f".by-factor .f{i},.by-gold .g{i}{{{fill}{pattern}}}",
            f".g{i}{{--gold:{line}}}",
        ]
    return "\n".join(rules)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
