"""Evaluate a trained system once more, from one of its checkpoints.

  python launch/evaluate.py --workdir=DIR [--checkpoint=best]

Flags:
  --workdir=DIR        the folder of a run that launch/train.py made
  --checkpoint=WHICH   newest (the newest good one; the default), best (by the run's
                       train.keep_best), or a step
  --help               this text

It prints every figure, writes them to DIR/evaluation.json and makes the report again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import cli, systems


def main(argv: Sequence[str]) -> None:
    """Parse the flags, restore, evaluate."""
    if cli.wants_help(argv):
        cli.print_help(__doc__ or "", argv)
        return
    given = cli.parse(
        argv,
        {"workdir": "the folder of a run, such as runs/first"},
        {"checkpoint": "newest"},
        paths=("workdir",),
    )
    workdir = Path(given["workdir"])
    config = systems.load_config(workdir)

    from moe_jax.training.checkpoint import restore_model_at
    from moe_jax.training.evaluation import write_evaluation

    task = config.make_task()
    model, step = restore_model_at(task, workdir, given["checkpoint"])
    figures = write_evaluation(workdir, step, task.evaluate(model))
    task.report(model, workdir)
    cli.print_figures(f"Step {step}", figures)
    cli.print_files(workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
