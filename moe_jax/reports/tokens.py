"""Texts with coloured words, as HTML: which factor took each word, how surely, and its label."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from moe_jax.reports.escape import one_line, visible


class Span(NamedTuple):
    """A stretch of a text, usually a word, and the factors it belongs to.

    Attributes:
      start, end: first and past-the-end character.
      probs: probability of each factor, summing to 1.
      gold: colour of its gold label, None where it has none.
    """

    start: int
    end: int
    probs: Sequence[float]
    gold: int | None = None

    @property
    def factor(self) -> int:
        """The factor with the highest probability (the first of equals)."""
        return int(np.argmax(self.probs))


class Key(NamedTuple):
    """One entry of the legend: what a colour stands for.

    Attributes:
      colour: number of the colour, which is the factor's number.
      name: what people call it.
      note: a few words more, for instance its share of the tokens.
      is_factor: False for a gold label that no factor stands for.
    """

    colour: int
    name: str
    note: str = ""
    is_factor: bool = True


def check_spans(text: str, spans: Sequence[Span]) -> None:
    """Raise ValueError unless the spans are in order, do not overlap and lie in the text."""
    end = 0
    for i, span in enumerate(spans):
        if not end <= span.start < span.end <= len(text):
            raise ValueError(
                f"spans[{i}] covers characters {span.start}..{span.end}; it must be after the one "
                f"before it (which ends at {end}) and within the {len(text)} of the text"
            )
        end = span.end


def text_html(text: str, spans: Sequence[Span]) -> Markup:
    """One text as a paragraph whose words carry their factor, gold colour and probabilities.

    The visible characters of the paragraph are `visible(text)` exactly; everything else is in
    attributes. Probabilities are given to the page in thousandths.

    Raises:
      ValueError: spans that overlap, are out of order or outside the text.
    """
    check_spans(text, spans)
    parts, position = [], 0
    for before, span in zip([None, *spans], spans, strict=False):
        parts.append(_gap(text[position : span.start], before, span))
        parts.append(_word(text[span.start : span.end], before, span))
        position = span.end
    parts.append(Markup.escape(visible(text[position:])))
    body = Markup("").join(parts)
    return Markup('<p class="text" dir="auto" tabindex="0">{}</p>').format(body)


def legend_html(keys: Sequence[Key]) -> Markup:
    """Buttons, one per colour, that name it; the page's script reads the names from here."""
    buttons = [
        Markup(
            '<button type="button" class="key k{colour}" aria-pressed="false" {kind}="{colour}">'
            '<b class="chip">{number}</b> <bdi class="name">{name}</bdi>{note}</button>'
        ).format(
            colour=key.colour,
            kind=Markup("data-factor" if key.is_factor else "data-label"),
            number=key.colour if key.is_factor else "–",
            name=one_line(key.name),
            note=Markup(' <small class="note">{}</small>').format(key.note) if key.note else "",
        )
        for key in keys
    ]
    return Markup('<div class="legend">{}</div>').format(Markup("").join(buttons))


def _word(text: str, before: Span | None, span: Span) -> Markup:
    factor = span.factor
    classes = ["w", f"f{factor}", f"a{round(10 * float(span.probs[factor]))}"]
    if before is None or before.factor != factor:
        classes.append("ff")
    data = Markup(' data-f="{}" data-p="{}"').format(
        factor, " ".join(str(round(1000 * float(p))) for p in span.probs)
    )
    if span.gold is not None:
        classes.append(f"g{span.gold}")
        data += Markup(' data-g="{}"').format(span.gold)
        if before is None or before.gold != span.gold:
            classes.append("gf")
    return Markup('<span class="{}"{}>{}</span>').format(" ".join(classes), data, visible(text))


def _gap(text: str, before: Span | None, after: Span) -> Markup:
    """What is between two words; coloured where both have the same colour, to join them."""
    if not text or before is None:
        return Markup.escape(visible(text))
    classes = ["s"]
    if before.factor == after.factor:
        classes.append(f"f{after.factor}")
        sure = min(max(before.probs), max(after.probs))
        classes.append(f"a{round(10 * float(sure))}")
    if before.gold is not None and before.gold == after.gold:
        classes.append(f"g{after.gold}")
    return Markup('<span class="{}">{}</span>').format(" ".join(classes), visible(text))
