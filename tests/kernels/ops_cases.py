"""What every backend of the single operations must do, against loops in float64 NumPy."""

import jax
import jax.numpy as jnp
import moe_kernels
import numpy as np
import pytest
from moe_kernels import make_plan

T, K, D, F, E = 21, 3, 7, 5, 4


def routing(seed, t=T, k=K, e=E):
    """Ids of which about one in e + 1 is dropped; expert 1 gets none."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, e + 1, (t, k))
    return np.where(ids == 1, e, ids).astype(np.int32) if e > 1 else ids.astype(np.int32)


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def wide(*arrays):
    return (np.asarray(a, np.float64) for a in arrays)


def close(got, want, tolerance=2e-5):
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    scale = max(1.0, float(np.max(np.abs(want), initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


make_plan_of = jax.jit(make_plan, static_argnums=1)


def gemm_loop(x, w, bias, expert, dy, plan):
    """Y by rows of the plan, and the gradients of <dy, y>."""
    x, w, bias, dy = wide(x, w, bias, dy)
    y = np.zeros((expert.size, w.shape[2]))
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros_like(bias)
    for row, slot in enumerate(np.asarray(plan.slot)):
        t, e = slot // expert.shape[1], expert.reshape(-1)[slot]
        if e == w.shape[0]:
            continue
        y[row] = x[t] @ w[e] + bias[e]
        dx[t] += w[e] @ dy[row]
        dw[e] += np.outer(x[t], dy[row])
        db[e] += dy[row]
    return y, dx, dw, db


class OpsCases:
    """Values and gradients of each operation."""

    backend: str
    half = "float16"

    @pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("half", 3e-2)])
    def test_gather_gemm(self, dtype, tolerance):
        dtype = self.half if dtype == "half" else dtype
        expert = routing(0)
        plan = make_plan(jnp.asarray(expert), E)
        x, w, bias = (normal(i, *s, dtype=dtype) for i, s in enumerate([(T, D), (E, D, F), (E, F)]))
        dy = normal(3, T * K, F, dtype=dtype)

        def call(x, w, bias):
            return moe_kernels.gather_gemm(x, w, plan, bias=bias, backend=self.backend)

        y, pull = jax.vjp(call, x, w, bias)
        assert y.dtype == dtype
        for got, want in zip((y, *pull(dy)), gemm_loop(x, w, bias, expert, dy, plan), strict=True):
            close(got, want, tolerance)

    def test_every_pattern_of_empty_experts(self):
        # 2^8 sets of experts that may get tokens, the empty set included, in one compiled call.
        e, t = 8, 10
        rng = np.random.default_rng(3)
        patterns = [[i for i in range(e) if n >> i & 1] or [e] for n in range(2**e)]
        expert = np.stack([rng.choice(p, size=(t, 1)) for p in patterns]).astype(np.int32)
        x, w, bias, dy = normal(0, t, D), normal(1, e, D, F), normal(2, e, F), normal(3, t, F)

        def one(expert):
            plan = make_plan(expert, e)

            def call(x, w, bias):
                return moe_kernels.gather_gemm(x, w, plan, bias=bias, backend=self.backend)

            y, pull = jax.vjp(call, x, w, bias)
            return y, *pull(dy)

        got = jax.jit(lambda experts: jax.lax.map(one, experts))(jnp.asarray(expert))
        for i, ids in enumerate(expert):
            want = gemm_loop(x, w, bias, ids, dy, make_plan_of(ids, e))
            for ours, right in zip(got, want, strict=True):
                close(ours[i], right)

    def test_grouped_gemm(self):
        expert = routing(1)
        plan = make_plan(jnp.asarray(expert), E)
        x, w = normal(0, T * K, D), normal(1, E, D, F)
        dy = normal(3, T * K, F)
        kept = int(plan.offset[-1])
        dirty = x.at[kept:].set(jnp.nan)

        def call(x, w):
            return moe_kernels.grouped_gemm(x, w, plan.offset, backend=self.backend)

        y, pull = jax.vjp(call, dirty, w)
        got = (y, *pull(dy.at[kept:].set(jnp.nan)))
        own = np.repeat(np.arange(E), np.diff(plan.offset))
        x64, w64, dy64 = wide(x, w, dy)
        want = [np.zeros((T * K, F)), np.zeros((T * K, D)), np.zeros((E, D, F))]
        for row, e in enumerate(own):
            want[0][row] = x64[row] @ w64[e]
            want[1][row] = w64[e] @ dy64[row]
            want[2][e] += np.outer(x64[row], dy64[row])
        for one, right in zip(got, want, strict=True):
            close(one, right)

    def test_combine(self):
        expert = routing(2)
        plan = make_plan(jnp.asarray(expert), E)
        y, weight, dout = normal(0, T * K, D), normal(1, T, K), normal(2, T, D)
        dirty = y.at[int(plan.offset[-1]) :].set(jnp.nan)
        bad_weight = jnp.where(jnp.asarray(expert) == E, jnp.nan, weight)

        def call(y, weight):
            return moe_kernels.combine(y, weight, plan, backend=self.backend)

        out, pull = jax.vjp(call, dirty, bad_weight)
        y64, weight64, dout64 = wide(y, weight, dout)
        want = [np.zeros((T, D)), np.zeros((T * K, D)), np.zeros((T, K))]
        for row, slot in enumerate(np.asarray(plan.slot)):
            t, k = divmod(int(slot), K)
            if expert[t, k] == E:
                continue
            want[0][t] += weight64[t, k] * y64[row]
            want[1][row] = weight64[t, k] * dout64[t]
            want[2][t, k] = y64[row] @ dout64[t]
        for one, right in zip((out, *pull(dout)), want, strict=True):
            close(one, right)

    def test_segment_pool(self):
        expert = routing(3)
        plan = make_plan(jnp.asarray(expert), E)
        x, weight, dz = normal(0, T, D), normal(1, T, K), normal(2, E, D)
        bad_weight = jnp.where(jnp.asarray(expert) == E, jnp.nan, weight)

        def call(x, weight):
            return moe_kernels.segment_pool(x, weight, plan, backend=self.backend)

        z, pull = jax.vjp(call, x, bad_weight)
        x64, weight64, dz64 = wide(x, weight, dz)
        want = [np.zeros((E, D)), np.zeros((T, D)), np.zeros((T, K))]
        for t in range(T):
            for k in range(K):
                if (e := expert[t, k]) == E:
                    continue
                want[0][e] += weight64[t, k] * x64[t]
                want[1][t] += weight64[t, k] * dz64[e]
                want[2][t, k] = x64[t] @ dz64[e]
        for one, right in zip((z, *pull(dz)), want, strict=True):
            close(one, right)

    @pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
    @pytest.mark.parametrize(
        "e, k, renormalise", [(8, 3, False), (8, 3, True), (5, 5, False), (1, 1, True)]
    )
    def test_topk_route(self, scores, e, k, renormalise):
        logits, dweight = normal(0, T, e), normal(1, T, k)
        logits = logits.at[0].set(0.5)  # all tied: the lower ids win

        def call(logits):
            return moe_kernels.topk_route(
                logits, k, scores=scores, renormalise=renormalise, backend=self.backend
            )

        expert, weight, count = call(logits)
        z, d64 = wide(logits, dweight)
        p = (
            np.exp(z) / np.exp(z).sum(1, keepdims=True)
            if scores == "softmax"
            else 1 / (1 + np.exp(-z))
        )
        want = np.argsort(-z, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(expert, want)
        np.testing.assert_array_equal(count, np.bincount(want.reshape(-1), minlength=e))
        picked = np.take_along_axis(p, want, 1)
        total = picked.sum(1, keepdims=True) if renormalise else 1
        close(weight, picked / total)
        dlogits = jax.vjp(lambda z: call(z)[1], logits)[1](dweight)[0]
        # By hand: through the division, then through softmax or sigmoid.
        dp = np.zeros_like(z)
        chosen = d64 / total
        if renormalise:
            chosen = chosen - (d64 * picked).sum(1, keepdims=True) / total**2
        np.put_along_axis(dp, want, chosen, 1)
        slope = (
            p * (dp - (dp * p).sum(1, keepdims=True)) if scores == "softmax" else dp * p * (1 - p)
        )
        close(dlogits, slope)

    def test_the_dtype_of_weights_counts_for_nothing(self):
        plan = make_plan(jnp.asarray(routing(4)), E)
        x, y, weight = normal(0, T, D), normal(1, T * K, D), normal(2, T, K, dtype="bfloat16")
        for call, values in ((moe_kernels.combine, y), (moe_kernels.segment_pool, x)):

            def value(values, weight, call=call):
                return call(values, weight, plan, backend=self.backend)

            got, pull = jax.vjp(value, values, weight)
            want, pull32 = jax.vjp(value, values, weight.astype("float32"))
            np.testing.assert_array_equal(got, want)
            (dvalues, dweight), right = pull(got), pull32(got)
            np.testing.assert_array_equal(dvalues, right[0])
            assert dweight.dtype == "bfloat16"
            np.testing.assert_array_equal(dweight, right[1].astype("bfloat16"))

    @pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
    def test_nan_logits_rank_last_beside_minus_infinity(self, scores):
        nan, inf = np.nan, np.inf
        logits = np.asarray(
            [
                [1, nan, 3, 2],
                [nan, nan, nan, nan],
                [nan, -inf, 0, nan],
                [-inf, nan, -inf, 5],
                [nan, 1, 1, inf],
                [0.0, -0.0, nan, 0.0],
            ],
            np.float32,
        )
        expert, weight, count = moe_kernels.topk_route(
            jnp.asarray(logits), 3, scores=scores, backend=self.backend
        )
        want = [[2, 3, 0], [0, 1, 2], [2, 0, 1], [3, 0, 1], [3, 1, 2], [0, 1, 3]]
        np.testing.assert_array_equal(expert, want)
        np.testing.assert_array_equal(count, np.bincount(np.ravel(want), minlength=4))
        chosen = np.take_along_axis(logits, np.asarray(want), 1)
        # Each token has a NaN: softmax spreads it.
        right = np.full((6, 3), nan) if scores == "softmax" else 1 / (1 + np.exp(-chosen))
        np.testing.assert_allclose(weight, right, rtol=1e-6)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_topk_route_of_logits_of_another_dtype(self, dtype):
        logits = normal(0, T, 8, dtype=dtype)
        got = moe_kernels.topk_route(logits, 2, backend=self.backend)
        want = moe_kernels.topk_route(logits.astype("float32"), 2, backend=self.backend)
        for ours, right in zip(got, want, strict=True):
            np.testing.assert_array_equal(ours, right)

    def test_topk_route_of_no_tokens(self):
        def call(logits):
            return moe_kernels.topk_route(logits, 2, backend=self.backend)

        expert, weight, count = call(jnp.zeros((0, 5)))
        assert (expert.shape, expert.dtype) == ((0, 2), jnp.int32)
        assert (weight.shape, weight.dtype) == ((0, 2), jnp.float32)
        np.testing.assert_array_equal(count, np.zeros(5, np.int32))
        # A Triton kernel may not be launched for nothing.
        assert "topk" not in str(jax.make_jaxpr(call)(jnp.zeros((0, 5))))
        assert jax.grad(lambda z: jnp.sum(call(z)[1]))(jnp.zeros((0, 5))).shape == (0, 5)

    def test_no_rows_at_all(self):
        plan = make_plan(jnp.full((T, K), E, jnp.int32), E)
        x, w, weight = normal(0, T, D), normal(1, E, D, F), normal(2, T, K)
        assert not np.any(moe_kernels.gather_gemm(x, w, plan, backend=self.backend))
        assert not np.any(moe_kernels.segment_pool(x, weight, plan, backend=self.backend))
        empty = make_plan(jnp.zeros((0, K), jnp.int32), E)
        y = moe_kernels.gather_gemm(x[:0], w, empty, backend=self.backend)
        assert y.shape == (0, F)
        z = moe_kernels.segment_pool(x[:0], weight[:0], empty, backend=self.backend)
        assert z.shape == (E, D)
        assert not np.any(z)
        plan = make_plan(jnp.zeros((T, K), jnp.int32), E)
        narrow = jnp.zeros((T * K, 0))
        assert moe_kernels.combine(narrow, weight, plan, backend=self.backend).shape == (T, 0)
        narrow = moe_kernels.segment_pool(narrow[:T], weight, plan, backend=self.backend)
        assert narrow.shape == (E, 0)

    def test_vmap(self):
        experts = jnp.stack([jnp.asarray(routing(seed)) for seed in range(3)])
        x, weight = normal(0, 3, T, D), normal(1, 3, T, K)

        def pool(x, weight, expert):
            return moe_kernels.segment_pool(x, weight, make_plan(expert, E), backend=self.backend)

        def loss(x, weight, expert):
            return jnp.sum(pool(x, weight, expert) ** 2)

        got = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(x, weight, experts)
        for i in range(3):
            want = jax.grad(loss, argnums=(0, 1))(x[i], weight[i], experts[i])
            for ours, right in zip(got, want, strict=True):
                close(ours[i], np.asarray(right, np.float64))
