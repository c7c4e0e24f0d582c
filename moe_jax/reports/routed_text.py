"""A text whose tokens are shaded by a number between 0 and 1, each with a note, as HTML."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from moe_jax.reports.escape import visible


class RoutedToken(NamedTuple):
    """One token.

    Attributes:
      text: its characters; a token without any is not shown.
      note: what is shown when the pointer rests on it, for instance its experts.
      shade: how strong its background is, from 0 (none) to 1.
      changed: is it to be underlined, for instance because its experts are others than before?
    """

    text: str
    note: str
    shade: float
    changed: bool = False


def routed_text(tokens: Sequence[RoutedToken]) -> Markup:
    """A paragraph of tokens, its line breaks kept; the shade is rounded to tenths.

    Raises:
      ValueError: a shade that is not between 0 and 1.
    """
    parts = []
    for i, token in enumerate(tokens):
        if not 0 <= token.shade <= 1:
            raise ValueError(f"tokens[{i}].shade is {token.shade}; it must be from 0 to 1")
        if not token.text:
            continue
        tenths = int(10 * token.shade + 0.5)
        style = " ".join([f"t{tenths}"] * (tenths > 0) + ["changed"] * token.changed)
        parts.append(
            Markup("<span{}{}>{}</span>").format(
                Markup(' class="{}"').format(style) if style else "",
                Markup(' title="{}"').format(visible(token.note)) if token.note else "",
                visible(token.text),
            )
        )
    if not parts:
        return Markup('<p class="quiet">no tokens</p>')
    return Markup('<p class="text routed" dir="auto">{}</p>').format(Markup("").join(parts))
