r"""Train a system.

  python launch/train.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Flags:
  --config=FILE           the experiment, one file of configs/ (the text at its top says what it is)
  --config.FIELD=VALUE    change a field, such as --config.train.steps=100
  --workdir=DIR           the folder for everything the run makes: config.json, metrics.jsonl,
                          checkpoints/, evaluation.json and what the system reports
  --help                  this text; with --config=FILE also the fields and their values

Examples:
  python launch/train.py --config=configs/rationale.py --workdir=runs/first
  python launch/train.py --config=configs/rationale.py --workdir=runs/short \
      --config.train.steps=100 --config.train.learning_rate=0.001
  python launch/train.py --config=configs/rationale.py --help

The same command in the same folder goes on with an interrupted run (Ctrl-C, SIGTERM, a crash), and
ends bit for bit where the unbroken run would have. A finished run is only shown.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import cli
from moe_jax.training import workdir as folders

_FLAGS = {"workdir": "the folder for everything the run makes, such as runs/first"}


def main(argv: Sequence[str]) -> None:
    """Parse the flags, train, evaluate, report."""
    if cli.wants_help(argv):
        cli.print_help(__doc__ or "", argv)
        return
    config, flags = cli.parse_with_config(argv, _FLAGS)
    workdir = Path(flags["workdir"])
    with folders.claimed(workdir, config):
        task = config.make_task()
        if _finished(workdir):
            title = f"This run is finished, at step {config.train.steps}"
            stored = (workdir / "evaluation.json").read_text(encoding="utf-8")
            figures = json.loads(stored)["figures"]
        else:
            title, figures = f"Step {config.train.steps}", _train(task, config, workdir)
    if not task.show(workdir):
        cli.print_figures(title, figures)
    cli.print_files(workdir)


def _train(task: Any, config: Any, workdir: Path) -> dict[str, float | None]:
    from moe_jax.training.evaluation import final_figures, write_evaluation
    from moe_jax.training.loop import train

    model = train(task, config.train, workdir)
    figures = final_figures(task, model, workdir, config.train.steps)
    saved = write_evaluation(workdir, config.train.steps, figures)
    task.report(model, workdir)
    folders.write_atomically(
        workdir / "finished.json", json.dumps({"step": config.train.steps}) + "\n"
    )
    return saved


def _finished(workdir: Path) -> bool:
    return all((workdir / name).exists() for name in ("finished.json", "evaluation.json"))


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
