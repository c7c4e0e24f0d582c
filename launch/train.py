r"""Train a system.

  python launch/train.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Flags:
  --config=FILE           the experiment, one file of configs/ (the text at its top says what it is)
  --config.FIELD=VALUE    change a field, such as --config.train.steps=100
  --workdir=DIR           the folder for everything the run makes: config.json, metrics.jsonl,
                          checkpoints/, evaluation.json and what the system reports
  --coordinator=HOST:PORT where process 0 of several listens (auto: Slurm, Kubernetes, Cloud TPU,
  --num_processes=N       MPI know it, N and I); the same command on every host, each with its
  --process_id=I          number I from 0, in a workdir that all of them can reach
  --timeout=SECONDS       how long to wait for the others, or for a sign of life of one (120)
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
from moe_jax.errors import UserError
from moe_jax.training import workdir as folders

_FLAGS = {"workdir": "the folder for everything the run makes, such as runs/first"}
_OPTIONAL = ("coordinator", "num_processes", "process_id", "timeout")


def main(argv: Sequence[str]) -> None:
    """Parse the flags, train, evaluate, report."""
    if cli.wants_help(argv):
        cli.print_help(__doc__ or "", argv)
        return
    config, flags = cli.parse_with_config(argv, _FLAGS, _OPTIONAL)
    _connect(flags)

    from moe_jax.training import hosts

    workdir = Path(flags["workdir"])
    with hosts.together(), hosts.first_holds(folders.claimed(workdir, config)):
        task = config.make_task()
        if hosts.first_does(lambda: _finished(workdir)):
            title = f"This run is finished, at step {config.train.steps}"
            stored = (workdir / "evaluation.json").read_text(encoding="utf-8")
            figures = json.loads(stored)["figures"]
        else:
            title, figures = f"Step {config.train.steps}", _train(task, config, workdir)
    if not hosts.is_first():
        return
    if not task.show(workdir):
        cli.print_figures(title, figures)
    cli.print_files(workdir)


def _connect(flags: dict[str, str]) -> None:
    """Join the other processes, if the flags say that there are some."""
    given = {name: flags[name] for name in _OPTIONAL if flags[name]}
    if not given:
        return
    if "coordinator" not in given:
        raise UserError(f"--{next(iter(given))} needs --coordinator=HOST:PORT (or auto)")
    from moe_jax.training import hosts

    numbers = {
        name: cli.whole_number(name, given[name])
        for name in ("num_processes", "process_id", "timeout")
        if name in given
    }
    if numbers.get("timeout", 1) < 1:
        raise UserError(f"--timeout={given['timeout']}: must be at least 1")
    hosts.connect(given["coordinator"], **numbers)


def _train(task: Any, config: Any, workdir: Path) -> dict[str, float | None]:
    from moe_jax.training import hosts
    from moe_jax.training.evaluation import final_figures, write_evaluation
    from moe_jax.training.loop import train

    hosts.check_alike(folders.to_json(config))
    model = train(task, config.train, workdir)

    def evaluate() -> dict[str, float | None]:
        figures = final_figures(task, model, workdir, config.train.steps)
        saved = write_evaluation(workdir, config.train.steps, figures)
        task.report(model, workdir)
        folders.write_atomically(
            workdir / "finished.json", json.dumps({"step": config.train.steps}) + "\n"
        )
        return saved

    return hosts.first_does(evaluate)


def _leave(status: int) -> int:
    """The exit status; one of several processes that failed ends at once, so that nobody waits."""
    if status and "jax" in sys.modules:
        from moe_jax.training import hosts

        return hosts.leave(status)
    return status


def _finished(workdir: Path) -> bool:
    return all((workdir / name).exists() for name in ("finished.json", "evaluation.json"))


if __name__ == "__main__":
    sys.exit(_leave(cli.run(main, sys.argv)))
