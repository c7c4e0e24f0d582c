"""A whole run: its folder claimed, the task trained, evaluated and reported, the run finished."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from moe_jax.common.files import local_path, write_atomically
from moe_jax.common.schema import to_json
from moe_jax.errors import UserError
from moe_jax.training import hosts
from moe_jax.training import workdir as folders
from moe_jax.training.checkpoint import NEWEST, restore_model_at
from moe_jax.training.evaluation import final_figures, read_evaluation, write_evaluation
from moe_jax.training.loop import train
from moe_jax.training.profile import ProfileSteps
from moe_jax.training.task import Task


class Evaluation(NamedTuple):
    """What a run came to.

    Attributes:
      step: of the model that was evaluated.
      metrics: the figures by name, as evaluation.json has them; None stands for NaN.
      was_finished: the run had been finished before, and its figures were only read.
    """

    step: int
    metrics: dict[str, float | None]
    was_finished: bool = False


def run(
    task: Task, config: Any, workdir: Path | str, *, profile: ProfileSteps | None = None
) -> Evaluation:
    """Train a task to its last step, evaluate it, and leave its report.

    What launch/train.py does. Under `workdir`, beside what `train` leaves: config.json,
    evaluation.json, what the task's report writes, and at last finished.json. An interrupted run
    is resumed; a finished one is left as it is. Several processes call it together.

    Args:
      task: what is trained.
      config: the run's whole config: a dataclass with `train` (a TrainConfig) and `validate()`; for
        launch/evaluate.py also `system`.
      workdir: the run's folder, new or of this same config.
      profile: the steps to trace, if any.

    Raises:
      UserError: a bad config, a folder of another run, steps to trace of a finished one, and what
        `train` and the task raise.
      Interrupted: Ctrl-C or SIGTERM; the same call resumes.
    """
    config.validate()
    folder, step = local_path(workdir, "workdir"), config.train.steps
    with hosts.together(), hosts.first_holds(folders.claimed(folder, config)):
        if hosts.first_does(lambda: _is_finished(folder)):
            if profile is not None:
                raise UserError(
                    f"--profile_steps={profile.first}:{profile.last}: the run in {folder} is "
                    "finished; give another folder"
                )
            return Evaluation(step, read_evaluation(folder), was_finished=True)
        hosts.check_alike(to_json(config))
        model = train(task, config.train, folder, profile=profile)
        return Evaluation(step, hosts.first_does(lambda: _finish(task, model, folder, step)))


def evaluate(task: Task, workdir: Path | str, checkpoint: str = NEWEST) -> Evaluation:
    """Evaluate one of a run's checkpoints; write evaluation.json and the report again.

    Args:
      task: what was trained.
      workdir: where.
      checkpoint: "newest" (the newest good one), "best" (by the run's train.keep_best), or a step.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it is of another model.
    """
    folder = local_path(workdir, "workdir")
    model, step = restore_model_at(task, folder, checkpoint)
    metrics = write_evaluation(folder, step, task.evaluate(model))
    task.report(model, folder)
    return Evaluation(step, metrics)


def _is_finished(workdir: Path) -> bool:
    return all((workdir / name).exists() for name in ("finished.json", "evaluation.json"))


def _finish(task: Task, model: nnx.Module, workdir: Path, step: int) -> dict[str, float | None]:
    """Evaluate, report, and say that the run is finished."""
    metrics = write_evaluation(workdir, step, final_figures(task, model, workdir, step))
    task.report(model, workdir)
    write_atomically(workdir / "finished.json", json.dumps({"step": step}) + "\n")
    return metrics
