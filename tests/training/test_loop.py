"""`train` as a whole: what it learns, writes, resumes and refuses."""

import itertools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.common import Interrupted, Interrupts
from moe_jax.errors import UserError
from moe_jax.training import Diverged, TrainConfig, make_mesh, restore_model, train
from moe_jax.training import workdir as folders
from moe_jax.training.checkpoint import list_steps
from moe_jax.training.layout import Layout
from moe_jax.training.state import Parts, first_state, streams
from moe_jax.training.step import make_optimizer, make_step
from tests.training import toy


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell's background job is told to ignore SIGINT; these tests send it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def config(**change):
    fields = {"steps": 30, "learning_rate": 0.03, "log_every": 7, "checkpoint_every": 10}
    return TrainConfig(**fields | {"eval_every": 12} | change)


def leaves(model):
    flat = nnx.to_flat_state(nnx.state(model))
    keys = jax.dtypes.prng_key
    return {
        path: np.asarray(leaf[...])
        for path, leaf in flat
        if not jnp.issubdtype(leaf[...].dtype, keys)
    }


def assert_same_models(one, other):
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=str(path))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(workdir, model) of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, train(toy.ToyTask(), config(), workdir)


def test_it_learns_and_the_lines_are_means_of_the_steps(unbroken):
    """An independent loop of the same step gives the same figures, line by line."""
    workdir, model = unbroken
    task, settings = toy.ToyTask(), config()
    init, prepare, key = streams(settings.seed)
    first = task.init(nnx.Rngs(init))
    parts = Parts(first, task.trainable)
    first = task.prepare(first, nnx.Rngs(prepare))
    state = first_state(*parts.split(first), make_optimizer(settings), key)
    layout = Layout(parts, make_mesh(settings.mesh))
    step = jax.jit(make_step(task, parts, settings, layout), donate_argnums=0)
    data, losses = task.train_data(), []
    for _ in range(settings.steps):
        state, metrics = step(state, next(data))
        losses.append(float(metrics["loss"]))
    assert_same_models(model, parts.merge(state.params, state.rest))
    logged = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in logged] == [7, 14, 21, 28, 30]
    for line, begin in zip(logged, (0, 7, 14, 21, 28), strict=True):
        assert line["loss"] == pytest.approx(np.mean(losses[begin : line["step"]]), rel=1e-12)
        assert line["skipped"] == 0
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]


def test_evaluations_come_at_their_steps_and_at_the_end(unbroken):
    workdir, model = unbroken
    evaluated = [line for line in lines(workdir) if "eval/accuracy" in line]
    assert [line["step"] for line in evaluated] == [12, 24, 30]
    assert evaluated[-1]["eval/accuracy"] == toy.ToyTask().evaluate(model)["accuracy"]
    assert evaluated[-1]["eval/accuracy"] > 0.8


def test_timing_is_in_a_file_of_its_own(unbroken):
    workdir, _ = unbroken
    timing = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in timing] == [
        (7, 7), (14, 7), (21, 7), (28, 7), (30, 2)
    ]  # fmt: skip
    assert all(line["seconds"] > 0 for line in timing)
    assert not any("seconds" in line for line in lines(workdir))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(unbroken, tmp_path):
    workdir, model = unbroken
    again = train(toy.ToyTask(), config(), tmp_path / "again")
    assert_same_models(model, again)
    written = (workdir / "metrics.jsonl").read_bytes()
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == written
    train(toy.ToyTask(), config(seed=1), tmp_path / "other")
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() != written


def test_a_finished_run_is_not_trained_again(unbroken, tmp_path):
    workdir, model = unbroken

    class Idle(toy.ToyTask):
        def train_data(self, part=(0, 1)):
            raise AssertionError("a finished run needs no data")

    before = (workdir / "metrics.jsonl").read_bytes()
    assert_same_models(train(Idle(), config(), workdir), model)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert_same_models(restore_model(toy.ToyTask(), workdir), model)


class StopsAt(toy.ToyTask):
    """Gets a signal while the batch of some step is made, or during its n-th evaluation."""

    def __init__(self, step=None, evaluation=None, signum=signal.SIGTERM):
        super().__init__()
        self.step, self.evaluation, self.signum = step, evaluation, signum

    def train_data(self, part=(0, 1)):
        return _Signalling(super().train_data(), self)

    def evaluate(self, model):
        figures = super().evaluate(model)
        if self.evaluated == self.evaluation:
            signal.raise_signal(self.signum)
            raise AssertionError("the evaluation was to be left at once")
        return figures


class _Signalling:
    def __init__(self, data, task):
        self._data, self._task, self._drawn = data, task, 0
        self.get_state, self.set_state, self.close = data.get_state, data.set_state, data.close

    def __next__(self):
        self._drawn += 1
        if self._drawn == self._task.step:
            signal.raise_signal(self._task.signum)
        return next(self._data)


@pytest.mark.parametrize(
    ("step", "signum"),
    [(1, signal.SIGTERM), (7, signal.SIGINT), (10, signal.SIGTERM), (12, signal.SIGINT), (30, 15)],
)
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_bit_for_bit(
    unbroken, tmp_path, step, signum
):
    before = signal.getsignal(signum)
    with pytest.raises(
        Interrupted, match=f"{signal.Signals(signum).name}: stopped at step {step}"
    ) as caught:
        train(StopsAt(step=step, signum=signum), config(), tmp_path)
    assert (caught.value.signum, caught.value.step) == (signum, step)
    assert list_steps(tmp_path / "checkpoints")[-1] == step
    assert signal.getsignal(signum) is before
    workdir, model = unbroken
    assert_same_models(train(toy.ToyTask(), config(), tmp_path), model)
    written = (workdir / "metrics.jsonl").read_bytes()
    assert (tmp_path / "metrics.jsonl").read_bytes() == written


@pytest.mark.parametrize("evaluation", [1, 3])
def test_a_signal_ends_an_evaluation_at_once_and_it_is_done_on_resuming(
    unbroken, tmp_path, evaluation
):
    with pytest.raises(Interrupted, match=f"step {(12, 24, 30)[evaluation - 1]}"):
        train(StopsAt(evaluation=evaluation), config(), tmp_path)
    workdir, model = unbroken
    assert_same_models(train(toy.ToyTask(), config(), tmp_path), model)
    written = (workdir / "metrics.jsonl").read_bytes()
    assert (tmp_path / "metrics.jsonl").read_bytes() == written


def test_prepare_runs_once_and_its_result_is_kept(tmp_path):
    prepared = []
    task = StopsAt(step=1)
    task.prepared = prepared
    with pytest.raises(Interrupted):
        train(task, config(), tmp_path)
    model = train(toy.ToyTask(prepared=prepared), config(), tmp_path)
    assert prepared == [1]
    spread = 1 / toy.data(0)["x"].std(0)  # `init` gives 2, `prepare` this and a little noise
    np.testing.assert_allclose(model.scale[...], spread, atol=0.05)


def test_a_second_signal_acts_at_once():
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
    assert not isinstance(caught.value, Interrupted)


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.signum is None
    finally:
        signal.signal(signal.SIGINT, before)


class Poisoned(toy.ToyTask):
    """The loss is not a number for batches of some steps (from 1)."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def train_data(self, part=(0, 1)):
        return _Numbered(super().train_data())

    def loss(self, model, batch, rngs):
        loss, metrics = super().loss(model, batch, rngs)
        bad = jnp.any(batch["number"] == jnp.array(self.steps))
        return jnp.where(bad, jnp.nan, loss), metrics


class _Numbered:
    def __init__(self, data):
        self._data, self._numbers = data, itertools.count(1)
        self.get_state, self.set_state, self.close = data.get_state, data.set_state, data.close

    def __next__(self):
        return dict(next(self._data), number=np.int32(next(self._numbers)))


def test_bad_steps_are_skipped_and_counted(tmp_path):
    train(Poisoned(3, 9, 10), config(steps=14, eval_every=0, max_bad_steps=3), tmp_path)
    assert [(line["step"], line["skipped"]) for line in lines(tmp_path)] == [(7, 1), (14, 2)]
    assert all(np.isfinite(list(line.values())).all() for line in lines(tmp_path))


def test_too_many_bad_steps_in_a_row_stop_the_run_and_say_where(tmp_path):
    poisoned = Poisoned(*range(12, 31))
    with pytest.raises(Diverged, match=r"^step 15: the loss is not finite, in 4 steps in a row"):
        train(poisoned, config(max_bad_steps=4), tmp_path)
    assert list_steps(tmp_path / "checkpoints") == [0, 10]
    model = restore_model(poisoned, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in leaves(model).values())


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    class Root(toy.ToyTask):
        def loss(self, model, batch, rngs):
            loss, metrics = super().loss(model, batch, rngs)
            return loss + jnp.sqrt(jnp.sum(model.layers[1].bias[...] * 0)), metrics

    with pytest.raises(Diverged, match=r"^step 2: the gradient of layers\.1\.bias is not finite"):
        train(Root(), config(max_bad_steps=2), tmp_path)


def test_data_that_ends_is_an_error_that_says_when(tmp_path):
    class Short(toy.ToyTask):
        def train_data(self, part=(0, 1)):
            data = _Numbered(super().train_data())
            data._numbers = iter([1, 2])
            return data

    with pytest.raises(ValueError, match="ended after 2 batches"):
        train(Short(), config(), tmp_path)


class WithState(toy.ToyTask):
    """A model with a random state and running statistics of its own."""

    trainable = nnx.Param

    class Model(nnx.Module):
        def __init__(self, *, rngs):
            self.norm = nnx.BatchNorm(toy.FEATURES, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.linear = nnx.Linear(toy.FEATURES, toy.CLASSES, rngs=rngs)

        def __call__(self, x, key=None):
            x = self.norm(x, use_running_average=key is None)
            return self.linear(self.dropout(x, deterministic=key is None))

    def init(self, rngs):
        return self.Model(rngs=rngs)

    def prepare(self, model, rngs):
        return model


def test_a_model_with_a_random_state_of_its_own_resumes_bit_for_bit(tmp_path):
    class Stops(StopsAt, WithState):
        pass

    settings = config(steps=12)
    whole = train(WithState(), settings, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(Stops(step=5), settings, tmp_path / "cut")
    resumed = train(WithState(), settings, tmp_path / "cut")
    (count,) = (leaf for path, leaf in leaves(whole).items() if path[-1] == "count")
    assert count == 12
    for path, leaf in nnx.to_flat_state(nnx.state(whole)):
        other = dict(nnx.to_flat_state(nnx.state(resumed)))[path]
        assert (leaf[...] == other[...]).all(), path


def test_another_config_in_the_same_folder_is_refused(unbroken):
    workdir, _ = unbroken
    with pytest.raises(UserError, match=r"train\.learning_rate=0\.03, not 0\.5"):
        train(toy.ToyTask(), config(learning_rate=0.5), workdir)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with folders.lock(tmp_path), pytest.raises(UserError, match="another process"):
        train(toy.ToyTask(), config(), tmp_path)


def test_a_bad_config_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match=r"^train\.steps=0"):
        train(toy.ToyTask(), config(steps=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prepare_may_not_change_shapes(tmp_path):
    class Grows(toy.ToyTask):
        def prepare(self, model, rngs):
            model.scale = nnx.Param(jnp.ones(7))
            return model

    class Widens(toy.ToyTask):
        def prepare(self, model, rngs):
            model.extra = nnx.Param(jnp.ones(7))
            return model

    with pytest.raises(ValueError, match=r"Task\.prepare changed scale from"):
        train(Grows(), config(), tmp_path)
    with pytest.raises(ValueError, match=r"Task\.prepare changed extra from None"):
        train(Widens(), config(), tmp_path)
