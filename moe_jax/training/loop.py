"""`train`: any Task, from wherever its workdir says it had got to, to the last step."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from moe_jax.common.files import local_path
from moe_jax.common.interrupt import Interrupted, Interrupts
from moe_jax.common.progress import Progress
from moe_jax.common.schema import finite_or_none, to_json
from moe_jax.errors import UserError
from moe_jax.training import checkpoint, hosts
from moe_jax.training import workdir as folders
from moe_jax.training.config import TrainConfig
from moe_jax.training.layout import Layout, spread, whole_copies
from moe_jax.training.mesh import make_mesh, place_batch
from moe_jax.training.metrics import (
    EVALUATION,
    Number,
    Window,
    Writer,
    append_timing,
    evaluation_at,
    open_writers,
)
from moe_jax.training.profile import Profiler, ProfileSteps
from moe_jax.training.retention import Figures
from moe_jax.training.saver import RunRecord, Saver
from moe_jax.training.state import Parts, TrainState, abstract_model, first_state, own, streams
from moe_jax.training.step import compile_step, make_optimizer
from moe_jax.training.task import Batch, Batches, Task


class Diverged(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def train(
    task: Task, config: TrainConfig, workdir: Path | str, *, profile: ProfileSteps | None = None
) -> nnx.Module:
    """Train a task to `config.steps` and return its model.

    Under `workdir` it leaves metrics.jsonl (means over every `log_every` steps, and evaluations),
    timing.jsonl and checkpoints/. If there are checkpoints, the run goes on from the newest good
    one, and everything but timing.jsonl ends up bit for bit as if it had never stopped. A finished
    run is not trained again.

    With `profile`, profile/ has a trace of these steps (JAX's profiler: XProf, TensorBoard). With
    `jax.config.jax_debug_nans` the first NaN stops the run, with a traceback of where it arose.

    Raises:
      UserError: a bad config, a workdir of another run or of one that was begun under other
        settings of JAX (x64, random numbers), a full disk, steps to profile that are not to be
        made.
      Diverged: `max_bad_steps` steps in a row were not finite; says where.
      Interrupted: Ctrl-C or SIGTERM; the step was finished and a checkpoint left.
    """
    config.validate("train")
    workdir = local_path(workdir, "workdir")
    with hosts.first_holds(folders.lock(workdir)):
        hosts.check_alike(to_json(config))

        # A fresh state, or that of the newest good checkpoint.
        run, state = _begin(task, config, workdir)
        step, saved, window = run.step, run.saved, Window(run.window)
        evaluation: Figures = {}  # figures of this step, if it was evaluated
        if profile is not None:
            profile.check(step, config.steps)
        owed = _owes_evaluation(config, workdir, step)
        if step == config.steps and not owed:
            return _model(run, state)

        with contextlib.ExitStack() as stack:
            # What is written and read.
            saver = stack.enter_context(Saver(workdir / "checkpoints", config.retention()))
            log = stack.enter_context(_Log(workdir, config, step))
            data = stack.enter_context(contextlib.closing(_open_data(task, run.data)))
            interrupts = stack.enter_context(Interrupts())
            profiler = stack.enter_context(Profiler(profile, workdir / "profile"))
            make_step = compile_step(task, run.parts, config, run.layout)
            log.start()

            def save() -> int:
                sums = window.save()
                _check_finite(state, config)
                record = RunRecord(
                    config=_whole_config(workdir, config),
                    data=data.get_state(),
                    window=sums,
                    figures=evaluation,
                )
                saver.save(state, record)
                return step

            # What is to be done before the next step: an evaluation that was cut off, step 0 saved.
            if owed:
                evaluation = _evaluate(run, state, step, log, interrupts)
            if saved is None or (owed and config.keep_best):
                saved = save()

            while (signum := _agreed_signal(config, step, interrupts)) is None:
                if step == config.steps:
                    break

                # One step.
                batch = place_batch(_next_batch(data, step), run.layout.mesh)
                profiler.before(step + 1)
                state, metrics = make_step(state, batch)
                step, evaluation = step + 1, {}
                profiler.after(step, metrics)
                if window.add(metrics):
                    _check_finite(state, config)
                log.step(step)
                saver.check()

                # Log, evaluate, save: in this order, so a checkpoint never lacks its own lines.
                if _due(config, config.log_every, step):
                    line = window.close()
                    _check_finite(state, config)
                    log.line(step, line)
                due = _due(config, config.eval_every, step)
                if due and _agreed_signal(config, step, interrupts) is None:
                    evaluation = _evaluate(run, state, step, log, interrupts)
                if _due(config, config.checkpoint_every, step):
                    saved = save()

            # After a signal, leave with a checkpoint.
            if signum is not None:
                if saved != step:
                    save()
                saver.wait()
                raise Interrupted(signum, step)
        return _model(run, state)


class _Run(NamedTuple):
    """A run where it begins: fresh, or as a checkpoint has it.

    Attributes:
      task: what is trained.
      config: how.
      workdir: where.
      parts: which leaves are trained.
      layout: where they lie on the devices.
      step: how many steps are done.
      saved: the step of the checkpoint; None: there is none yet.
      data: the position in the data; None: at its beginning.
      window: the metric sums since the last line of metrics.jsonl.
    """

    task: Task
    config: TrainConfig
    workdir: Path
    parts: Parts
    layout: Layout
    step: int = 0
    saved: int | None = None
    data: Any = None
    window: Mapping[str, Any] | None = None


def _begin(task: Task, config: TrainConfig, workdir: Path) -> tuple[_Run, TrainState]:
    """A fresh run and its arrays, or those that the newest good checkpoint holds."""
    folder = workdir / "checkpoints"
    found = checkpoint.newest_for_all(folder)
    init_key, prepare_key, step_key = streams(config.seed)
    optimizer, mesh = make_optimizer(config), make_mesh(config.mesh)
    if found is None:
        model = task.init(nnx.Rngs(init_key))
        parts = Parts(model, task.trainable)
        model = task.prepare(model, nnx.Rngs(prepare_key))
        parts.check_same(model)
        state = first_state(*parts.split(model), optimizer, step_key)
        layout = Layout(parts, mesh, config.dtype)
        state = spread(state, layout.shardings(optimizer, state))
        return _Run(task, config, workdir, parts, layout), state
    folders.check_same(workdir, found.run["config"]["train"], config, "train")
    checkpoint.check_settings(found)
    parts = Parts(model := abstract_model(task), task.trainable)
    params, rest = parts.split(model)
    like = jax.eval_shape(lambda p, r: first_state(p, r, optimizer, step_key), params, rest)
    layout = Layout(parts, mesh, config.dtype)
    state = own(checkpoint.restore_state(found, like, layout.shardings(optimizer, like)))
    hosts.first_does(lambda: checkpoint.set_aside_newer(folder, found.step))
    at, run = found.step, found.run
    return _Run(task, config, workdir, parts, layout, at, at, run["data"], run["window"]), state


def _open_data(task: Task, position: Any) -> Batches:
    alone = hosts.part() == (0, 1)
    data = task.train_data() if alone else task.train_data(hosts.part())
    if position is not None:
        data.set_state(position)
    return data


def _next_batch(data: Batches, done: int) -> Batch:
    try:
        return next(data)
    except StopIteration:
        raise ValueError(
            f"Task.train_data ended after {done} batches: it must be endless"
        ) from None


def _model(run: _Run, state: TrainState) -> nnx.Module:
    """The model as it is now, in arrays that no later step touches."""
    return run.parts.merge(*whole_copies((state.params, state.rest), run.layout.mesh))


def _due(config: TrainConfig, every: int, step: int) -> bool:
    """Every so many steps and at the last one; 0 = never."""
    return every > 0 and step > 0 and (step % every == 0 or step == config.steps)


def _owes_evaluation(config: TrainConfig, workdir: Path, step: int) -> bool:
    """Was this step's evaluation cut off by a signal?"""
    path = workdir / "metrics.jsonl"
    return _due(config, config.eval_every, step) and hosts.first_does(
        lambda: evaluation_at(path, step) is None
    )


def _evaluate(
    run: _Run, state: TrainState, step: int, log: "_Log", interrupts: Interrupts
) -> Figures:
    """The figures of this step, also written; {} if a signal cut the evaluation off."""
    began = time.monotonic()
    figures: Mapping[str, Number] = {}
    model = _model(run, state)
    if hosts.is_first():
        with interrupts.abandoning():
            figures = run.task.evaluate(model)
    if run.config.keep_best:
        cut_off = interrupts.signum is not None and not figures
        hosts.first_does(lambda: None if cut_off else _check_best(run.config, sorted(figures)))
    if figures:
        log.write(step, {EVALUATION + name: float(value) for name, value in figures.items()})
    log.leave_out(time.monotonic() - began)
    return {name: finite_or_none(float(value)) for name, value in figures.items()}


def _check_best(config: TrainConfig, names: list[str]) -> None:
    """That an evaluation has the figure by which the best checkpoint is kept."""
    best = config.retention().best
    if best is not None and best.name not in names:
        raise UserError(
            f"train.keep_best={config.keep_best!r}: the evaluation has no figure "
            f"{best.name!r}, but {', '.join(names) or 'none at all'}"
        )


def _whole_config(workdir: Path, config: TrainConfig) -> dict[str, Any]:
    """The config of the run if there is a config.json, or else just this part of it."""
    if (workdir / "config.json").exists():
        return folders.load(workdir)
    return {"train": to_json(config)}


def _agreed_signal(config: TrainConfig, step: int, interrupts: Interrupts) -> int | None:
    """The signal to stop. Several processes agree on it where a line is logged."""
    if hosts.part() == (0, 1):
        return interrupts.signum
    if step % config.log_every and step != config.steps:
        return None
    return hosts.any_signal(interrupts.signum)


def _check_finite(state: TrainState, config: TrainConfig) -> None:
    """Stop if the guard has latched."""
    bad = jax.device_get(state.bad)
    if bad.in_a_row < config.max_bad_steps:
        return
    names = ["the loss", *(f"the gradient of {name}" for name in sorted(state.params))]
    raise Diverged(
        f"step {bad.last}: {names[bad.where]} is not finite, in {bad.in_a_row} steps in a row "
        "(train.max_bad_steps); lower train.learning_rate, or look at the data of these steps"
    )


class _Log:
    """The progress on stderr, metrics.jsonl and timing.jsonl, of the first process alone."""

    def __init__(self, workdir: Path, config: TrainConfig, step: int):
        self._workdir, self._config, self._begin = workdir, config, step
        self._progress: Progress | None = None
        self._writers: list[Writer] = []
        self._stack = contextlib.ExitStack()
        self._clock = 0.0

    def __enter__(self) -> "_Log":
        with contextlib.ExitStack() as stack:
            if hosts.is_first():
                self._progress = Progress(self._begin, self._config.steps)
                stack.callback(self._progress.close)
                self._writers = open_writers(self._workdir, self._config, self._begin)
                for writer in self._writers:
                    stack.callback(writer.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """From now on the time counts that timing.jsonl tells."""
        self._clock = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on steps: timing.jsonl is about these alone."""
        self._clock += seconds

    def step(self, step: int) -> None:
        """This step is done."""
        if self._progress is not None:
            self._progress.step(step)

    def line(self, step: int, line: dict[str, Number]) -> None:
        """The means over the last steps, and how long these took."""
        now = time.monotonic()
        steps = step % self._config.log_every or self._config.log_every
        if self._progress is not None:
            append_timing(self._workdir / "timing.jsonl", step, steps, now - self._clock)
            self._progress.metrics(line)
        self._clock = now
        self.write(step, line)

    def write(self, step: int, line: dict[str, Number]) -> None:
        """A line of metrics.jsonl."""
        for writer in self._writers:
            writer.write(step, line)
