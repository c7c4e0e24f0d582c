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

from launch import _cache as cache
from launch import _cli as cli
from launch import _systems as systems
from moe_jax.common import FlagText, Folder


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
    config = systems.load_config(flags.workdir)

    from moe_jax.training import evaluate

    result = evaluate(systems.make_task(config), flags.workdir, flags.checkpoint)
    cli.print_figures(f"Step {result.step}", result.metrics)
    cli.print_files(flags.workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv, cache.keep_programs))
