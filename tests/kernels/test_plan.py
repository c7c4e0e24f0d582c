"""The plan's integers, against NumPy and by their properties."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_kernels import backends, make_plan, make_tiles

T, K, E, BLOCK = 12, 3, 5, 4
routings = st.lists(st.integers(-2, E + 2), min_size=T * K, max_size=T * K).map(
    lambda ids: np.asarray(ids, np.int32).reshape(T, K)
)
plan_of = jax.jit(make_plan, static_argnames="num_experts")


@partial(jax.jit, static_argnames=("backend", "num_experts"))
def backend_plan(backend, expert, num_experts):
    backends.resolve_backend(backend)
    return backends.run(backend, "make_plan", {"expert_tk": expert}, num_experts=num_experts)


each_backend = pytest.mark.parametrize("backend", ["reference", "xla", "c_cpu"])
tiles_of = jax.jit(make_tiles, static_argnames=("num_rows", "block"))


@each_backend
@settings(max_examples=50, deadline=None)
@given(expert=routings)
def test_rows_are_slots_sorted_by_expert(backend, expert):
    plan = backend_plan(backend, expert, E)
    flat = expert.reshape(-1)
    clean = np.where((flat < 0) | (flat > E), E, flat)
    np.testing.assert_array_equal(plan.slot, np.argsort(clean, kind="stable"))
    np.testing.assert_array_equal(plan.slot[plan.row], np.arange(T * K))
    np.testing.assert_array_equal(plan.token, np.asarray(plan.slot) // K)
    np.testing.assert_array_equal(np.diff(plan.offset), np.bincount(clean, minlength=E + 1)[:E])
    assert plan.offset[0] == 0
    assert all(a.dtype == jnp.int32 for a in plan)


@settings(max_examples=50, deadline=None)
@given(routings)
def test_tiles_cover_every_kept_row_once_and_cross_no_expert(expert):
    plan = plan_of(expert, num_experts=E)
    tiles = jax.tree.map(np.asarray, tiles_of(plan.offset, num_rows=T * K, block=BLOCK))
    count = int(tiles.num_tiles)
    owner = np.full(T * K, E)
    for e, row, rows in list(zip(tiles.expert, tiles.row, tiles.rows, strict=True))[:count]:
        assert 1 <= rows <= BLOCK
        assert np.all(owner[row : row + rows] == E), "no row twice"
        owner[row : row + rows] = e
    sorted_ids = expert.reshape(-1)[np.asarray(plan.slot)]
    np.testing.assert_array_equal(
        owner, np.where((sorted_ids < 0) | (sorted_ids > E), E, sorted_ids)
    )
    assert np.all(np.diff(tiles.row[:count]) > 0)
    assert not np.any(tiles.rows[count:])
    assert np.all((tiles.expert >= 0) & (tiles.expert < E))
    assert all(a.dtype == jnp.int32 for a in tiles)


@pytest.mark.parametrize("block", [1, 3, 36, 1000])
def test_the_table_has_room_for_the_worst_load(block):
    # Every expert one row over a block's edge, as far as the rows reach.
    loads = np.zeros(E, int)
    left = T * K
    for e in range(E):
        loads[e] = min(left, block + 1 if e else 1)
        left -= loads[e]
    loads[0] += left
    offset = jnp.asarray(np.concatenate([[0], np.cumsum(loads)]), jnp.int32)
    tiles = make_tiles(offset, T * K, block)
    assert int(tiles.num_tiles) == sum(-(-n // block) for n in loads) <= tiles.expert.size
    assert int(jnp.sum(tiles.rows)) == T * K


@each_backend
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (300, 16)])
def test_plans_of_no_tokens_one_and_many(backend, shape):
    expert = np.random.default_rng(0).integers(0, 513, shape, np.int32)
    plan, flat = backend_plan(backend, expert, 512), expert.reshape(-1)
    np.testing.assert_array_equal(plan.slot, np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(plan.row, np.argsort(plan.slot))
    np.testing.assert_array_equal(plan.token, np.asarray(plan.slot) // shape[1])
    np.testing.assert_array_equal(plan.offset, np.searchsorted(np.sort(flat), np.arange(513)))


@each_backend
def test_a_worked_example(backend):
    plan = backend_plan(backend, jnp.asarray([[2, 0], [3, 2], [0, 2]], jnp.int32), 3)  # 3: dropped
    np.testing.assert_array_equal(plan.slot, [1, 4, 0, 3, 5, 2])
    np.testing.assert_array_equal(plan.row, [2, 0, 5, 3, 1, 4])
    np.testing.assert_array_equal(plan.token, [0, 2, 0, 1, 2, 1])
    np.testing.assert_array_equal(plan.offset, [0, 2, 2, 5])
    tiles = make_tiles(plan.offset, 6, 2)
    assert int(tiles.num_tiles) == 3
    np.testing.assert_array_equal(tiles.expert[:3], [0, 2, 2])
    np.testing.assert_array_equal(tiles.row[:3], [0, 2, 4])
    np.testing.assert_array_equal(tiles.rows, [2, 2, 1, 0, 0, 0])


def test_no_slots():
    plan = make_plan(jnp.zeros((0, 2), jnp.int32), 3)
    np.testing.assert_array_equal(plan.offset, [0, 0, 0, 0])
    assert int(make_tiles(plan.offset, 0, 4).num_tiles) == 0
