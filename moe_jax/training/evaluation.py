"""The figures at the end of a run, in evaluation.json."""

import json
from collections.abc import Mapping
from pathlib import Path

from flax import nnx

from moe_jax.common.files import read_object, write_atomically
from moe_jax.common.schema import finite_or_none
from moe_jax.errors import UserError
from moe_jax.training.metrics import Number, evaluation_at
from moe_jax.training.task import Task


def final_figures(task: Task, model: nnx.Module, workdir: Path, step: int) -> Mapping[str, Number]:
    """Figures of the model at its last step: those of the loop if it evaluated it, or new ones."""
    known = evaluation_at(workdir / "metrics.jsonl", step)
    return task.evaluate(model) if known is None else known


def write_evaluation(
    workdir: Path, step: int, figures: Mapping[str, Number]
) -> dict[str, float | None]:
    """Write evaluation.json, {"step": n, "figures": {name: value}}; null stands for NaN.

    Returns the figures as written.
    """
    values = {name: finite_or_none(float(value)) for name, value in figures.items()}
    text = json.dumps({"step": step, "figures": values}, indent=2, allow_nan=False)
    write_atomically(workdir / "evaluation.json", text + "\n")
    return values


def read_evaluation(workdir: Path) -> dict[str, float | None]:
    """The figures that `write_evaluation` wrote.

    Raises:
      UserError: they can't be read.
    """
    path = workdir / "evaluation.json"
    figures = read_object(path).get("figures")
    if not isinstance(figures, dict) or any(
        isinstance(value, bool) or not isinstance(value, int | float | None)
        for value in figures.values()
    ):
        raise UserError(
            f"{path}: holds no figures; launch/evaluate.py --workdir={workdir} makes it again"
        )
    return figures
