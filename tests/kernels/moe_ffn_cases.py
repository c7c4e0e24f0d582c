"""What every backend of `moe_ffn` must do. Each backend's test file subclasses `MoeFfnCases`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import moe_kernels
import numpy as np
import pytest
from jax import lax

from tests.kernels import moe_ffn_oracle

# Small, odd widths, and enough tokens for several blocks of the grouped backends. SMALL is for the
# cases that need a compilation of their own: a single block size keeps it short.
T, K, D, F, E = 40, 2, 6, 5, 5
SMALL = 12
ALL = ("w_gate", "b_in", "b_gate", "b_out")
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 5e-3, "float64": 1e-12}


def problem(seed, t=T, k=K, d=D, f=F, e=E, extras=ALL, dtype="float32"):
    """Random x, expert (about one in e+1 dropped), weight, parameters and dy."""
    rng = np.random.default_rng(seed)
    shapes = {"w_in": (e, d, f), "w_gate": (e, d, f), "w_out": (e, f, d)}
    shapes |= {"b_in": (e, f), "b_gate": (e, f), "b_out": (e, d)}

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    params = {n: normal(*s) for n, s in shapes.items() if n in ("w_in", "w_out", *extras)}
    expert = jnp.asarray(rng.integers(0, e + 1, (t, k)), jnp.int32)
    weight = jnp.asarray(rng.uniform(-1, 1, (t, k)), "float64" if dtype == "float64" else "float32")
    return normal(t, d), expert, weight, params, normal(t, d)


def close(got, want, dtype="float32"):
    """Every array within the dtype's tolerance, relative to the largest entry of the right one."""
    assert set(got) == set(want)
    for name, right in want.items():
        ours = np.asarray(got[name], np.float64)
        assert ours.shape == right.shape, name
        scale = max(1.0, float(np.max(np.abs(right), initial=0)))
        np.testing.assert_allclose(ours, right, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=name)


def results(backend, activation, x, expert, weight, params, dy, **options):
    """Y and the gradients of <dy, y>, by name."""

    def value(x, weight, params):
        y = moe_kernels.moe_ffn(
            x, expert, weight, **params, activation=activation, backend=backend, **options
        )
        return jnp.sum((dy * y).astype(weight.dtype)), y

    grad = jax.grad(value, argnums=(0, 1, 2), has_aux=True)
    (dx, dweight, dparams), y = grad(x, weight, params)
    return {"y": y, "x": dx, "weight": dweight, **dparams}


@functools.cache
def jitted(backend, activation):
    """One jitted function for all tests, so that equal shapes compile once."""
    return jax.jit(functools.partial(results, backend, activation))


class MoeFfnCases:
    """Values and every gradient against the float64 loop oracle, and the corners."""

    backend: str

    def check(self, args, activation="silu", dtype="float32"):
        got = jitted(self.backend, activation)(*args)
        x, _, weight, params, _ = args
        for name, array in {"y": x, "x": x, "weight": weight, **params}.items():
            assert got[name].dtype == array.dtype, name
        close(got, moe_ffn_oracle.moe_ffn(activation, *args), dtype)
        return got

    @pytest.mark.parametrize(
        "activation, extras",
        [
            ("silu", ALL),
            ("silu", ()),
            ("gelu", ("w_gate",)),
            ("gelu_tanh", ("b_in",)),
            ("relu", ("b_out",)),
            ("relu2", ("w_gate", "b_gate")),
        ],
    )
    def test_values_and_gradients(self, activation, extras):
        self.check(problem(1, t=SMALL, extras=extras), activation)

    def test_every_pattern_of_empty_experts(self):
        # 2^4 sets of experts that may get tokens, the empty set included, in one compiled call.
        e, t = 4, 20
        x, _, weight, params, dy = problem(2, t=t, k=1, e=e)
        rng = np.random.default_rng(3)
        expert = np.stack(
            [
                rng.choice([i for i in range(e) if use[i]] or [e], size=(t, 1))
                for use in itertools.product([False, True], repeat=e)
            ]
        ).astype(np.int32)

        def one(expert):
            return results(self.backend, "silu", x, expert, weight, params, dy)

        got = jax.jit(lambda experts: lax.map(one, experts))(jnp.asarray(expert))
        for i, ids in enumerate(expert):
            want = moe_ffn_oracle.moe_ffn("silu", x, ids, weight, params, dy)
            close({n: a[i] for n, a in got.items()}, want)

    @pytest.mark.parametrize("load", [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 79, 80])
    def test_padded_tails(self, load):
        # `load` choices of expert 1, the others dropped: a block's edge, one less and one more.
        x, _, weight, params, dy = problem(4)
        expert = np.full(T * K, E, np.int32)
        expert[np.random.default_rng(load).permutation(T * K)[:load]] = 1
        self.check((x, jnp.asarray(expert.reshape(T, K)), weight, params, dy))

    def test_one_expert_twice_for_one_token(self):
        x, _, weight, params, dy = problem(5)
        expert = jnp.tile(jnp.arange(T, dtype=jnp.int32)[:, None] % E, (1, K))
        self.check((x, expert, weight, params, dy))

    def test_dropped_choices_add_nothing_whatever_they_hold(self):
        x, expert, weight, params, dy = problem(6)
        expert = expert.at[0].set(E).at[1, 0].set(E)
        want = moe_ffn_oracle.moe_ffn("silu", x, expert, weight, params, dy)
        bad = (x.at[0].set(jnp.nan), expert, weight.at[0].set(jnp.inf).at[1, 0].set(jnp.nan))
        got = jitted(self.backend, "silu")(*bad, params, dy)
        close(got, want)
        assert not np.any(got["y"][0])
        assert not np.any(got["x"][0])
        assert not np.any(got["weight"][0])
        assert got["weight"][1, 0] == 0

    def test_nan_stays_with_its_token_and_expert(self):
        x, _, weight, params, dy = problem(7)
        expert = jnp.tile(jnp.where(jnp.arange(T) == 3, 1, 2).astype(jnp.int32)[:, None], (1, K))
        got = jitted(self.backend, "silu")(x.at[3].set(jnp.nan), expert, weight, params, dy)
        assert np.all(np.isnan(got["y"][3]))
        assert np.all(np.isfinite(np.delete(got["y"], 3, axis=0)))
        assert np.all(np.isfinite(np.delete(got["x"], 3, axis=0)))
        assert np.all(np.isfinite(got["w_in"][2]))

    def test_ids_outside_the_range_are_dropped(self):
        x, expert, weight, params, dy = problem(8)
        wild = jnp.where(expert == E, jnp.asarray([[-1, 2**30]], jnp.int32), expert)
        got = jitted(self.backend, "silu")(x, wild, weight, params, dy)
        close(got, moe_ffn_oracle.moe_ffn("silu", x, expert, weight, params, dy))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision(self, dtype):
        self.check(problem(9, t=SMALL, dtype=dtype), dtype=dtype)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_the_dtype_of_weights_counts_for_nothing(self, dtype):
        x, expert, weight, params, dy = problem(15, t=SMALL, extras=("w_gate",))
        rounded = weight.astype(dtype)
        got = jax.jit(functools.partial(results, self.backend, "silu"))(
            x, expert, rounded, params, dy
        )
        assert got["y"].dtype == x.dtype
        assert got["weight"].dtype == dtype
        want = moe_ffn_oracle.moe_ffn("silu", x, expert, rounded, params, dy)
        close({"weight": got.pop("weight")}, {"weight": want.pop("weight")}, dtype)
        close(got, want)

    def test_double_precision(self):
        with jax.enable_x64(True):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")

    @pytest.mark.parametrize("t, k, e", [(1, 1, 1), (20, 1, 1), (9, 16, 20), (30, 3, 512)])
    def test_sizes(self, t, k, e):
        self.check(problem(10, t=t, k=k, e=e, extras=("w_gate",)))

    def test_recomputed_pre_activations(self):
        args = problem(14, t=SMALL)
        again = functools.partial(results, self.backend, "gelu", recompute=True)
        close(jax.jit(again)(*args), moe_ffn_oracle.moe_ffn("gelu", *args))

    def test_no_tokens(self):
        x, expert, weight, params, dy = problem(11, t=0)
        got = results(self.backend, "silu", x, expert, weight, params, dy)
        assert got["y"].shape == (0, D)
        for name, array in params.items():
            assert got[name].shape == array.shape
            assert not np.any(got[name])

    def test_same_result_with_and_without_jit_and_every_time(self):
        x, expert, weight, params, _ = args = problem(12)
        first, second = jitted(self.backend, "silu")(*args), jitted(self.backend, "silu")(*args)
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name], err_msg=name)
        eager = moe_kernels.moe_ffn(x, expert, weight, **params, backend=self.backend)
        np.testing.assert_allclose(first["y"], eager, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("mapped", [("x", "weight"), ("expert",), ("w_in", "b_out")])
    def test_vmap_of_values(self, mapped):
        args, axes, each = self.batch(mapped)

        def value(x, expert, weight, params, _):
            return moe_kernels.moe_ffn(x, expert, weight, **params, backend=self.backend)

        got = jax.jit(jax.vmap(value, in_axes=axes))(*args)
        for i, one in enumerate(each):
            close({"y": got[i]}, {"y": moe_ffn_oracle.moe_ffn("silu", *one)["y"]})

    def test_vmap_of_gradients(self):
        args, axes, each = self.batch(("x", "expert", "w_out"))
        got = jax.jit(jax.vmap(functools.partial(results, self.backend, "silu"), axes))(*args)
        for i, one in enumerate(each):
            close({n: a[i] for n, a in got.items()}, moe_ffn_oracle.moe_ffn("silu", *one))

    def test_gradient_of_vmap(self):
        args, axes, each = self.batch(("x", "expert", "weight", "dy"))
        *tokens, params, dy = args

        def total(params):
            def one(x, expert, weight, params, dy):
                y = moe_kernels.moe_ffn(x, expert, weight, **params, backend=self.backend)
                return jnp.sum(dy * y)

            return jnp.sum(jax.vmap(one, in_axes=axes)(*tokens, params, dy))

        want = [moe_ffn_oracle.moe_ffn("silu", *one) for one in each]
        close(jax.jit(jax.grad(total))(params), {n: sum(w[n] for w in want) for n in params})

    def batch(self, mapped, size=3):
        """Three problems that share what is not mapped: arguments, in_axes, one by one."""
        names = ("x", "expert", "weight", "params", "dy")
        many = [dict(zip(names, problem(20 + i, t=SMALL), strict=True)) for i in range(size)]

        def pick(name, values):
            if name in mapped:
                return jnp.stack(values), 0, list(values)
            return values[0], None, [values[0]] * size

        picked = {n: pick(n, [m[n] for m in many]) for n in names if n != "params"}
        params = {n: pick(n, [m["params"][n] for m in many]) for n in many[0]["params"]}
        picked["params"] = (
            {n: p[0] for n, p in params.items()},
            {n: p[1] for n, p in params.items()},
            [{n: p[2][i] for n, p in params.items()} for i in range(size)],
        )
        args, axes, each = zip(*(picked[n] for n in names), strict=True)
        return args, axes, [tuple(values[i] for values in each) for i in range(size)]

    def test_tokens_sharded_over_a_mesh(self):
        # Data parallelism: parameters are the same everywhere, so their gradients are summed.
        args = problem(13, t=SMALL)
        params = args[3]
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows, same = jax.P("data"), jax.P()
        specs = (rows, rows, rows, dict.fromkeys(params, same), rows)
        out = {"y": rows, "x": rows, "weight": rows, **dict.fromkeys(params, same)}
        sharded = jax.shard_map(
            functools.partial(results, self.backend, "silu"),
            mesh=mesh,
            in_specs=specs,
            out_specs=out,
        )
        close(jax.jit(sharded)(*args), moe_ffn_oracle.moe_ffn("silu", *args))
