"""Experts over the devices of a mesh: values and gradients of one device, collectives as meant."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from moe_kernels import moe_ffn, moe_ffn_expert_parallel
from moe_kernels.expert_parallel import exchange as transport

from tests.kernels import moe_ffn_oracle

AXES = ("data", "expert")
T, K, E, D, F = 64, 3, 8, 6, 10
SHAPES = [(1, 8), (2, 4), (4, 2), (8, 1)]
SPREAD = jax.P("expert")


def mesh_of(shape):
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2)


def problem(load, seed=0, tokens=T, bias=True):
    rng = np.random.default_rng(seed)
    expert = {
        "random": lambda: rng.integers(0, E + 1, (tokens, K)),  # E: dropped
        "zipf": lambda: np.minimum(rng.zipf(1.5, (tokens, K)) - 1, E),
        "one": lambda: np.full((tokens, K), 5),
        "dropped": lambda: np.full((tokens, K), E),
    }[load]()
    shapes = {"w_in": (E, D, F), "w_out": (E, F, D), "w_gate": (E, D, F)}
    if bias:
        shapes |= {"b_in": (E, F), "b_gate": (E, F), "b_out": (E, D)}
    params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    x, dy = (rng.normal(size=(tokens, D)).astype(np.float32) for _ in range(2))
    weight = rng.uniform(size=(tokens, K)).astype(np.float32)
    return x, expert.astype(np.int32), weight, params, dy


def sharded(mesh, check_vma=True, **options):
    def local(x, expert, weight, params):
        return moe_ffn_expert_parallel(x, expert, weight, **params, axis_name="expert", **options)

    def whole(x, expert, weight, params):
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(jax.P(AXES), jax.P(AXES), jax.P(AXES), dict.fromkeys(params, SPREAD)),
            out_specs=jax.P(AXES),
            check_vma=check_vma,
        )(x, expert, weight, params)

    return whole


def results(function, x, expert, weight, params, dy):
    """Values and all gradients, by name."""

    def run(x, weight, params):
        return function(x, expert, weight, params)

    y, pull = jax.vjp(run, x, weight, params)
    dx, dweight, dparams = pull(dy)
    return {"y": y, "x": dx, "weight": dweight, **dparams}


def close(got, want, limit=1e-5):
    for name, value in want.items():
        scale = max(np.abs(value).max(), 1e-3)
        error = np.abs(np.asarray(got[name], np.float64) - value).max() / scale
        assert error < limit, (name, error)


@pytest.mark.mesh
@pytest.mark.parametrize("exchange", ["all_to_all", "all_gather"])
@pytest.mark.parametrize(
    "shape, load",
    [*((shape, "zipf") for shape in SHAPES), *(((2, 4), n) for n in ("random", "one", "dropped"))],
)
def test_equals_one_device(shape, load, exchange):
    args = problem(load)
    want = moe_ffn_oracle.moe_ffn("silu", *args)
    got = jax.jit(functools.partial(results, sharded(mesh_of(shape), exchange=exchange)))(*args)
    close(got, want)


@pytest.mark.mesh
@pytest.mark.parametrize(
    "rows, options",
    [(1, {}), (3, {}), (1000, {}), (3, {"recompute": True}), (3, {"backend": "reference"})],
)
def test_any_number_of_rounds(rows, options):
    args = problem("zipf", seed=1)
    function = sharded(mesh_of((2, 4)), rows_per_peer=rows, **options)
    got = jax.jit(functools.partial(results, function))(*args)
    close(got, moe_ffn_oracle.moe_ffn("silu", *args))


@pytest.mark.mesh
@pytest.mark.parametrize("exchange", ["all_to_all", "all_gather"])
def test_without_checked_types(exchange):
    # As the training step does it: gradients of the local sum, then summed over copies.
    mesh = mesh_of((2, 4))
    args = problem("zipf", seed=2)

    def local(x, expert, weight, params, dy):
        def run(x, weight, params):
            return moe_ffn_expert_parallel(
                x, expert, weight, **params, axis_name="expert", exchange=exchange
            )

        y, pull = jax.vjp(run, x, weight, params)
        dx, dweight, dparams = pull(dy)
        return {"y": y, "x": dx, "weight": dweight, **lax.psum(dparams, "data")}

    rows, params = jax.P(AXES), dict.fromkeys(args[3], SPREAD)
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, rows, params, rows),
        out_specs={"y": rows, "x": rows, "weight": rows, **params},
        check_vma=False,
    )
    close(jax.jit(mapped)(*args), moe_ffn_oracle.moe_ffn("silu", *args))


@pytest.mark.mesh
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    x, expert, weight, params, dy = problem("random", seed=3)
    low = jnp.dtype(dtype)
    x, params, dy = jax.tree.map(lambda a: jnp.asarray(a, low), (x, params, dy))
    args = (x, jnp.asarray(expert), jnp.asarray(weight), params, dy)
    got = jax.jit(functools.partial(results, sharded(mesh_of((2, 4)))))(*args)
    assert got["y"].dtype == got["w_in"].dtype == low
    want = results(lambda x, e, w, p: moe_ffn(x, e, w, **p), *args)
    wide = {name: np.asarray(value, np.float64) for name, value in want.items()}
    close(got, wide, limit=0.03)


@pytest.mark.mesh
def test_no_tokens():
    x, expert, weight, params, dy = problem("random", tokens=0)
    got = results(sharded(mesh_of((2, 4))), x, expert, weight, params, dy)
    assert got["y"].shape == (0, D)
    assert not np.any(got["w_in"])


def emulated(operand, output, source, sent, target, received, *, axis_name):
    """lax.ragged_all_to_all as its documentation has it, made of all_gather."""
    me = lax.axis_index(axis_name)
    everything = [lax.all_gather(a, axis_name) for a in (operand, source, sent, target)]
    rows = jnp.arange(output.shape[0])
    for operand, source, sent, target in zip(*everything, strict=True):
        place = rows - target[me]
        mine = (place >= 0) & (place < sent[me])
        values = operand[jnp.clip(source[me] + place, 0, operand.shape[0] - 1)]
        output = jnp.where(mine[:, None], values, output)
    for peer in range(everything[2].shape[0]):
        # The contract: what I expect of a peer is what it sends me.
        wrong = everything[2][peer][me] != received[peer]
        output = jnp.where(wrong, jnp.nan, output)
    return output


@pytest.mark.mesh
def test_ragged_exchange_with_its_collective_emulated(monkeypatch):
    monkeypatch.setattr(transport.lax, "ragged_all_to_all", emulated)
    monkeypatch.setattr(transport, "require", lambda tree, *_, **__: tree)
    args = problem("zipf", seed=4)
    for rows in (None, 2):
        function = sharded(mesh_of((2, 4)), exchange="ragged_all_to_all", rows_per_peer=rows)
        got = jax.jit(functools.partial(results, function))(*args)
        close(got, moe_ffn_oracle.moe_ffn("silu", *args))


@pytest.mark.mesh
def test_ragged_exchange_is_refused_on_cpu():
    args = problem("random")
    function = sharded(mesh_of((2, 4)), exchange="ragged_all_to_all")
    with pytest.raises(
        ValueError, match=r"exchange='ragged_all_to_all' runs on cuda.*for cpu: use"
    ):
        jax.jit(functools.partial(results, function))(*args)


def lowered(mesh, platform, grad, **options):
    """StableHLO of the layer over a mesh of devices that need not exist."""
    tokens = 16 * mesh.size
    args = problem("random", tokens=tokens, bias=False)
    x, expert, weight, params, dy = args
    params = {n: np.zeros((64, *p.shape[1:]), p.dtype) for n, p in params.items()}
    args = (x, expert, weight, params, dy)
    specs = (*(jax.P(AXES),) * 3, dict.fromkeys(params, SPREAD), jax.P(AXES))
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=jax.sharding.NamedSharding(mesh, s)
        ),
        args,
        specs,
    )
    function = sharded(mesh, backend="xla", **options)
    whole = functools.partial(results, function) if grad else (lambda *a: function(*a[:4]))
    return jax.jit(whole).trace(*like).lower(lowering_platforms=(platform,)).as_text()


def collectives(text):
    """How often each collective stands in a program."""
    names = re.findall(r'"?stablehlo\.(all_to_all|all_gather|reduce_scatter|all_reduce)\b', text)
    names += ["ragged_all_to_all"] * text.count("@ragged_all_to_all")
    return {name: names.count(name) for name in sorted(set(names))}


ABSTRACT = AbstractMesh((8, 8), AXES, axis_types=(AxisType.Auto,) * 2)


# The weights' gradients are summed over "data": one all_reduce for each of the 3 parameters.
# A round sends ids, weights and rows, and gets rows back; the gradient goes the other way round
# without ids. Rounds after the first stand in a loop, whose backward pass computes them again; the
# number of rounds is a maximum over the axis.
@pytest.mark.parametrize(
    "options, forward, both",
    [
        (
            {"rows_per_peer": 1000},
            {"all_to_all": 4},
            {"all_reduce": 3, "all_to_all": 7},
        ),
        (
            {},
            {"all_reduce": 1, "all_to_all": 8},
            {"all_reduce": 4, "all_to_all": 17},
        ),
        (
            {"exchange": "all_gather"},
            {"all_gather": 3, "reduce_scatter": 1},
            {"all_gather": 4, "all_reduce": 3, "reduce_scatter": 3},
        ),
    ],
)
def test_collectives_on_64_devices(options, forward, both):
    assert collectives(lowered(ABSTRACT, "tpu", False, **options)) == forward
    found = collectives(lowered(ABSTRACT, "tpu", True, **options))
    if jax.__version_info__ < (0, 12) and not options:
        # The backward pass's own way back of rows, which nobody reads: later JAX leaves it out,
        # XLA removes it.
        found["all_to_all"] -= 1
    assert found == both


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_ragged_exchange_lowers_where_it_exists(platform):
    text = lowered(ABSTRACT, platform, True, exchange="ragged_all_to_all", rows_per_peer=1000)
    assert "ragged_all_to_all" in text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"exchange": "ring"}, r"exchange='ring' is none of all_to_all, ragged"),
        ({"rows_per_peer": 0}, r"rows_per_peer=0 must be at least 1"),
        ({"axis_name": "experts"}, r"axis_name='experts' is no axis of a mesh here"),
        ({"backend": "nope"}, r"backend='nope' is none of"),
    ],
)
def test_bad_arguments(change, message):
    x, expert, weight, params, _ = jax.tree.map(jnp.asarray, problem("random"))
    mesh = jax.make_mesh((1, 1), AXES, axis_types=(AxisType.Auto,) * 2)
    options = {"axis_name": "expert"} | change
    run = jax.shard_map(
        lambda *a: moe_ffn_expert_parallel(*a, **params, **options),
        mesh=mesh,
        in_specs=jax.P(AXES),
        out_specs=jax.P(AXES),
    )
    with pytest.raises(ValueError, match=message):
        run(x, expert, weight)
