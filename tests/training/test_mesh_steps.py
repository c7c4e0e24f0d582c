"""Training on eight devices is training on one: losses, gradients, parameters, checkpoints."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax import losses
from moe_jax.errors import UserError
from moe_jax.training import MeshConfig, TrainConfig, checkpoint, make_mesh, mesh, train
from moe_jax.training.layout import Layout, whole_copies
from moe_jax.training.mesh import batch_axes, place_batch
from moe_jax.training.retention import Retention
from moe_jax.training.saver import RunRecord, Saver
from moe_jax.training.state import Parts, first_state, own, streams
from moe_jax.training.step import make_optimizer, make_step
from tests.training import toy
from tests.training.moe_toy import MoETask, Wrapped

pytestmark = pytest.mark.mesh
STEPS = 4
MESHES = [
    {"data": 1, "expert": 8},
    {"data": 2, "expert": 4},
    {"data": 4, "expert": 2},
    {"data": 8, "expert": 1},
    {"data": 2, "fsdp": 2, "expert": 2},
    {"data": 1, "fsdp": 8},
]


@pytest.fixture(autouse=True)
def _split_small_parameters_too(monkeypatch):
    monkeypatch.setattr(mesh, "MIN_SPLIT", 1)


def settings(**sizes):
    return TrainConfig(
        steps=10,
        learning_rate=0.01,
        grad_clip=0.3,
        weight_decay=0.1,
        log_every=1,
        checkpoint_every=5,
        mesh=MeshConfig(**sizes),
    )


class Run:
    """A few steps of a task on a mesh."""

    def __init__(self, task, config, steps=STEPS):
        init, _, key = streams(0)
        model = task.init(nnx.Rngs(init))
        parts = Parts(model, task.trainable)
        self.mesh = make_mesh(config.mesh)
        self.layout = Layout(parts, self.mesh, config.dtype)
        optimizer = make_optimizer(config)
        state = first_state(*parts.split(model), optimizer, key)
        self.shardings = self.layout.shardings(optimizer, state)
        self.like = jax.eval_shape(lambda: state)
        self.state = jax.device_put(state, self.shardings)
        self.step = jax.jit(make_step(task, parts, config, self.layout), donate_argnums=0)
        self.metrics, self.grads, batches = [], None, task.train_data()
        for i in range(steps):
            self.state, metrics = self.step(self.state, place_batch(next(batches), self.mesh))
            self.metrics.append({n: float(v) for n, v in metrics.items()})
            if i == 0:  # Adam's first average is a tenth of the gradient
                self.grads = jax.tree.map(np.asarray, self.state.opt_state[0].mu)


@pytest.fixture(scope="module")
def one_device():
    return Run(MoETask(), settings(data=1))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_steps_equal_those_of_one_device(sizes, one_device):
    class Counted(MoETask):
        traced = 0

        def loss(self, *args):
            self.traced += 1
            return super().loss(*args)

    task = Counted()
    run = Run(task, settings(**sizes))
    assert run.mesh.size == 8
    assert task.traced == 1  # compiled once: the state comes out of a step as it went in
    for got, want in zip(run.metrics, one_device.metrics, strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for name, want in one_device.grads.items():
        error = np.abs(run.grads[name] - want).max() / np.abs(want).max()
        assert error < 1e-5, (name, error)
    for name, want in one_device.state.params.items():
        np.testing.assert_allclose(run.state.params[name], want, rtol=1e-3, atol=1e-4)


def test_parameters_lie_where_they_should():
    run = Run(MoETask(), settings(data=2, fsdp=2, expert=2), steps=1)
    lies = {n: p.sharding.spec for n, p in run.state.params.items()}
    assert lies["moe.w_in_edf"] == jax.P("expert", None, "fsdp")
    assert lies["moe.w_out_efd"] == jax.P("expert", "fsdp")
    assert lies["moe.gate.w_de"] == jax.P("fsdp")
    local = run.state.params["moe.w_in_edf"].addressable_shards[0].data
    assert local.shape == (4, 8, 8)
    moment = run.state.opt_state[0].nu["moe.w_in_edf"]
    assert moment.sharding.spec == jax.P("expert", None, "fsdp")


@pytest.mark.parametrize("sizes", [{"data": 2, "expert": 4}, {"data": 2, "fsdp": 4}], ids=str)
def test_copies_stay_the_same_bit_for_bit(sizes):
    run = Run(MoETask(), settings(**sizes))
    for leaf in jax.tree.leaves(run.state._replace(key=())):
        first = {}
        for shard in leaf.addressable_shards:
            same = first.setdefault(str(shard.index), np.asarray(shard.data))
            np.testing.assert_array_equal(np.asarray(shard.data), same)


def test_running_averages_are_over_the_batch():
    runs = [Run(toy.ToyTask(), settings(data=n), steps=2) for n in (1, 8)]
    one, many = (np.asarray(run.state.rest["mean"]) for run in runs)
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-7)


def test_devices_draw_different_numbers():
    class Draws(toy.ToyTask):
        def loss(self, model, batch, rngs):
            number = jax.random.uniform(rngs())
            spread = jax.lax.pmax(number, batch_axes()) - jax.lax.pmin(number, batch_axes())
            return super().loss(model, batch, rngs)[0], {"spread": spread}

    assert Run(Draws(), settings(data=8), steps=1).metrics[0]["spread"] > 0.1
    assert Run(Draws(), settings(data=1), steps=1).metrics[0]["spread"] == 0


def test_dropout_modules_and_metrics_that_are_no_floats():
    class WithDropout(nnx.Module):
        def __init__(self, rngs):
            self.layer, self.drop = nnx.Linear(8, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    class Drops(MoETask):
        def init(self, rngs):
            return WithDropout(rngs)

        def loss(self, model, batch, rngs):
            out = model.layer(model.drop(jnp.asarray(batch["x"])))
            large = jnp.sum(out > 0.5)
            metrics = {"large": large, "any": jnp.any(batch["id"] == 7)}
            return jnp.mean((out - batch["y"]) ** 2), metrics

    for count in (1, 8):
        run = Run(Drops(), settings(data=count), steps=3)
        assert run.metrics[-1]["large"] > 0
        assert sum(m["any"] for m in run.metrics) in (0, 1 / count)  # a mean over devices
        counter = [v for n, v in run.state.rest.items() if n.endswith("count")]
        assert [int(c) for c in counter] == [3] * len(counter) != []


def test_a_bad_step_on_one_device_is_skipped_on_all():
    class Poisoned(MoETask):
        def loss(self, model, batch, rngs):
            loss, metrics = super().loss(model, batch, rngs)
            return jnp.where(jnp.any(batch["id"] == poisoned), jnp.nan, loss), metrics

    poisoned = int(next(MoETask().train_data())["id"][-1])
    run = Run(Poisoned(), settings(data=2, expert=4), steps=2)
    assert [m["ok"] for m in run.metrics] == [0.0, 1.0]
    assert int(run.state.bad.total) == 1


class Breaks(Wrapped):
    """An iterator that breaks after some batches."""

    def __init__(self, inner, after):
        super().__init__(inner)
        self.left = after

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return next(self.inner)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(MoETask(), settings(data=1), workdir)


@pytest.mark.parametrize(
    "other", [{"data": 2}, {"data": 1}, {"data": 4, "expert": 2}, {"fsdp": 8, "data": 1}], ids=str
)
def test_a_run_goes_on_with_other_devices(other, unbroken, tmp_path):
    class Half(MoETask):
        def train_data(self, part=(0, 1)):
            return Breaks(super().train_data(), after=7)

    with pytest.raises(KeyboardInterrupt):
        train(Half(), settings(data=2, expert=4), tmp_path)
    assert checkpoint.newest(tmp_path / "checkpoints").step == 5
    model = train(MoETask(), settings(**other), tmp_path)
    whole, got = ([x for x in lines(w) if "loss" in x] for w in (unbroken[0], tmp_path))
    assert [x["step"] for x in got] == list(range(1, 11))
    for one, other_line in zip(whole, got, strict=True):
        assert other_line["loss"] == pytest.approx(one["loss"], rel=1e-4)
    pairs = zip(
        jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(unbroken[1])), strict=True
    )
    for one, two in pairs:
        np.testing.assert_allclose(one, two, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("other", [*MESHES, {"data": 2}, {"data": 1}], ids=str)
def test_a_checkpoint_is_the_same_on_every_mesh(other, tmp_path):
    run = Run(MoETask(), settings(data=2, fsdp=2, expert=2), steps=2)
    record = RunRecord(config={}, data={}, window={})
    with Saver(tmp_path, keep=Retention(1)) as saver:
        saver.save(run.state, record)
    there = Run(MoETask(), settings(**other), steps=0)
    found = checkpoint.newest(tmp_path)
    state = own(checkpoint.restore_state(found, there.like, there.shardings))
    for tree in (state, whole_copies(state, there.mesh)):
        for got, want in zip(jax.tree.leaves(tree), jax.tree.leaves(run.state), strict=True):
            if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
                got, want = jax.random.key_data(got), jax.random.key_data(want)
            np.testing.assert_array_equal(got, want)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(there.shardings), strict=True):
        assert got.sharding.is_equivalent_to(want, got.ndim)
    next_batch = place_batch(next(MoETask().train_data()), there.mesh)
    assert np.isfinite(float(there.step(state, next_batch)[1]["loss"]))


def test_a_batch_that_the_devices_do_not_divide(tmp_path):
    with pytest.raises(UserError, match=r"a batch has 64 examples \(\w+\), which the 6 devices"):
        train(MoETask(), settings(data=6), tmp_path)


def test_experts_that_the_axis_does_not_divide(tmp_path):
    with pytest.raises(UserError, match=r"has 8 experts, which train.mesh.expert=3 does not"):
        train(MoETask(), settings(data=1, expert=3), tmp_path)


def over_devices(function, *arrays):
    mapped = jax.shard_map(
        function,
        mesh=make_mesh(MeshConfig()),
        in_specs=jax.P(mesh.AXES),
        out_specs=jax.P(),
        check_vma=False,
    )
    return jax.jit(mapped)(*arrays)


def test_balance_losses_count_the_whole_batch():
    rng = np.random.default_rng(0)
    probs = jax.nn.softmax(jnp.asarray(rng.normal(size=(16, 5, 6)), jnp.float32))
    where = jnp.asarray(rng.uniform(size=(16, 5)) < 0.6).at[:2].set(False)  # device 0 has none
    expert = jnp.argsort(-probs, axis=-1)[..., :2]
    flat, real, chosen = probs.reshape(80, 6), where.reshape(80), expert.reshape(80, 2)

    def batch(p, w, axes):
        return losses.load_balance(p, where=w, over="batch", axis_name=axes)

    def switch(p, e, w, axes):
        return losses.switch_balance(p, e, where=w, axis_name=axes)

    for function, arrays in ((batch, (probs, where)), (switch, (flat, chosen, real))):
        want = function(*arrays, None)
        got = over_devices(functools.partial(function, axes=mesh.AXES), *arrays)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        apart = over_devices(lambda *a, f=function: jax.lax.pmean(f(*a, None), mesh.AXES), *arrays)
        assert abs(float(apart - want)) > 1e-3  # not what the mean of local losses would be


def test_pmap_gives_the_same(tmp_path):
    """Up to rounding: XLA may fuse the same step otherwise."""
    names = ("a", "b")
    configs = [settings(data=8), dataclasses.replace(settings(), mesh=MeshConfig(pmap=True))]
    models = [train(MoETask(), c, tmp_path / n) for n, c in zip(names, configs, strict=True)]
    leaves = [jax.tree.leaves(nnx.state(model)) for model in models]
    for got, want in zip(*leaves, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    got, want = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in names
    )
    assert got == [pytest.approx(record, rel=1e-5) for record in want]


def test_a_run_goes_on_from_pmap_with_a_mesh(tmp_path):
    unbroken = train(toy.ToyTask(), settings(data=8), tmp_path / "unbroken")
    short = dataclasses.replace(settings(), mesh=MeshConfig(pmap=True))

    class Stops(toy.ToyTask):
        def train_data(self, part=(0, 1)):
            return Ends(super().train_data(part))

    class Ends(Wrapped):
        left = 7

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("stop here")
            return next(self.inner)

    with pytest.raises(RuntimeError, match="stop here"):
        train(Stops(), short, tmp_path / "moved")
    moved = train(toy.ToyTask(), settings(data=8), tmp_path / "moved")
    for got, want in zip(*(jax.tree.leaves(nnx.state(m)) for m in (moved, unbroken)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("options", [{"accumulate": 4}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "expert": 2}, {"data": 8}], ids=str)
def test_pieces_and_rounding_on_a_mesh(sizes, options):
    """Against one device that takes the batch at once."""
    apart = {**options, "accumulate": 1}
    one = Run(PlainTask(), dataclasses.replace(settings(data=1), **apart), steps=2)
    many = Run(PlainTask(), dataclasses.replace(settings(**sizes), **options), steps=2)
    limit = 2e-2 if "dtype" in options else 1e-5
    for name, want in one.grads.items():
        error = np.abs(many.grads[name] - want).max() / np.abs(want).max()
        assert error < limit, (name, error)
    assert many.metrics[0]["fit"] == pytest.approx(one.metrics[0]["fit"], rel=limit)


class PlainTask(MoETask):
    """Without the loss over the batch, which in pieces is another."""

    def loss(self, model, batch, rngs):
        _, metrics = super().loss(model, batch, rngs)
        return metrics["fit"], metrics
