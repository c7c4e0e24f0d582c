"""Where each text goes: windows of long texts, and several short texts in one row.

Rows of one length make one compiled program, whatever the lengths of the texts. Padding every
text to its own bucket would compile a program for each bucket, which on a CPU costs as much time
as thousands of tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Texts up to this long share rows; longer ones go to longer rows, with costlier attention.
SHORT = 128
# Few enough that calls with other texts often find their program compiled already.
_ROW_LENGTHS = (16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 1024, 2048, 4096, 8192)


class Span(NamedTuple):
    """Tokens [start, stop) of a text."""

    text: int
    start: int
    stop: int


class Layout(NamedTuple):
    """Rows of one length, and the indices of the spans in each, in order."""

    row_length: int
    rows: list[list[int]]


def windows(num_tokens: int, capacity: int) -> list[tuple[int, int]]:
    """Spans [start, stop) of at most `capacity` tokens that cover a text, half overlapping.

    A text that fits is one span (an empty one too). Of a longer one the spans are all
    `capacity` long; each starts `capacity // 2` after the one before, the last ends at the end.
    """
    if num_tokens <= capacity:
        return [(0, num_tokens)]
    step = max(1, capacity // 2)
    starts = [*range(0, num_tokens - capacity, step), num_tokens - capacity]
    return [(start, start + capacity) for start in starts]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fills rows of `capacity` with items, longest first, each into the fullest row it fits.

    Args:
      lengths: sizes of the items, each 1 to `capacity`.
      capacity: size of a row.

    Returns:
      Per row, the indices of its items.
    """
    rows: list[list[int]] = []
    # free[n]: the rows with n positions left; bit n of `some` is set where there are any.
    free: list[list[int]] = [[] for _ in range(capacity + 1)]
    some = 0
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        fits = some >> length
        if fits:
            left = length + (fits & -fits).bit_length() - 1
            row = free[left].pop()
            if not free[left]:
                some &= ~(1 << left)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        free[left - length].append(row)
        some |= 1 << (left - length)
    return rows


def layouts(lengths: Sequence[int], max_length: int, d_model: int) -> list[Layout]:
    """Packs items into rows, the short ones and the long ones apart.

    Each group gets the row length that costs least: a position costs 4 d (its dense layers)
    plus the row length (its attention), and empty positions cost as much as full ones.

    Args:
      lengths: sizes of the items, each 1 to `max_length`.
      max_length: the longest row allowed.
      d_model: the encoder's width.

    Returns:
      None, one or two layouts, whose rows index into `lengths`.
    """
    short = [i for i, length in enumerate(lengths) if length <= SHORT]
    long = [i for i, length in enumerate(lengths) if length > SHORT]
    found = []
    for group in (short, long):
        if not group:
            continue
        sizes = [lengths[i] for i in group]
        row_lengths = sorted({*_ROW_LENGTHS, max_length})
        choices = [
            Layout(row_length, pack(sizes, row_length))
            for row_length in row_lengths
            if max(sizes) <= row_length <= max_length
        ]
        best = min(choices, key=lambda c: len(c.rows) * c.row_length * (4 * d_model + c.row_length))
        rows = [[group[i] for i in row] for row in best.rows]
        found.append(Layout(best.row_length, rows))
    return found
