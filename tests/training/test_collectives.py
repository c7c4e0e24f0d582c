"""What a program sends: against hand-worked bytes, and against what XLA compiles."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from moe_kernels import moe_ffn_expert_parallel

from moe_jax.training import Collective, MeshConfig, TrainConfig, collectives, dry_run
from moe_jax.training import mesh as meshes
from moe_jax.training.collectives import compiled_bytes, total_sent
from tests.training.moe_toy import BATCH, WIDTH, MoETask

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"a": 4, "b": 2}
MESH = AbstractMesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def found_in(function, *args, specs=None):
    mapped = jax.shard_map(
        function, mesh=MESH, in_specs=specs or jax.P(), out_specs=jax.P(), check_vma=False
    )
    return collectives(jax.make_jaxpr(mapped)(*args), SIZES)


@pytest.mark.parametrize(
    "function, kind, axes, devices, operand, sent",
    [
        # 24 float32 on each device.
        (lambda x: lax.psum(x, "a"), "all_reduce", ("a",), 4, 96, 2 * 96 * 3 / 4),
        (lambda x: lax.pmax(x, ("a", "b")), "all_reduce", ("a", "b"), 8, 96, 2 * 96 * 7 / 8),
        (lambda x: lax.all_gather(x, "a"), "all_gather", ("a",), 4, 96, 3 * 96),
        (
            lambda x: lax.psum_scatter(x, "a", tiled=True),
            "reduce_scatter",
            ("a",),
            4,
            96,
            96 * 3 / 4,
        ),
        (
            lambda x: lax.all_to_all(x, "b", 0, 0, tiled=True),
            "all_to_all",
            ("b",),
            2,
            96,
            96 / 2,
        ),
        (lambda x: lax.ppermute(x, "a", [(0, 1)]), "permute", ("a",), 4, 96, 96),
    ],
)
def test_bytes_by_hand(function, kind, axes, devices, operand, sent):
    (one,) = found_in(function, jnp.zeros((8, 3)))
    assert one == Collective(kind, axes, devices, "", False, 1, False, operand)
    assert one.sent == sent


def test_ragged_sends_its_data_not_its_sizes():
    def function(x, sizes):
        where = jnp.arange(4, dtype=jnp.int32) * 2
        return lax.ragged_all_to_all(
            x, jnp.zeros_like(x), where, sizes, where, sizes, axis_name="a"
        )

    (one,) = found_in(function, jnp.zeros((8, 3)), jnp.ones(4, jnp.int32), specs=(jax.P(),) * 2)
    assert (one.kind, one.operand, one.sent) == ("ragged_all_to_all", 96, 72)


def test_loops_scopes_and_derivatives():
    def function(x):
        def body(carry, _):
            with jax.named_scope("outer"), jax.named_scope("inner"):
                return lax.psum(carry, "a"), None

        def some(x):
            y, _ = lax.scan(body, x, length=5)
            return jnp.sum(y)

        grad = jax.grad(some)(x)
        return lax.while_loop(lambda y: jnp.sum(y) < 9, lambda y: lax.psum(y, "b"), grad)

    *steps, last = found_in(function, jnp.ones(2))
    assert {(c.times, c.scope, c.in_loop) for c in steps} == {(5, "inner", False)}
    assert any(c.backward for c in steps)
    assert (last.times, last.scope, last.in_loop, last.axes) == (1, "", True, ("b",))
    assert total_sent([*steps, last]) == sum(5 * c.sent for c in steps)


def test_one_device_sends_nothing():
    program = jax.make_jaxpr(
        jax.shard_map(
            lambda x: lax.psum(x, "a"),
            mesh=AbstractMesh((1,), ("a",), axis_types=(AxisType.Auto,)),
            in_specs=jax.P(),
            out_specs=jax.P(),
        )
    )(jnp.ones(2))
    assert collectives(program, {"a": 1}) == []


def settings(**sizes):
    return TrainConfig(mesh=MeshConfig(**sizes))


def by_use(found):
    """{(scope, kind, axes): bytes put in}"""
    sums = collections.Counter()
    for c in found:
        direction = "'" if c.backward else ""
        sums[f"{c.scope}{direction} {c.kind} {'+'.join(c.axes)}"] += c.times * c.operand
    return dict(sums)


def test_a_training_step_on_64_devices(monkeypatch):
    """All that a step of a model with one MoE layer sends, from its formulas."""
    monkeypatch.setattr(meshes, "MIN_SPLIT", 1)
    found = dry_run(MoETask(), settings(data=4, fsdp=4, expert=4), 64).collectives
    devices, peers, experts, choices, hidden = 64, 4, 8, 2, 16
    tokens = BATCH // devices
    slots = tokens * choices
    rows = peers * slots  # a buffer has room for all slots at each peer: they are fewer than 8
    expert_part = 3 * (experts // peers) * WIDTH * hidden * 4
    shared = 3 * WIDTH * 8 * 4 + WIDTH * experts * 4 + WIDTH * 3 * 4
    bias = 3 * 4
    assert by_use(found) == {
        "gather_params all_gather fsdp": (expert_part + shared) // 4,
        "dispatch all_to_all expert": rows * (4 + 4 + 4 * WIDTH),
        "combine all_to_all expert": rows * 4 * WIDTH,
        "combine' all_to_all expert": rows * 4 * WIDTH,
        "dispatch' all_to_all expert": rows * (4 + 4 * WIDTH),
        # Switch's loss: how often each expert was chosen, its mean probability, the count.
        "loss all_reduce data+fsdp+expert": 2 * experts * 4 + 4,
        "loss' all_reduce data+fsdp+expert": experts * 4,
        "mean_metrics all_reduce data+fsdp+expert": 5 * 4,
        "mean_grads reduce_scatter fsdp": expert_part + shared,
        "mean_grads all_reduce data+fsdp+expert": bias,
        "mean_grads all_reduce data+expert": shared // 4,
        "mean_grads all_reduce data": expert_part // 4,
        "grad_norm all_reduce fsdp": 5 * 4,
        "grad_norm all_reduce fsdp+expert": 3 * 4,
    }


def test_rounding_halves_what_fsdp_gathers(monkeypatch):
    monkeypatch.setattr(meshes, "MIN_SPLIT", 1)
    config = settings(data=8, fsdp=8)
    exact = by_use(dry_run(MoETask(), config, 64).collectives)
    config.dtype = "bfloat16"
    rounded = by_use(dry_run(MoETask(), config, 64).collectives)
    router = WIDTH * 8 * 4 // 8
    gather = "gather_params all_gather fsdp"
    assert rounded.pop(gather) - router == (exact.pop(gather) - router) / 2
    assert rounded == exact


def test_pieces_send_their_gradients_once():
    config = settings(data=4)
    whole = by_use(dry_run(MoETask(), config, 4).collectives)
    config.accumulate = 4
    pieces = by_use(dry_run(MoETask(), config, 4).collectives)
    for name in ("mean_grads all_reduce data", "mean_metrics all_reduce data"):
        assert pieces.pop(name) == whole.pop(name)
    assert pieces == {name: 4 * size for name, size in whole.items()}


@pytest.mark.parametrize(
    "line, sizes",
    [
        (
            "  %ar = (f32[], s32[2,3]) all-reduce(%a, %b), replica_groups={{0,1}}, to_apply=%add",
            {"all_reduce": 4 + 24},
        ),
        ("ag = bf16[8,4]{1,0} all-gather(%p), replica_groups={{0,4},{1,5}}", {"all_gather": 32}),
        ("ag = f32[8]{0} all-gather-start(%p), replica_groups=[2,4]<=[8]", {"all_gather": 8}),
        ("rs = f32[2]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8]", {"reduce_scatter": 64}),
        (
            "ag = f32[8] all-gather(%p), replica_groups=mesh['a'=2,'b'=4,'c'=2] {'a','b'}",
            {"all_gather": 4},
        ),
        ("a = pred[8,2]{1,0} all-to-all(%p), replica_groups=[1,8]<=[8]", {"all_to_all": 16}),
        ("x = f32[8]{0} add(%all-reduce, %b)", {}),
    ],
)
def test_bytes_in_lines_of_xla(line, sizes):
    assert compiled_bytes(line) == sizes


@pytest.mark.mesh
@pytest.mark.parametrize("exchange", ["all_to_all", "all_gather"])
@pytest.mark.parametrize("room", [None, 64])
def test_the_compiler_sends_what_the_program_says(exchange, room):
    """Forward and backward of a layer on 8 devices: bytes in XLA's text."""
    tokens, experts, width, hidden = 8 * 32, 16, 8, 4
    mesh = jax.make_mesh((8,), ("e",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    spread = jax.P("e")

    def layer(x, expert, weight, w_in, w_out):
        return moe_ffn_expert_parallel(
            x, expert, weight, w_in, w_out,
            axis_name="e", exchange=exchange, rows_per_peer=room, backend="xla",
        )  # fmt: skip

    whole = jax.shard_map(
        layer, mesh=mesh, in_specs=(spread,) * 5, out_specs=spread, check_vma=False
    )

    def step(x, expert, weight, w_in, w_out, dy):
        y, pull = jax.vjp(lambda x, w, a, b: whole(x, expert, w, a, b), x, weight, w_in, w_out)
        return y, pull(dy)

    args = (
        rng.normal(size=(tokens, width)).astype(np.float32),
        rng.integers(0, experts, (tokens, 2)).astype(np.int32),
        np.ones((tokens, 2), np.float32),
        rng.normal(size=(experts, width, hidden)).astype(np.float32),
        rng.normal(size=(experts, hidden, width)).astype(np.float32),
        np.ones((tokens, width), np.float32),
    )
    args = jax.device_put(args, jax.NamedSharding(mesh, spread))
    said = collections.Counter()
    for c in collectives(jax.make_jaxpr(step)(*args), mesh.shape):
        said[c.kind] += c.operand * c.times
    text = jax.jit(step).lower(*args).compile().as_text()
    if exchange == "all_to_all" and room is None:
        # A further round of the backward pass computes the forward one again, but nobody reads the
        # rows that it sends back: XLA removes that.
        said["all_to_all"] -= 8 * 16 * width * 4
    assert compiled_bytes(text) == dict(said)


COMPILE = """
import json, sys
import jax, numpy as np
from flax import nnx
from moe_jax.training import mesh as meshes
from moe_jax.training.collectives import compiled_bytes
from moe_jax.training.config import MeshConfig, TrainConfig
from moe_jax.training.layout import Layout
from moe_jax.training.mesh import make_mesh, place_batch
from moe_jax.training.state import Parts, first_state, streams
from moe_jax.training.layout import spread
from moe_jax.training.step import compile_step, make_optimizer
from tests.training.moe_toy import MoETask

meshes.MIN_SPLIT = 1
task, config = MoETask(), TrainConfig(mesh=MeshConfig(data=4, fsdp=4, expert=4))
parts = Parts(model := task.init(nnx.Rngs(0)), task.trainable)
layout, optimizer = Layout(parts, make_mesh(config.mesh)), make_optimizer(config)
state = first_state(*parts.split(model), optimizer, streams(0)[2])
state = spread(state, layout.shardings(optimizer, state))
batch = place_batch(next(task.train_data()), layout.mesh)
step = compile_step(task, parts, config, layout).lower(state, batch).compile()
print(json.dumps([len(jax.devices()), compiled_bytes(step.as_text())]))
"""


@pytest.mark.slow
def test_xla_compiles_the_same_for_64_devices(monkeypatch):
    """The step of the contract test above, compiled for 64 CPU devices in a process of its own."""
    monkeypatch.setattr(meshes, "MIN_SPLIT", 1)
    said = collections.Counter()
    for c in dry_run(MoETask(), settings(data=4, fsdp=4, expert=4), 64).collectives:
        said[c.kind] += c.operand * c.times
    # Nothing before the layer needs the gradient of its tokens: XLA drops these rows.
    said["all_to_all"] -= 4 * 2 * WIDTH * 4
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "64",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [64, dict(said)]
