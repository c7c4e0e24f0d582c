"""The xla backend: the shared cases, and what is promised about its work and its memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_kernels import make_plan, moe_ffn
from moe_kernels.plan import PADDING
from moe_kernels.xla.blocks import MAX_BLOCK, block_sizes, run_blocks

from tests.kernels import moe_ffn_oracle
from tests.kernels.moe_ffn_cases import MoeFfnCases, close, problem, results


class TestXla(MoeFfnCases):
    backend = "xla"


@given(st.integers(1, 10**6), st.integers(1, 512))
def test_block_sizes_are_few_even_steps_that_fit_the_load(num_slots, num_experts):
    sizes = block_sizes(num_slots, num_experts)
    assert list(sizes) == [sizes[0] * (i + 1) for i in range(len(sizes))]
    assert len(sizes) <= 16
    assert sizes[-1] <= min(MAX_BLOCK, max(8, 2 * num_slots))
    assert sizes[-1] >= min(MAX_BLOCK, 2 * (num_slots // num_experts), num_slots)


def test_64_tokens_an_expert_do_not_pay_for_128():
    sizes = block_sizes(64 * 64, 64)
    assert 64 in sizes
    assert sizes[0] == 16


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_the_loop_works_on_every_kept_row_and_at_most_one_step_more_for_each_expert(ids):
    expert = np.asarray(ids, np.int32).reshape(-1, 1)
    seen, padded = _work_done(expert)
    loads = np.bincount(ids, minlength=4)[:3]
    np.testing.assert_array_equal(seen[:, 0], loads)
    np.testing.assert_array_equal(padded[:, 0], -(-loads // 16) * 16)


@jax.jit
def _work_done(expert):
    """Rows that each of three experts was given, and rows it computed, in blocks of 16 or 32."""

    def work(own, row, rows, size):
        return None, (rows[None], jnp.full((1,), size, jnp.int32))

    number = jax.ShapeDtypeStruct((1,), jnp.int32)
    offset = make_plan(expert, 3).offset
    return run_blocks(work, offset, expert.size, (), (16, 32), None, (number, number))[1]


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_k_times_d():
    # d is 97 and nothing else is: only x and the parameters may have an axis of that length.
    t, k, d, f = 24, 4, 97, 3
    x, expert, weight, params, _ = problem(0, t=t, k=k, d=d, f=f)

    def value(x, weight, params):
        return moe_ffn(x, expert, weight, **params, backend="xla")

    _, pull = jax.vjp(value, x, weight, params)
    kept = [a for a in jax.tree.leaves(pull) if d in jnp.shape(a)]
    allowed = [x, *(p for p in params.values() if d in p.shape)]
    assert sorted(a.shape for a in kept) == sorted(a.shape for a in allowed)
    rows = [a.shape for a in jax.tree.leaves(pull) if a.ndim == 2 and a.shape[1] == f]
    assert len([s for s in rows if s[0] >= t * k]) == 2, "h and the gate's h"


def test_recompute_keeps_no_pre_activations():
    t, k, f = 24, 4, 97
    x, expert, weight, params, _ = problem(0, t=t, k=k, f=f, extras=("w_gate",))

    def value(x, weight, params):
        return moe_ffn(x, expert, weight, **params, recompute=True, backend="xla")

    _, pull = jax.vjp(value, x, weight, params)
    kept = [a.shape for a in jax.tree.leaves(pull) if f in jnp.shape(a)]
    assert sorted(kept) == sorted(p.shape for p in params.values())


def test_no_ragged_dot_and_no_scattered_sums():
    x, expert, weight, params, _ = problem(0, t=12)

    def value(x, weight, params):
        return jnp.sum(moe_ffn(x, expert, weight, **params, backend="xla"))

    text = str(jax.make_jaxpr(jax.grad(value, argnums=(0, 1, 2)))(x, weight, params))
    assert "ragged_dot" not in text
    assert "scatter-add" not in text
    assert "scatter_add" not in text
    assert "while" in text


def test_no_array_of_all_experts_or_rows_is_widened_from_bfloat16():
    t, k, e, d, f = 24, 4, 5, 96, 80
    x, expert, weight, params, dy = problem(0, t=t, k=k, e=e, d=d, f=f, dtype="bfloat16")

    def pull(x, weight, params):
        def value(x, weight, params):
            return moe_ffn(x, expert, weight, **params, backend="xla")

        y, pulled = jax.vjp(value, x, weight, params)
        return y, pulled(dy)

    text = jax.jit(pull).lower(x, weight, params).compile().as_text()
    rows = t * k + PADDING
    for shape in ((e, d, f), (e, f, d), (rows, d), (rows, f)):
        written = ",".join(map(str, shape))
        assert f"[{written}]" in text
        assert f"f32[{written}]" not in text


def test_vmap_over_tokens_and_experts_in_bfloat16():
    each = [problem(seed, t=9, dtype="bfloat16") for seed in range(3)]
    args = jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)
    got = jax.jit(jax.vmap(partial(results, "xla", "silu")))(*args)
    for i, one in enumerate(each):
        close({n: a[i] for n, a in got.items()}, moe_ffn_oracle.moe_ffn("silu", *one), "bfloat16")
