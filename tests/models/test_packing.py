"""Windows cover long texts; rows hold every item once and none is too full."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.models.packing import SHORT, layouts, pack, windows


@given(st.integers(0, 400), st.integers(1, 60))
def test_windows_cover_a_text_and_overlap_by_half(num_tokens, capacity):
    spans = windows(num_tokens, capacity)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_tokens
    if num_tokens <= capacity:
        assert len(spans) == 1
        return
    assert all(stop - start == capacity for start, stop in spans)
    for (first, _), (second, _) in itertools.pairwise(spans):
        assert 0 < second - first <= max(1, capacity // 2)


@pytest.mark.parametrize(
    "num_tokens, spans", [(10, [(0, 10)]), (11, [(0, 10), (1, 11)]), (15, [(0, 10), (5, 15)])]
)
def test_windows_by_hand(num_tokens, spans):
    assert windows(num_tokens, 10) == spans


@given(st.lists(st.integers(1, 30), max_size=80))
def test_each_item_is_in_one_row_and_no_row_overflows(lengths):
    rows = pack(lengths, 30)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 30 for row in rows)
    # No two rows could have been one.
    sums = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(sums) < 2 or sums[0] + sums[1] > 30


def test_a_perfect_fit_is_found():
    assert len(pack([3, 7, 5, 5, 9, 1], 10)) == 3


@settings(max_examples=50)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_layouts_keep_short_and_long_items_apart(lengths):
    found = layouts(lengths, 512, 384)
    assert sorted(i for x in found for row in x.rows for i in row) == list(range(len(lengths)))
    assert len(found) == len({length <= SHORT for length in lengths})
    for layout in found:
        sizes = [lengths[i] for row in layout.rows for i in row]
        assert max(sizes) <= layout.row_length <= 512
        assert len({size <= SHORT for size in sizes}) == 1


def test_short_texts_are_not_put_in_long_rows_and_little_is_padding():
    # 40 to 110 tokens, as a corpus of paragraphs has them.
    lengths = [40 + 7 * i % 71 for i in range(500)]
    (layout,) = layouts(lengths, 512, 384)
    assert layout.row_length <= 192
    assert sum(lengths) / (len(layout.rows) * layout.row_length) > 0.95


@pytest.mark.parametrize("max_length", [7, 130, 512, 700, 8192])
def test_the_longest_text_fits_whatever_the_encoder(max_length):
    layout = layouts([1, max_length], max_length, 384)[-1]
    assert layout.row_length == max_length
    assert not layouts([], max_length, 384)
