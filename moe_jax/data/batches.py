"""Endless shuffled batches of in-memory arrays (Grain), and padding to a fixed shape."""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Shaped


@runtime_checkable
class BatchIterator(Protocol):
    """What `batches` gives: a `grain.DatasetIterator`."""

    def __iter__(self) -> "BatchIterator":
        """Itself."""

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch; there is always one."""

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` gave."""

    def close(self) -> None:
        """Free what the iterator holds."""


def batches(
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    part: tuple[int, int] = (0, 1),
) -> BatchIterator:
    """Iterate for ever over batches of `arrays`, every example once per epoch.

    The epochs, each in a new random order, are laid end to end and cut into batches: every batch
    has `batch_size` examples, and the examples left at the end of an epoch open the batch that
    begins the next. So nothing is dropped or padded, `batch_size` may be more than the number of
    examples n (a batch then spans epochs and repeats examples), and after m batches every example
    has been seen floor(m * batch_size / n) or one more times.

    Batch i is a function of (arrays, batch_size, seed, shuffle, i) alone. The iterator's state is
    i: `get_state()` and `set_state(state)`, or hand the iterator itself to Orbax (v1) as a
    checkpointable. Restore it into an iterator made with the same arguments; `part` may be another.

    Args:
      arrays: by name, each [n, ...] with the same n >= 1. They are read when a batch is made.
      batch_size: examples in a batch.
      seed: decides the order of every epoch; >= 0.
      shuffle: False keeps the order of the arrays in every epoch.
      part: (i, n) gives the i-th of n equal parts of each batch, and gathers no other rows: process
        i of n reads these. Side by side the parts are the batch, whatever n is.

    Returns:
      Dicts: `arrays[name]` gathered along the first axis (copies), [batch_size / n, ...].

    Raises:
      ValueError: no arrays, no examples, different n, batch_size < 1, seed < 0, or no such part.
    """
    import grain  # only where something is trained: it takes a while

    source = _Batches(arrays, batch_size, seed, shuffle, part)
    # One gather from memory takes a few ms: reading ahead in threads would cost more memory
    # (Grain's default is 500 batches) than it saves time.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


class _Batches:
    """Random-access source whose element i is batch i: one gather per array, not per example."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        batch_size: int,
        seed: int,
        shuffle: bool,
        part: tuple[int, int],
    ):
        if not arrays:
            raise ValueError("arrays is empty; give at least one array")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays differ in their first axis: {lengths}")
        (length,) = set(lengths.values())
        if length < 1:
            raise ValueError(f"arrays hold no example: {lengths}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        index, count = part
        if not 0 <= index < count:
            raise ValueError(f"part={part}: must be (i, n) with 0 <= i < n")
        if batch_size % count:
            raise ValueError(
                f"batch_size={batch_size} can't be split in the {count} of part={part}"
            )
        self._part = slice(index * batch_size // count, (index + 1) * batch_size // count)
        self._arrays = dict(arrays)
        self._length = length
        self._batch_size = batch_size
        # A batch usually needs one epoch's order or two neighbours': keep the last two.
        self._order = functools.lru_cache(maxsize=2)(
            functools.partial(_epoch_order, length, seed, shuffle)
        )

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place, end = int(index) * self._batch_size, (int(index) + 1) * self._batch_size
        chosen = []
        while place < end:
            epoch, start = divmod(place, self._length)
            chosen.append(self._order(epoch)[start : start + end - place])
            place += len(chosen[-1])
        rows = np.concatenate(chosen)[self._part]
        return {name: array[rows] for name, array in self._arrays.items()}

    def __repr__(self) -> str:
        return f"_Batches(n={self._length}, batch_size={self._batch_size})"


def _epoch_order(length: int, seed: int, shuffle: bool, epoch: int) -> Int[np.ndarray, " n"]:
    if not shuffle:
        return np.arange(length)
    return np.random.default_rng((seed, epoch)).permutation(length)


def pad_stack(
    rows: Sequence[Shaped[np.ndarray, "_ ..."]], length: int
) -> tuple[Shaped[np.ndarray, "b s ..."], Bool[np.ndarray, "b s"]]:
    """Stack arrays of different lengths into one of fixed shape, with a mask of the real rows.

    Args:
      rows: b arrays [s_i, ...] of one dtype whose axes after the first agree; s_i may be 0.
      length: s, at least every s_i.

    Returns:
      stacked: [b, length, ...] in the arrays' dtype, zeros where padded.
      where: [b, length] bool, True for the first s_i positions of row i.

    Raises:
      ValueError: no arrays, one longer than `length`, or dtypes or other axes that differ.
    """
    if not rows:
        raise ValueError("rows is empty; give at least one array")
    first = rows[0]
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f"rows[{i}] has {len(row)} positions, more than length={length}")
        if row.shape[1:] != first.shape[1:] or row.dtype != first.dtype:
            raise ValueError(
                f"rows[{i}] is {row.dtype}{list(row.shape)}, which does not stack with "
                f"rows[0], {first.dtype}{list(first.shape)}"
            )
    stacked = np.zeros((len(rows), length, *first.shape[1:]), first.dtype)
    for i, row in enumerate(rows):
        stacked[i, : len(row)] = row
    sizes = np.array([len(row) for row in rows])
    return stacked, np.arange(length)[None, :] < sizes[:, None]
