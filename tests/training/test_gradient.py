"""Batches in pieces, and parameters that are rounded for the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.training import MeshConfig, Task, TrainConfig, make_mesh
from moe_jax.training.gradient import make_gradient
from moe_jax.training.layout import Layout
from moe_jax.training.state import Parts, first_state
from moe_jax.training.step import compile_step, make_optimizer
from tests.training.moe_toy import MoETask


class Counter(nnx.Variable):
    pass


class Model(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (4, 3)))
        self.exact = nnx.Param(jnp.ones((3,)), full_precision=True)
        self.half = nnx.Param(jnp.ones((3,), jnp.float16))
        self.seen = Counter(jnp.zeros((), jnp.int32))
        self.average = nnx.BatchStat(jnp.zeros(()))


class MeanTask(Task):
    """A mean over examples, so that pieces change nothing; it notes the dtypes that it sees."""

    dtypes: dict

    def init(self, rngs):
        return Model(rngs)

    def loss(self, model, batch, rngs):
        self.dtypes = {name: getattr(model, name)[...].dtype for name in ("w", "exact", "half")}
        w = model.w[...]
        scale = (model.exact[...] * model.half[...])[None]
        error = batch["x"] @ w * scale - batch["scale"]
        model.seen[...] += 1
        model.average[...] = 0.5 * model.average[...] + jnp.mean(batch["x"])
        return jnp.mean(error**2), {"size": jnp.float32(batch["x"].shape[0]), "count": 1}

    def train_data(self, part=(0, 1)):
        raise NotImplementedError

    def evaluate(self, model):
        return {}


def batch(rows=12):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    return {"x": jnp.asarray(x), "scale": jnp.float32(0.5)}


def parts_of(task):
    model = task.init(nnx.Rngs(0))
    parts = Parts(model, task.trainable)
    return parts, *parts.split(model)


@pytest.mark.parametrize("pieces", [2, 3, 12])
def test_pieces_give_the_gradient_of_the_whole(pieces):
    task = MeanTask()
    parts, params, rest = parts_of(task)
    key = jax.random.key(0)
    whole = make_gradient(task, parts, 1)(params, rest, batch(), key)
    cut = jax.jit(make_gradient(task, parts, pieces))(params, rest, batch(), key)
    for name in params:
        np.testing.assert_allclose(cut.grads[name], whole.grads[name], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(cut.grads["w"], whole.grads["w"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(cut.loss, whole.loss, rtol=1e-6)
    assert {n: float(v) for n, v in cut.metrics.items()} == {"size": 12 / pieces, "count": 1}
    assert cut.rest["seen"] == pieces
    assert whole.rest["seen"] == 1
    average = 0.0
    for x in np.split(np.asarray(batch()["x"], np.float64), pieces):
        average = 0.5 * average + x.mean()
    np.testing.assert_allclose(cut.rest["average"], average, rtol=1e-5)


def test_each_piece_draws_its_own_numbers():
    class Noise(MeanTask):
        def loss(self, model, batch, rngs):
            loss, _ = super().loss(model, batch, rngs)
            draw = jax.random.uniform(rngs.params())
            return loss, {"draw": draw, "square": draw**2}

    task = Noise()
    parts, params, rest = parts_of(task)
    got = make_gradient(task, parts, 4)(params, rest, batch(), jax.random.key(1)).metrics
    assert got["square"] - got["draw"] ** 2 > 1e-3


def test_examples_that_the_pieces_do_not_divide():
    task = MeanTask()
    parts, params, rest = parts_of(task)
    with pytest.raises(UserError, match=r"12 examples.*train.accumulate=5 does not divide"):
        make_gradient(task, parts, 5)(params, rest, batch(), jax.random.key(0))


def stepped(task, **options):
    config = TrainConfig(learning_rate=0.1, grad_clip=0.0, mesh=MeshConfig(data=1), **options)
    parts, params, rest = parts_of(task)
    state = first_state(params, rest, make_optimizer(config), jax.random.key(0))
    step = compile_step(task, parts, config, Layout(parts, make_mesh(config.mesh), config.dtype))
    return *step(state, batch()), params


def test_what_the_loss_sees_and_what_is_kept():
    exact_task, task = MeanTask(), MeanTask()
    exact, exact_metrics, _ = stepped(exact_task)
    state, metrics, before = stepped(task, dtype="bfloat16")
    assert exact_task.dtypes == {"w": "float32", "exact": "float32", "half": "float16"}
    assert task.dtypes == {"w": "bfloat16", "exact": "float32", "half": "float16"}
    for name, leaf in state.params.items():
        assert leaf.dtype == before[name].dtype
    moments = state.opt_state[0]
    assert moments.mu["w"].dtype == moments.nu["w"].dtype == jnp.float32
    got, want = moments.mu["w"], exact.opt_state[0].mu["w"]
    assert 0 < np.max(np.abs(got - want)) < 0.02 * np.max(np.abs(want))
    assert abs(metrics["loss"] - exact_metrics["loss"]) < 0.02 * exact_metrics["loss"]


def test_the_router_is_not_rounded():
    task = MoETask()
    parts = Parts(task.init(nnx.Rngs(0)), task.trainable)
    assert parts.full_precision() == {"moe.gate.w_de"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"accumulate": 0}, "train.accumulate=0"),
        ({"accumulate": True}, "train.accumulate=True"),
        ({"dtype": "float16"}, r"train.dtype='float16': must be one of float32, bfloat16"),
        (
            {"mesh": MeshConfig(pmap=True, fsdp=2)},
            r"train.mesh.fsdp=2: must be 1: train.mesh.pmap has",
        ),
        ({"mesh": MeshConfig(pmap=True, expert=-1, data=1)}, r"train.mesh.expert=-1"),
        ({"mesh": MeshConfig(expert=0)}, r"train.mesh.expert=0"),
    ],
)
def test_bad_fields(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TrainConfig(), **change).validate("train")
