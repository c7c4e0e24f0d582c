"""The loop over experts and blocks of their rows, for work given as a function of one block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from moe_kernels.plan import PADDING, make_tiles
from moe_kernels.xla.slices import entry, from_stored, stored, to_stored

MIN_BLOCK, MAX_BLOCK = 8, PADDING
SMALL_STEP, STEP = 16, 32

Work = Callable[[Any, Array, Array, int], tuple[Any, Any]]
"""work(own, row, rows, size): what one block gives, for `rows` <= `size` rows from `row` on and one
expert's parameters (without axis e). Returns a pytree of [size, ...] arrays, one entry a row, of
which the ones from `rows` on may hold anything, and a pytree of sums over the block's real rows.
"""


def block_sizes(num_slots: int, num_experts: int) -> tuple[int, ...]:
    """The block sizes to compile, in equal steps: the last one is the full block.

    The full block is about twice the mean load (at most 512 rows, where products run at full
    speed), so that most experts are a single block: adding up the parameter gradients of several
    costs a tenth of the backward pass. Steps are 16 rows for blocks of at most 128 and 32 for
    larger ones: more sizes waste fewer rows and take longer to compile.
    """
    mean = -(-num_slots // num_experts)
    block = MIN_BLOCK
    while block < min(2 * mean, num_slots, MAX_BLOCK):
        block *= 2
    step = min(block, SMALL_STEP if block <= 8 * SMALL_STEP else STEP)
    return tuple(range(step, block + 1, step))


def run_blocks(
    work: Work,
    offset: Int[Array, " boundaries"],
    num_rows: int,
    stacks: Any,
    sizes: tuple[int, ...],
    per_row: Any,
    per_expert: Any,
) -> tuple[Any, Any]:
    """Runs `work` on every block of every expert that has rows.

    An expert's parameters are taken out of their stacks once, however many blocks it has. Its last
    block comes first, at the smallest size that holds it, and starts the expert's sums; the full
    blocks add to them.

    Args:
      work: see `Work`.
      offset: expert e owns rows offset[e]:offset[e+1].
      num_rows: all rows (s), unused ones included.
      stacks: pytree of arrays with a first axis e, the experts' parameters.
      sizes: see `block_sizes`.
      per_row: pytree of jax.ShapeDtypeStruct, one row of the first part of work's result.
      per_expert: pytree of jax.ShapeDtypeStruct, the second part, which may be wider.

    Returns:
      The rows, [s + PADDING, ...]: those from offset[-1] on hold anything; and the sums,
      [e, ...], zero for experts without rows.
    """
    num_experts, block = offset.size - 1, sizes[-1]
    tiles = make_tiles(offset, num_rows, max(num_rows, 1))

    def one_expert(i: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        buffers, totals = state
        expert, row, rows = tiles.expert[i], tiles.row[i], tiles.rows[i]
        own = jax.tree.map(lambda stack: entry(stack, expert), stacks)
        full = (rows - 1) // block
        last_row, last_rows = row + full * block, rows - full * block

        # Results go through the switch, the big buffers do not: XLA would copy them in each branch.
        branches = [partial(_padded, work, own, size, block) for size in sizes]
        out, sums = lax.switch((last_rows - 1) // sizes[0], branches, last_row, last_rows)
        # Rows past the expert's last one are written too; the next expert's results replace them.
        buffers = _put(buffers, out, last_row)

        def one_block(j: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            buffers, sums = state
            start = row + j * block
            out, more = work(own, start, jnp.int32(block), block)
            return _put(buffers, out, start), jax.tree.map(jnp.add, sums, more)

        buffers, sums = lax.fori_loop(0, full, one_block, (buffers, sums))
        totals = jax.tree.map(
            lambda total, s, one: lax.dynamic_update_index_in_dim(
                total, to_stored(s.astype(one.dtype)), expert, 0
            ),
            totals,
            sums,
            per_expert,
        )
        return buffers, totals

    state = (
        _zeros(num_rows + PADDING, per_row, tiles.num_tiles, 1),
        _zeros(num_experts, per_expert, tiles.num_tiles, 101),
    )
    found = lax.fori_loop(0, tiles.num_tiles, one_expert, state)
    return jax.tree.map(lambda a, one: from_stored(a, one.dtype), found, (per_row, per_expert))


def _zeros(length: int, entries: Any, count: Array, first: int) -> Any:
    """Zeros, [length, ...], for every entry, as they are stored; no two from the same computation.

    XLA merges equal constants and would then copy the shared one into each loop buffer of that
    shape. A test that never holds (`count` is never negative) keeps them apart, at no cost.
    """
    leaves, treedef = jax.tree.flatten(entries)
    zeros = [jnp.where(count == -first - i, 1, 0) for i in range(len(leaves))]
    filled = [
        jnp.broadcast_to(z.astype(stored(a.dtype)), (length, *a.shape))
        for z, a in zip(zeros, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)


def _padded(
    work: Work, own: Any, size: int, block: int, row: Array, rows: Array
) -> tuple[Any, Any]:
    out, sums = work(own, row, rows, size)
    return jax.tree.map(
        lambda a: jnp.pad(a, [(0, block - size)] + [(0, 0)] * (a.ndim - 1)), out
    ), sums


def _put(buffers: Any, out: Any, row: Array) -> Any:
    return jax.tree.map(
        lambda b, o: lax.dynamic_update_slice_in_dim(b, to_stored(o), row, axis=0), buffers, out
    )
