"""Text from outside, made safe to look at: what is invisible or moves the rest is spelled out."""

import unicodedata

# They turn the direction of what follows, even outside the text that holds them.
_TURNING = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_BREAKING = {0x2028, 0x2029, 0xFEFF}


def visible(text: str, *, keep: str = "\n\t") -> str:
    """Replace characters that a page or a terminal would obey or swallow by ones to be read.

    C0 controls become their pictures (NUL "␀", escape "␛"); C1 controls, marks that turn the
    direction of writing, line separators and halves of surrogate pairs become their number, as in
    "[U+202E]". Everything else stays, so this is the identity on ordinary text.

    This is no escaping for HTML: that is done where the HTML is made.

    Args:
      text: any string.
      keep: control characters to leave alone.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_seen(c) if c not in keep else c for c in text)


def one_line(text: str) -> str:
    """`visible`, with line breaks and tabs spelled out too: for names, titles and table cells."""
    return visible(text, keep="")


def _seen(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code in _TURNING or code in _BREAKING or unicodedata.category(character) in ("Cc", "Cs"):
        return f"[U+{code:04X}]"
    return character
