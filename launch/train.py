r"""Train a system.

  python launch/train.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Flags:
  --config=FILE           the experiment, one file of configs/ (the text at its top says what it is)
  --config.FIELD=VALUE    change a field, such as --config.train.steps=100
  --workdir=DIR           the folder for everything the run makes: metrics, checkpoints, report
  --dry_run[=DEVICES]     only print what would lie where, bytes and messages, on the devices here
                          or on so many, such as --dry_run=64 (needs no --workdir)
  --coordinator=HOST:PORT where process 0 of several listens (auto: Slurm, Kubernetes, Cloud TPU,
  --num_processes=N       MPI know it, N and I); the same command on every host, each with its
  --process_id=I          number I from 0, in a workdir that all of them can reach
  --timeout=SECONDS       how long to wait for the others, or for a sign of life of one (120)
  --profile_steps=A:B     trace the steps A to B into DIR/profile, for XProf or TensorBoard
  --debug_nans            stop where the first NaN arises, with a traceback (slow)
  --help                  this text; with --config=FILE also the fields and their values

Example:
  python launch/train.py --config=configs/rationale.py --workdir=runs/short --config.train.steps=100

The same command in the same folder goes on with an interrupted run (Ctrl-C, SIGTERM, a crash), and
ends bit for bit where the unbroken run would have. A finished run is only shown.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import cli, memory
from moe_jax.common.files import write_atomically
from moe_jax.common.schema import to_json
from moe_jax.errors import UserError
from moe_jax.training import workdir as folders

if TYPE_CHECKING:
    from moe_jax.training.profile import ProfileSteps

_HERE = "here"
_CONNECT = ("coordinator", "num_processes", "process_id", "timeout")
_OPTIONAL = ("workdir", "dry_run", "profile_steps", "debug_nans", *_CONNECT)
_BARE = {"dry_run": _HERE, "debug_nans": "true"}


def main(argv: Sequence[str]) -> None:
    """Parse the flags, train, evaluate, report."""
    if cli.wants_help(argv):
        cli.print_help(__doc__ or "", argv)
        return
    config, flags = cli.parse_with_config(argv, {}, _OPTIONAL, _BARE, ("workdir",))
    if flags["dry_run"]:
        _dry_run(config, flags["dry_run"])
        return
    if not flags["workdir"]:
        raise UserError(
            "--workdir=DIR is missing: the folder for everything the run makes, such as runs/first"
        )
    _connect(flags)

    from moe_jax.training import hosts
    from moe_jax.training.evaluation import read_evaluation

    workdir, profile = Path(flags["workdir"]), _profile(flags["profile_steps"])
    with hosts.together(), hosts.first_holds(folders.claimed(workdir, config)):
        task = config.make_task()
        if hosts.first_does(lambda: _finished(workdir)):
            if profile is not None:
                raise UserError(
                    f"--profile_steps={flags['profile_steps']}: the run in {workdir} is finished; "
                    "give another folder"
                )
            title = f"This run is finished, at step {config.train.steps}"
            figures = read_evaluation(workdir)
        else:
            title = f"Step {config.train.steps}"
            _debug_nans(flags["debug_nans"])
            figures = _train(task, config, workdir, profile)
    if not hosts.is_first():
        return
    if not task.show(workdir):
        cli.print_figures(title, figures)
    cli.print_files(workdir)


def _dry_run(config: Any, where: str) -> None:
    from rich.console import Console

    from launch.dry_run import print_dry_run
    from moe_jax.training.dry_run import dry_run

    devices = None if where == _HERE else cli.whole_number("dry_run", where)
    if devices is not None and devices < 1:
        raise UserError(f"--dry_run={where}: must be at least 1 device")
    found = dry_run(config.make_task(), config.train, devices)
    console = Console()
    print_dry_run(found, console if console.is_terminal else Console(width=120))


def _connect(flags: dict[str, str]) -> None:
    """Join the other processes, if the flags say that there are some."""
    given = {name: flags[name] for name in _CONNECT if flags[name]}
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


def _profile(text: str) -> "ProfileSteps | None":
    from moe_jax.training.profile import ProfileSteps

    return ProfileSteps.parse(text) if text else None


def _debug_nans(text: str) -> None:
    import jax

    if text:
        jax.config.update("jax_debug_nans", cli.yes_or_no("debug_nans", text))


def _train(
    task: Any, config: Any, workdir: Path, profile: "ProfileSteps | None"
) -> dict[str, float | None]:
    from moe_jax.training import hosts
    from moe_jax.training.evaluation import final_figures, write_evaluation
    from moe_jax.training.loop import train

    hosts.check_alike(to_json(config))
    model = train(task, config.train, workdir, profile=profile)

    def evaluate() -> dict[str, float | None]:
        figures = final_figures(task, model, workdir, config.train.steps)
        saved = write_evaluation(workdir, config.train.steps, figures)
        task.report(model, workdir)
        write_atomically(workdir / "finished.json", json.dumps({"step": config.train.steps}) + "\n")
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
    if not cli.wants_help(sys.argv):
        memory.keep_heap_on_cpu()
    sys.exit(_leave(cli.run(main, sys.argv)))
