"""Endless batches: every example once an epoch, the seed, resuming, padding."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from moe_jax.data import batches, pad_stack


def arrays(n):
    return {"i": np.arange(n), "x_nd": np.arange(n * 3, dtype=np.float32).reshape(n, 3)}


def take(iterator, number):
    return list(itertools.islice(iterator, number))


def assert_equal(left, right):
    assert [sorted(batch) for batch in left] == [sorted(batch) for batch in right]
    for a, b in zip(left, right, strict=True):
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


class TestBatches:
    @given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**40), st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_every_example_once_an_epoch_for_any_sizes(self, n, batch_size, seed, shuffle):
        epochs = 3
        iterator = batches(arrays(n), batch_size=batch_size, seed=seed, shuffle=shuffle)
        made = take(iterator, -(-epochs * n // batch_size))
        assert all(batch["i"].shape == (batch_size,) for batch in made)
        seen = np.concatenate([batch["i"] for batch in made])[: epochs * n].reshape(epochs, n)
        np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(n), (epochs, 1)))

    def test_the_arrays_of_a_batch_belong_together(self):
        source = arrays(10)
        for batch in take(batches(source, batch_size=4, seed=0), 6):
            assert batch["x_nd"].shape == (4, 3)
            assert batch["x_nd"].dtype == np.float32
            np.testing.assert_array_equal(batch["x_nd"], source["x_nd"][batch["i"]])

    def test_epochs_and_seeds_differ(self):
        def order(seed):
            return [
                batch["i"].tolist()
                for batch in take(batches(arrays(20), batch_size=20, seed=seed), 3)
            ]

        first, other = order(0), order(1)
        distinct = {tuple(epoch) for epoch in first + other}
        assert len(distinct) == 6  # seed 1 isn't seed 0 an epoch later either
        assert first == order(0)

    def test_without_shuffling_the_order_is_kept(self):
        made = take(batches(arrays(5), batch_size=3, seed=0, shuffle=False), 4)
        assert np.concatenate([b["i"] for b in made]).tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]

    def test_a_batch_of_more_than_there_is(self):
        (batch,) = take(batches(arrays(3), batch_size=8, seed=0), 1)
        assert sorted(np.bincount(batch["i"]).tolist()) == [2, 3, 3]

    def test_batches_are_copies(self):
        source = arrays(4)
        batch = next(batches(source, batch_size=4, seed=0))
        batch["x_nd"][:] = -1
        assert source["x_nd"].min() == 0

    @pytest.mark.parametrize("done", [0, 1, 7])
    def test_resume_from_the_state(self, done):
        def new():
            return batches(arrays(11), batch_size=4, seed=3)

        iterator = new()
        take(iterator, done)
        state = json.loads(json.dumps(iterator.get_state()))
        expected = take(iterator, 8)
        resumed = new()
        take(resumed, 2)
        resumed.set_state(state)
        assert_equal(take(resumed, 8), expected)

    def test_resume_from_an_orbax_checkpoint(self, tmp_path):
        iterator = batches(arrays(11), batch_size=4, seed=3)
        take(iterator, 5)
        ocp.save_checkpointables(tmp_path / "ckpt", {"data": iterator})
        expected = take(iterator, 4)
        resumed = batches(arrays(11), batch_size=4, seed=3)
        ocp.load_checkpointables(tmp_path / "ckpt", {"data": resumed})
        assert_equal(take(resumed, 4), expected)

    @pytest.mark.parametrize(
        "source, changes, message",
        [
            ({}, {}, "arrays is empty"),
            ({"a": np.zeros(3), "b": np.zeros(4)}, {}, "'a': 3, 'b': 4"),
            ({"a": np.zeros((0, 2))}, {}, "hold no example"),
            (arrays(3), {"batch_size": 0}, "batch_size=0 must be at least 1"),
            (arrays(3), {"seed": -1}, "seed=-1 must not be negative"),
        ],
    )
    def test_bad_arguments(self, source, changes, message):
        with pytest.raises(ValueError, match=message):
            batches(source, **{"batch_size": 2, "seed": 0, **changes})


class TestPadStack:
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 3))
    @settings(max_examples=40, deadline=None)
    def test_against_a_loop(self, sizes, extra):
        length = max(sizes) + extra
        rng = np.random.default_rng(0)
        rows = [rng.normal(size=(size, 2)).astype(np.float32) for size in sizes]
        stacked, where = pad_stack(rows, length)
        assert stacked.shape == (len(rows), length, 2)
        assert stacked.dtype == np.float32
        assert where.dtype == bool
        for i, row in enumerate(rows):
            for j in range(length):
                assert where[i, j] == (j < len(row))
                np.testing.assert_array_equal(stacked[i, j], row[j] if j < len(row) else [0, 0])

    def test_rows_of_numbers(self):
        stacked, where = pad_stack([np.array([1, 2]), np.array([3])], 2)
        assert stacked.tolist() == [[1, 2], [3, 0]]
        assert where.tolist() == [[True, True], [True, False]]

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="rows is empty"):
            pad_stack([], 3)
        with pytest.raises(ValueError, match=r"rows\[1\] has 4 positions, more than length=3"):
            pad_stack([np.zeros(2), np.zeros(4)], 3)
        with pytest.raises(ValueError, match=r"rows\[1\] is float64\[2, 3\]"):
            pad_stack([np.zeros((2, 2)), np.zeros((2, 3))], 3)
        with pytest.raises(ValueError, match=r"rows\[1\] is int32\[2\]"):
            pad_stack([np.zeros(2), np.zeros(2, np.int32)], 3)
