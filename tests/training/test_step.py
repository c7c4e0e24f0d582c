"""The pure step against hand-worked values and an update loop in float64 NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.training import MeshConfig, TrainConfig, make_mesh
from moe_jax.training.layout import Layout
from moe_jax.training.state import Parts, first_state, streams
from moe_jax.training.step import clipped, make_optimizer, make_schedule, make_step
from tests.training import toy


def started(task, config, seed=0):
    init, _, key = streams(seed)
    model = task.init(nnx.Rngs(init))
    parts = Parts(model, task.trainable)
    state = first_state(*parts.split(model), make_optimizer(config), key)
    return model, parts, state


def compiled(task, parts, config):
    layout = Layout(parts, make_mesh(MeshConfig(data=1)))
    return jax.jit(make_step(task, parts, config, layout), donate_argnums=0)


def numpy_leaves(tree):
    return [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in jax.tree.leaves(tree)]


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assert_same(one, other):
    for a, b in zip(numpy_leaves(one), numpy_leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "rates"),
    [
        ({}, {0: 1.0, 5: 1.0, 10: 1.0}),
        ({"warmup_steps": 4}, {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 9: 1.0}),
        ({"schedule": "cosine"}, {0: 1.0, 5: 0.5, 10: 0.0}),
        (
            {"schedule": "cosine", "warmup_steps": 2},
            {1: 0.5, 2: 1.0, 4: (1 + math.cos(math.pi / 4)) / 2, 6: 0.5, 10: 0.0},
        ),
    ],
    ids=["constant", "warm-up", "cosine", "both"],
)
def test_the_schedule_has_the_hand_worked_values(change, rates):
    schedule = make_schedule(TrainConfig(steps=10, learning_rate=1.0, **change))
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize("grad_clip", [0.0, 0.5, 100.0])
def test_clipping_and_the_optimizer_are_adamw_that_spares_biases(grad_clip):
    config = TrainConfig(
        steps=10, learning_rate=0.1, warmup_steps=2, weight_decay=0.3, grad_clip=grad_clip
    )
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
    grads = [{name: rng.normal(size=p.shape) for name, p in params.items()} for _ in range(4)]
    optimizer = make_optimizer(config)
    got = {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}
    state = optimizer.init(got)
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for n, grad in enumerate(grads):
        norm = math.sqrt(sum((g**2).sum() for g in grad.values()))
        small = {name: jnp.asarray(g, jnp.float32) for name, g in grad.items()}
        small = clipped(small, jnp.float32(norm), grad_clip)
        updates, state = optimizer.update(small, state, got)
        got = {name: got[name] + updates[name] for name in got}
        scale = min(1.0, grad_clip / norm) if grad_clip else 1.0
        rate = 0.1 * min(n / 2, 1.0)
        for name, g in grad.items():
            first[name] = 0.9 * first[name] + 0.1 * scale * g
            second[name] = 0.999 * second[name] + 0.001 * (scale * g) ** 2
            update = (first[name] / (1 - 0.9 ** (n + 1))) / (
                np.sqrt(second[name] / (1 - 0.999 ** (n + 1))) + 1e-8
            )
            decay = 0.3 if name == "w" else 0.0
            params[name] = params[name] - rate * (update + decay * params[name])
    for name, p in params.items():
        np.testing.assert_allclose(got[name], p, rtol=2e-5, atol=1e-6)


def test_one_step_reports_the_loss_and_gradient_of_the_task():
    task, config = toy.ToyTask(), TrainConfig(steps=10, learning_rate=0.1)
    model, parts, state = started(task, config)
    batch = next(task.train_data())
    key = jax.random.fold_in(state.key, 0)

    def loss_of(params):
        copy = parts.merge(params, parts.split(model)[1])
        return task.loss(copy, batch, nnx.Rngs(key))[0]

    loss, grads = jax.value_and_grad(loss_of)(parts.split(model)[0])
    norm = math.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))
    after, metrics = compiled(task, parts, config)(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    assert bool(metrics["ok"])
    assert int(after.step) == 1
    assert set(metrics) == {"loss", "grad_norm", "learning_rate", "ok", "accuracy"}


def test_frozen_leaves_stay_and_running_averages_move():
    task, config = toy.ToyTask(), TrainConfig(steps=10, learning_rate=0.1)
    model, parts, state = started(task, config)
    scale = np.asarray(model.scale[...])
    batch = next(task.train_data())
    after, _ = compiled(task, parts, config)(state, batch)
    assert sorted(after.params) == [
        f"layers.{i}.{name}" for i in (0, 1) for name in ("bias", "kernel")
    ]
    np.testing.assert_array_equal(after.rest["scale"], scale)
    np.testing.assert_allclose(after.rest["mean"], 0.1 * batch["x"].mean(0), rtol=1e-5)
    assert not np.array_equal(after.params["layers.0.kernel"], model.layers[0].kernel[...])


def test_donating_the_state_leaves_the_model_it_came_from_alive():
    task, config = toy.ToyTask(), TrainConfig(steps=10)
    model, parts, state = started(task, config)
    before = numpy_leaves(parts.split(model))
    step, data = compiled(task, parts, config), task.train_data()
    for _ in range(2):
        state, _ = step(state, next(data))
    assert_same(parts.split(model), before)


def test_each_step_draws_other_numbers_and_the_same_ones_again():
    config = TrainConfig(steps=10)

    class Draws(toy.ToyTask):
        def loss(self, model, batch, rngs):
            loss, _ = super().loss(model, batch, rngs)
            return loss, {"draw": jax.random.uniform(rngs())}

    def draws(seed):
        task = Draws()
        _, parts, state = started(task, config, seed)
        step, data, drawn = compiled(task, parts, config), task.train_data(), []
        for _ in range(4):
            state, metrics = step(state, next(data))
            drawn.append(float(metrics["draw"]))
        return drawn

    assert len(set(draws(0))) == 4
    assert draws(0) == draws(0)
    assert set(draws(0)).isdisjoint(draws(1))


@jax.custom_vjp
def tainted(x, factor):
    """x, but its gradient is multiplied by `factor`."""
    return x


tainted.defvjp(
    lambda x, factor: (x, factor), lambda factor, g: (g * factor, jnp.zeros_like(factor))
)


class Poisoned(toy.ToyTask):
    """A batch says what is `bad`: 1 the loss, 2 the gradient of one leaf, 0 nothing."""

    def loss(self, model, batch, rngs):
        kernel = model.layers[1].kernel
        kernel[...] = tainted(kernel[...], jnp.where(batch["bad"] == 2, jnp.inf, 1.0))
        loss, metrics = super().loss(model, batch, rngs)
        return jnp.where(batch["bad"] == 1, jnp.nan, loss), metrics


def poisoned_run(kinds, config):
    task = Poisoned()
    _, parts, state = started(task, config)
    step, data = compiled(task, parts, config), task.train_data()
    for kind in kinds:
        before = jax.tree.map(jnp.copy, state)
        state, metrics = step(state, dict(next(data), bad=np.int32(kind)))
        yield before, jax.tree.map(jnp.copy, state), metrics


@pytest.mark.parametrize(("kind", "where"), [(1, 0), (2, 4)], ids=["loss", "layers.1.kernel"])
def test_a_bad_step_changes_nothing_but_the_counts(kind, where):
    config = TrainConfig(steps=10, learning_rate=0.1)
    runs = list(poisoned_run([0, kind, 0], config))
    before, after, metrics = runs[1]
    assert not bool(metrics["ok"])
    for name in ("params", "rest", "opt_state", "key"):
        assert_same(getattr(after, name), getattr(before, name))
    assert jax.device_get(after.bad) == (1, 1, 2, where)
    assert int(after.step) == 2
    _, last, metrics = runs[2]
    assert bool(metrics["ok"])
    assert jax.device_get(last.bad)[:2] == (1, 0)
    assert all(np.isfinite(leaf).all() for leaf in numpy_leaves(last.params))


def test_the_schedule_counts_updates_not_skipped_steps():
    config = TrainConfig(steps=10, learning_rate=1.0, warmup_steps=5)
    rates = [float(m["learning_rate"]) for _, _, m in poisoned_run([0, 1, 1, 0, 0], config)]
    assert rates == pytest.approx([0.0, 0.2, 0.2, 0.2, 0.4])


def test_the_guard_latches_after_so_many_in_a_row():
    config = TrainConfig(steps=10, learning_rate=0.1, max_bad_steps=2)
    runs = list(poisoned_run([1, 0, 1, 1, 0, 0], config))
    assert [bool(metrics["ok"]) for _, _, metrics in runs] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    assert jax.device_get(runs[-1][1].bad)[:3] == (3, 2, 4)
    assert_same(runs[-1][1].params, runs[2][0].params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((jnp.zeros(2), {}), r"loss of shape \(2,\)"),
        ((jnp.zeros(()), {"loss": jnp.zeros(())}), "'loss', which the step itself gives"),
        ((jnp.zeros(()), {"a": jnp.zeros(3)}), r"'a' of shape \(3,\)"),
    ],
)
def test_a_task_with_a_wrong_loss_is_told_so(given, message):
    class Wrong(toy.ToyTask):
        def loss(self, model, batch, rngs):
            return given

    task, config = Wrong(), TrainConfig(steps=10)
    _, parts, state = started(task, config)
    with pytest.raises(ValueError, match=message):
        compiled(task, parts, config)(state, next(task.train_data()))


def test_a_filter_that_selects_nothing_is_an_error():
    model = toy.Toy(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="selects no variable"):
        Parts(model, nnx.Cache)


def test_parts_come_together_as_they_came_apart():
    model = toy.Toy(rngs=nnx.Rngs(3))
    parts = Parts(model, toy.ToyTask.trainable)
    again = parts.merge(*parts.split(model))
    x = toy.data(1)["x"]
    np.testing.assert_array_equal(again(x), model(x))
    other = Parts(nnx.eval_shape(lambda: toy.Toy(rngs=nnx.Rngs(0))), toy.ToyTask.trainable)
    np.testing.assert_array_equal(other.merge(*parts.split(model))(x), model(x))
