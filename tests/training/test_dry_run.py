"""A dry run says what the real run then has."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from launch._dry_run_table import print_dry_run, size_text
from moe_jax.errors import UserError
from moe_jax.training import MeshConfig, TrainConfig, dry_run, make_mesh
from moe_jax.training import mesh as meshes
from moe_jax.training.layout import Layout, spread
from moe_jax.training.mesh import place_batch
from moe_jax.training.state import Parts, first_state
from moe_jax.training.step import make_optimizer
from tests.training.moe_toy import MoETask


def settings(**sizes):
    return TrainConfig(mesh=MeshConfig(**sizes))


def printed(found, width=120):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_dry_run(found, console)
    return console.file.getvalue()


def on_first_device(tree):
    """Bytes that the arrays have on one device."""
    leaves = jax.tree.leaves(tree)
    shards = [leaf.addressable_shards[0].data for leaf in leaves]
    return sum(s.nbytes for s in shards)


@pytest.mark.mesh
@pytest.mark.parametrize(
    "sizes", [{"data": 2, "fsdp": 2, "expert": 2}, {"data": 8}, {"data": 1, "expert": 4, "fsdp": 2}]
)
def test_bytes_are_those_of_the_arrays(sizes, monkeypatch):
    monkeypatch.setattr(meshes, "MIN_SPLIT", 1)
    task, config = MoETask(), settings(**sizes)
    found = dry_run(task, config)
    model = task.init(nnx.Rngs(0))
    parts = Parts(model, task.trainable)
    layout, optimizer = Layout(parts, make_mesh(config.mesh)), make_optimizer(config)
    state = first_state(*parts.split(model), optimizer, jax.random.key(0))
    state = spread(state, layout.shardings(optimizer, state))
    assert {p.name: p.bytes for p in found.parameters} == {
        name: leaf.addressable_shards[0].data.nbytes for name, leaf in state.params.items()
    }
    assert found.memory["parameters"] == on_first_device(state.params)
    assert found.memory["optimizer"] == on_first_device(state.opt_state)
    batch = place_batch(next(task.train_data()), layout.mesh)
    assert found.memory["batch"] == on_first_device(batch)
    together = "parameters as the loss sees them"
    if "fsdp" in sizes:
        whole = jax.jit(
            jax.shard_map(
                layout.gather,
                mesh=layout.mesh,
                in_specs=(layout.params,),
                out_specs=jax.P(meshes.AXES),
                check_vma=False,
            )
        )
        # Each device's copy as a slice of a larger array.
        shapes = jax.eval_shape(whole, state.params)
        size = sum(a.size * a.dtype.itemsize for a in shapes.values()) // layout.mesh.size
        assert found.memory[together] == found.memory["gradients"] == size
    else:
        assert together not in found.memory
    assert found.real
    assert found.temporary > 0


def test_64_devices_that_are_not_there():
    found = dry_run(MoETask(), settings(fsdp=2, expert=4), 64)
    assert found.sizes == {"data": 8, "fsdp": 2, "expert": 4}
    assert (found.real, found.temporary) == (False, None)
    text = printed(found)
    assert "64 devices (imagined); no step was made" in text
    rows = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "moe.w_in_edf 8 8 16 float32 expert - - 1.02 kB" in rows
    assert "head.bias 3 float32 copied 12 B" in rows
    assert "data 8 the batch" in rows
    assert any(row.startswith("sum 2") for row in rows)
    assert "combine all_to_all expert 1 256 B 192 B" in rows


def test_rounded_parameters_are_counted():
    config = settings(data=1)
    config.dtype = "bfloat16"
    memory = dry_run(MoETask(), config, 1).memory
    router = 8 * 8 * 4
    assert memory["parameters as the loss sees them"] == (memory["parameters"] + router) / 2
    assert memory["gradients"] == memory["parameters"]


def test_one_device_sends_nothing():
    found = dry_run(MoETask(), settings(data=1))
    assert found.real
    assert found.collectives == []
    text = printed(found)
    assert "1 device (here)" in text
    assert "nothing is sent" in text
    assert "temporaries of the compiled step" in text


def test_further_rounds_are_told_apart():
    class Large(MoETask):
        def batch_like(self):
            like = super().batch_like()
            return {n: jax.ShapeDtypeStruct((4096, *a.shape[1:]), a.dtype) for n, a in like.items()}

    text = printed(dry_run(Large(), settings(expert=4), 4))
    assert "dispatch further rounds (backward)" in text
    assert "each round" in text
    assert "sum, without further rounds" in text


@pytest.mark.parametrize(
    "sizes, devices, message",
    [
        ({"data": 3}, 2, "3 devices, but here are 2"),
        ({"expert": 3}, 4, "3 does not divide the 4 devices"),
        ({"expert": 16}, 64, "8 experts, which train.mesh.expert=16 does not divide"),
        ({}, 48, "64 examples .*48 devices"),
    ],
)
def test_what_does_not_fit(sizes, devices, message):
    with pytest.raises(UserError, match=message):
        dry_run(MoETask(), settings(**sizes), devices)


def test_a_huge_model_takes_no_memory():
    """10 TB of parameters: only shapes are made."""

    class Huge(MoETask):
        def init(self, rngs):
            model = super().init(rngs)
            model.huge = nnx.Param(jnp.zeros((2**21, 2**20)), axes=("embed", "hidden"))
            return model

    found = dry_run(Huge(), settings(fsdp=64), 64)
    assert found.memory["parameters"] > 2**41 * 4 / 64
    assert found.parameters[0].name == "head.bias"


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (2e9, "2 GB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_sizes_as_text(count, text):
    assert size_text(count) == text


def test_the_default_asks_the_data_for_its_shapes():
    like = MoETask().batch_like()
    real = next(MoETask().train_data())
    assert {n: a.shape for n, a in like.items()} == {n: np.shape(a) for n, a in real.items()}
