"""Colours: readable on both papers, and different to colour-blind eyes."""

import itertools
import re

import numpy as np
import pytest

from moe_jax.reports import PALETTE, palette
from moe_jax.reports.palette import contrast

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(to_lms @ np.clip(rgb, 0, 1))


def mixed(colour, paper, share):
    """What color-mix(in srgb, colour share, transparent) looks like on the paper."""
    a, b = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (colour, paper))
    return "#" + "".join(
        f"{round(share * x + (1 - share) * y):02x}" for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    "one, other, ratio",
    [
        ("#000000", "#ffffff", 21.0),
        ("#ffffff", "#ffffff", 1.0),
        ("#777777", "#ffffff", 4.478),
        ("#ff0000", "#ffffff", 3.998),
    ],
)
def test_contrast_has_the_published_values(one, other, ratio):
    assert contrast(one, other) == pytest.approx(ratio, abs=2e-3)
    assert contrast(other, one) == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize("index", range(len(PALETTE)))
def test_text_can_be_read(index):
    s = PALETTE[index]
    assert contrast(s.light_line, palette.LIGHT_PAPER) >= 4.5
    assert contrast(s.dark_line, palette.DARK_PAPER) >= 4.5
    for share in (0.25, 0.5, 0.75, 1.0):
        assert contrast(mixed(s.light_fill, palette.LIGHT_PAPER, share), palette.LIGHT_INK) >= 4.5
        assert contrast(mixed(s.dark_fill, palette.DARK_PAPER, share), palette.DARK_INK) >= 4.5
    # The terminal's chip: white on the line colour.
    assert contrast(s.light_line, "#ffffff") >= 4.5


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("field, least", [("light_fill", 0.06), ("dark_fill", 0.048)])
def test_no_two_fills_look_alike(eyes, field, least):
    seen = [oklab(EYES[eyes] @ linear(getattr(s, field))) for s in PALETTE]
    gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(gaps) >= least
    first = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen[:4], 2)]
    assert min(first) >= least, "the first colours are the farthest apart"


def test_later_factors_repeat_the_colours_with_a_pattern():
    num = len(PALETTE)
    looks = [(palette.swatch(i), palette.weave(i)) for i in range(4 * num)]
    assert len(set(looks)) == 4 * num
    assert all(palette.weave(i) == 0 for i in range(num))
    assert palette.swatch(num) == palette.swatch(0)


def test_stylesheet_has_every_colour_once():
    css = palette.stylesheet(14)
    assert re.findall(r"^\.k(\d+)\{", css, re.M) == [str(i) for i in range(14)]
    assert css.count("--weave") == 4  # colours 12 and 13, as key and as word
    assert palette.stylesheet(0) == ""
