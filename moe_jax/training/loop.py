"""`train`: any Task, from wherever its workdir says it had got to, to the last step."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    config.validate()
    workdir = local_path(workdir, "workdir")
    with hosts.first_holds(folders.lock(workdir)):
        hosts.check_alike(to_json(config))
        run = _start(task, config, workdir)
        if profile is not None:
            profile.check(run.step, config.steps)
        if run.step < config.steps or run.owes_evaluation():
            run.finish(profile)
        return run.model()


def _start(task: Task, config: TrainConfig, workdir: Path) -> "_Run":
    """A fresh run, or the one that the newest good checkpoint holds."""
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
        return _Run(task, config, workdir, parts, layout, state)
    folders.check_same(workdir, found.run["config"]["train"], to_json(config), "train")
    checkpoint.check_settings(found)
    parts = Parts(model := abstract_model(task), task.trainable)
    params, rest = parts.split(model)
    like = jax.eval_shape(lambda p, r: first_state(p, r, optimizer, step_key), params, rest)
    layout = Layout(parts, mesh, config.dtype)
    state = own(checkpoint.restore_state(found, like, layout.shardings(optimizer, like)))
    hosts.first_does(lambda: checkpoint.set_aside_newer(folder, found.step))
    return _Run(task, config, workdir, parts, layout, state, found)


class _Run:
    """A run under way: the state, how far it is, and what of it is still to be written."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        workdir: Path,
        parts: Parts,
        layout: Layout,
        state: TrainState,
        found: checkpoint.Found | None = None,
    ):
        self.task, self.config, self.workdir, self.parts = task, config, workdir, parts
        self.layout = layout
        self.state, self.step = state, found.step if found else 0
        self._position = found.run["data"] if found else None
        self._window = Window(found.run["window"] if found else None)
        self._saved = self.step if found else None
        self._figures: tuple[int, Figures] = (-1, {})  # the step of an evaluation, and what it gave

    def model(self) -> nnx.Module:
        """The model as it is now, in arrays that no later step touches."""
        return self.parts.merge(
            *whole_copies((self.state.params, self.state.rest), self.layout.mesh)
        )

    def owes_evaluation(self) -> bool:
        """Was this step's evaluation cut off by a signal?"""
        path = self.workdir / "metrics.jsonl"
        return self._due(self.config.eval_every) and hosts.first_does(
            lambda: evaluation_at(path, self.step) is None
        )

    def finish(self, profile: ProfileSteps | None = None) -> None:
        """The steps that are left, with everything that happens between them."""
        with contextlib.ExitStack() as stack:
            self._saver = stack.enter_context(
                Saver(self.workdir / "checkpoints", self.config.retention())
            )
            self._progress, self._writers = None, []
            if hosts.is_first():
                self._progress = Progress(self.step, self.config.steps)
                stack.callback(self._progress.close)
                self._writers = open_writers(self.workdir, self.config, self.step)
                for writer in self._writers:
                    stack.callback(writer.close)
            self._data = self._open_data()
            stack.callback(self._data.close)
            self._interrupts = stack.enter_context(Interrupts())
            self._profiler = stack.enter_context(Profiler(profile, self.workdir / "profile"))
            self._steps()

    def _open_data(self) -> Batches:
        alone = hosts.part() == (0, 1)
        data = self.task.train_data() if alone else self.task.train_data(hosts.part())
        if self._position is not None:
            data.set_state(self._position)
        return data

    def _steps(self) -> None:
        step = compile_step(self.task, self.parts, self.config, self.layout)
        self._clock = time.monotonic()
        if self._saved is None:
            self._save()
        elif self.owes_evaluation():
            self._evaluate()
            if self.config.keep_best:
                self._save()  # once more, with its figures
        self._leave_if_asked()
        while self.step < self.config.steps:
            batch = place_batch(self._next_batch(), self.layout.mesh)
            self._profiler.before(self.step + 1)
            self.state, metrics = step(self.state, batch)
            self.step += 1
            self._profiler.after(self.step, metrics)
            if self._window.add(metrics):
                self._check_finite()
            if self._progress is not None:
                self._progress.step(self.step)
            self._saver.check()
            self._between()

    def _between(self) -> None:
        """Log, evaluate, save: in this order, so that a checkpoint never lacks its own lines."""
        if self._due(self.config.log_every):
            self._log()
        if self._due(self.config.eval_every) and self._signal() is None:
            self._evaluate()
        if self._due(self.config.checkpoint_every):
            self._save()
        self._leave_if_asked()

    def _due(self, every: int) -> bool:
        """Every so many steps and at the last one; 0 = never."""
        return (
            every > 0
            and self.step > 0
            and (self.step % every == 0 or self.step == self.config.steps)
        )

    def _next_batch(self) -> Batch:
        try:
            return next(self._data)
        except StopIteration:
            raise ValueError(
                f"Task.train_data ended after {self.step} batches: it must be endless"
            ) from None

    def _log(self) -> None:
        line = self._window.close()
        self._check_finite()
        now = time.monotonic()
        steps = self.step % self.config.log_every or self.config.log_every
        if self._progress is not None:
            append_timing(self.workdir / "timing.jsonl", self.step, steps, now - self._clock)
            self._progress.metrics(line)
        self._clock = now
        self._write(line)

    def _evaluate(self) -> None:
        began = time.monotonic()
        figures: Mapping[str, Number] = {}
        model = self.model()
        if hosts.is_first():
            with self._interrupts.abandoning():
                figures = self.task.evaluate(model)
        self._figures = (self.step, {n: finite_or_none(float(v)) for n, v in figures.items()})
        if self.config.keep_best:
            hosts.first_does(self._check_best)
        if figures:
            self._write({EVALUATION + name: float(value) for name, value in figures.items()})
        self._clock += time.monotonic() - began  # timing.jsonl is about the steps alone

    def _check_best(self) -> None:
        best, names = self.config.retention().best, sorted(self._figures[1])
        cut_off = self._interrupts.signum is not None and not names
        if best is not None and best.name not in names and not cut_off:
            raise UserError(
                f"train.keep_best={self.config.keep_best!r}: the evaluation has no figure "
                f"{best.name!r}, but {', '.join(names) or 'none at all'}"
            )

    def _write(self, line: dict[str, Number]) -> None:
        for writer in self._writers:
            writer.write(self.step, line)

    def _save(self) -> None:
        window = self._window.save()
        self._check_finite()
        step, figures = self._figures
        record = RunRecord(
            config=self._whole_config(),
            data=self._data.get_state(),
            window=window,
            figures=figures if step == self.step else {},
        )
        self._saver.save(self.state, record)
        self._saved = self.step

    def _whole_config(self) -> dict[str, Any]:
        """The config of the run if there is a config.json, or else just this part of it."""
        if (self.workdir / "config.json").exists():
            return folders.load(self.workdir)
        return {"train": to_json(self.config)}

    def _leave_if_asked(self) -> None:
        signum = self._signal()
        if signum is None:
            return
        if self._saved != self.step:
            self._save()
        self._saver.wait()
        raise Interrupted(signum, self.step)

    def _signal(self) -> int | None:
        """The signal to stop. Several processes agree on it where a line is logged."""
        if hosts.part() == (0, 1):
            return self._interrupts.signum
        if self.step % self.config.log_every and self.step != self.config.steps:
            return None
        return hosts.any_signal(self._interrupts.signum)

    def _check_finite(self) -> None:
        """Stop if the guard has latched."""
        bad = jax.device_get(self.state.bad)
        if bad.in_a_row < self.config.max_bad_steps:
            return
        names = ["the loss", *(f"the gradient of {name}" for name in sorted(self.state.params))]
        raise Diverged(
            f"step {bad.last}: {names[bad.where]} is not finite, in {bad.in_a_row} steps in a row "
            "(train.max_bad_steps); lower train.learning_rate, or look at the data of these steps"
        )
