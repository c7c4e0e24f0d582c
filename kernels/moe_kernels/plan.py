"""Who works on what: the integers that group token choices by expert.

A slot is one (token, choice) pair, numbered token * k + choice. A row is a place in the order that
the kernels work in: slots sorted by expert, dropped slots last. Shapes are static and every array
is int32, so one plan, made once, serves the forward and the backward pass under jit.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_kernels.explicit_mesh import refuse_sharded
from moe_kernels.varying import match_axes

PADDING = 512
"""Rows that arrays of pre-activations have beyond those of their plan: room for a whole block."""


class Tiles(NamedTuple):
    """Pieces of at most `block` rows that never cross experts.

    The table has room for the worst case, ceil(s / block) + e tiles; only the first
    `num_tiles` are real. Tiles go up in rows, so those of one expert are neighbours.
    """

    expert: Int[Array, " tiles"]  # whose rows these are; meaningless from num_tiles on
    row: Int[Array, " tiles"]  # first row
    rows: Int[Array, " tiles"]  # number of rows, 1..block; 0 from num_tiles on
    num_tiles: Int[Array, ""]


class Plan(NamedTuple):
    """Slots in the order of their experts, with the way there and back."""

    slot: Int[Array, " s"]  # row -> slot; a stable sort, so an expert's slots go up
    row: Int[Array, " s"]  # slot -> row, the inverse of `slot`
    token: Int[Array, " s"]  # row -> token whose activations the row holds
    offset: Int[Array, " boundaries"]  # expert e owns rows offset[e]:offset[e+1]; later: dropped


def make_plan(expert_tk: Int[Array, "t k"], num_experts: int) -> Plan:
    """Sorts slots by expert.

    Args:
      expert_tk: expert ids; anything outside 0..num_experts-1 (by convention num_experts) is
        dropped: those slots get the rows after the last expert's.
      num_experts: at least 1.

    Raises:
      ValueError: the ids are sharded over an Explicit axis of a mesh.
    """
    refuse_sharded("make_plan", expert=expert_tk)
    k = expert_tk.shape[1]
    expert_s = expert_tk.reshape(-1).astype(jnp.int32)
    kept_s = (expert_s >= 0) & (expert_s < num_experts)
    expert_s = jnp.where(kept_s, expert_s, num_experts)
    slot_s = jnp.argsort(expert_s, stable=True).astype(jnp.int32)
    rows_s = jnp.arange(expert_s.size, dtype=jnp.int32)
    row_s = jnp.zeros_like(slot_s).at[slot_s].set(rows_s, unique_indices=True)
    boundaries = jnp.arange(num_experts + 1, dtype=jnp.int32)
    offset = below(expert_s[slot_s], boundaries)
    # All of the same type, so that a backend's own plan can stand in its place.
    return match_axes(Plan(slot_s, row_s, slot_s // k, offset))


def make_tiles(offset: Int[Array, " boundaries"], num_rows: int, block: int) -> Tiles:
    """Cuts every expert's rows into tiles of `block`, its last one holding what is left.

    With block >= num_rows there is one tile for each expert that has any work.

    Args:
      offset: `Plan.offset`.
      num_rows: rows of the plan (s), which bounds the number of tiles.
      block: most rows of a tile, at least 1.
    """
    num_experts = offset.shape[0] - 1
    load_e = offset[1:] - offset[:-1]
    tiles_e = -(-load_e // block)
    end_e = jnp.cumsum(tiles_e, dtype=jnp.int32)
    tile = jnp.arange(-(-num_rows // block) + num_experts, dtype=jnp.int32)
    expert = jnp.minimum(below(end_e, tile + 1), num_experts - 1)
    row = offset[expert] + (tile - (end_e - tiles_e)[expert]) * block
    rows = jnp.clip(offset[expert + 1] - row, 0, block)
    return Tiles(expert, row, rows, end_e[-1])


def below(values: Int[Array, " n"], sought: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """How many of the values, which go up, are below each one sought, int32.

    A binary search without a loop, which would be a launch or two on a GPU for each step of it.
    (`jnp.searchsorted` of JAX 0.10 fails inside a shard_map over some axes of a mesh.)
    """
    count = jnp.zeros_like(sought)
    for bit in reversed(range(values.size.bit_length())):
        more = count + (1 << bit)
        last = values[jnp.minimum(more, values.size) - 1]
        count = jnp.where((more <= values.size) & (last < sought), more, count)
    return count
