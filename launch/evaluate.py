"""Evaluate a trained system once more, from one of its checkpoints.

  python launch/evaluate.py --workdir=DIR [--checkpoint=best]

It prints every figure, writes them to DIR/evaluation.json and makes the report again.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _cli as cli
from launch import _systems as systems
from moe_jax.common.schema import FlagText, Folder


@dataclasses.dataclass(kw_only=True)
class EvaluateFlags:
    """Which checkpoint of which run.

    Attributes:
      workdir: the folder of a run that launch/train.py made, such as runs/first.
      checkpoint: newest (the newest good one), best (by the run's train.keep_best), or a step.
    """

    workdir: Folder
    checkpoint: Annotated[str, FlagText("WHICH")] = "newest"


def main(argv: Sequence[str]) -> None:
    """Parse the flags, restore, evaluate."""
    flags = cli.parse(argv, EvaluateFlags, __doc__)
    workdir = flags.workdir
    config = systems.load_config(workdir)

    from moe_jax.training.checkpoint import restore_model_at
    from moe_jax.training.evaluation import write_evaluation

    task = config.make_task()
    model, step = restore_model_at(task, workdir, flags.checkpoint)
    figures = write_evaluation(workdir, step, task.evaluate(model))
    task.report(model, workdir)
    cli.print_figures(f"Step {step}", figures)
    cli.print_files(workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
