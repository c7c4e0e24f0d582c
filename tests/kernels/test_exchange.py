"""Who travels in which round and row: every choice once, and rows that know where they came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_kernels import make_plan
from moe_kernels.expert_parallel.exchange import combine, dispatch, loads, make_buffer


def test_a_round_by_hand():
    # Two peers of two experts; expert 4 is dropped; two rows for each peer.
    expert = jnp.array([[0, 3], [1, 4], [1, 2]])
    plan = make_plan(expert, 4)
    np.testing.assert_array_equal(loads(plan, 2), [3, 2])
    first = make_buffer(plan, expert, 2, 2, 0)
    # Sorted slots: 0 (expert 0), 2 and 4 (expert 1); 5 (expert 2), 1 (expert 3); 3 dropped.
    np.testing.assert_array_equal(first.slot, [0, 2, 5, 1])
    np.testing.assert_array_equal(first.token, [0, 1, 2, 0])
    np.testing.assert_array_equal(first.expert, [0, 1, 0, 1])
    np.testing.assert_array_equal(first.row, [[0, 3], [1, 4], [4, 2]])
    np.testing.assert_array_equal(first.sent, [2, 2])
    second = make_buffer(plan, expert, 2, 2, 1)
    np.testing.assert_array_equal(second.slot, [4, 6, 6, 6])
    np.testing.assert_array_equal(second.token, [2, 3, 3, 3])
    np.testing.assert_array_equal(second.expert, [1, 2, 2, 2])
    np.testing.assert_array_equal(second.row, [[4, 4], [4, 4], [0, 4]])
    np.testing.assert_array_equal(second.sent, [1, 0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_choice_travels_once(data):
    tokens, k = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    peers, share = data.draw(st.sampled_from([(1, 3), (2, 2), (4, 1), (3, 2)]))
    rows = data.draw(st.integers(1, 5))
    ids = st.integers(0, peers * share)
    drawn = data.draw(st.lists(ids, min_size=tokens * k, max_size=tokens * k))
    expert = np.array(drawn, np.int32).reshape(tokens, k)
    plan = make_plan(jnp.asarray(expert), peers * share)
    load = np.asarray(loads(plan, peers))
    flat = expert.reshape(-1)
    np.testing.assert_array_equal(load, [np.sum(flat // share == p) for p in range(peers)])
    seen = []
    for index in range(max(1, -(-load.max() // rows))):
        buffer = jax.tree.map(
            np.asarray, make_buffer(plan, jnp.asarray(expert), peers, rows, index)
        )
        np.testing.assert_array_equal(buffer.sent, np.clip(load - index * rows, 0, rows))
        for row, slot in enumerate(buffer.slot):
            peer, place = divmod(row, rows)
            assert (place < buffer.sent[peer]) == (slot < flat.size)
            if slot == flat.size:
                assert buffer.token[row] == tokens
                assert buffer.expert[row] == share
                continue
            seen.append(slot)
            assert buffer.token[row] == slot // k
            assert peer * share + buffer.expert[row] == flat[slot]
            assert buffer.row.reshape(-1)[slot] == row
        assert np.sum(buffer.row < peers * rows) == np.sum(buffer.slot < flat.size)
    assert sorted(seen) == list(np.flatnonzero(flat < peers * share))


@pytest.mark.parametrize("backend", [None, "xla", "reference"])
def test_combine_is_the_transpose_of_dispatch(backend):
    rng = np.random.default_rng(0)
    expert = jnp.asarray(rng.integers(0, 5, (7, 3)))
    buffer = make_buffer(make_plan(expert, 4), expert, 2, 4, 0)
    x, rows = (jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in ((7, 5), (8, 5)))
    sent = dispatch(backend, x, buffer)
    for row, token in enumerate(buffer.token):
        np.testing.assert_array_equal(sent[row], x[token] if token < 7 else np.zeros(5))
    back = combine(backend, rows, buffer)
    np.testing.assert_allclose(jnp.vdot(sent, rows), jnp.vdot(x, back), rtol=1e-5)
    dx = jax.vjp(lambda x: dispatch(backend, x, buffer), x)[1](rows)[0]
    np.testing.assert_allclose(dx, back, rtol=1e-6)
    drows = jax.vjp(lambda r: combine(backend, r, buffer), rows)[1](x)[0]
    np.testing.assert_array_equal(drows, sent)
