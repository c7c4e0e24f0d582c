r"""Train a system.

  python launch/train.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Example:
  python launch/train.py --config=configs/rationale.py --workdir=runs/short --config.train.steps=100

The same command in the same folder goes on with an interrupted run (Ctrl-C, SIGTERM, a crash), and
ends bit for bit where the unbroken run would have. A finished run is only shown.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _cli as cli
from launch import _memory as memory
from moe_jax.common.files import write_atomically
from moe_jax.common.schema import FlagText, Folder, to_json
from moe_jax.errors import UserError
from moe_jax.training import workdir as folders

if TYPE_CHECKING:
    from moe_jax.training.profile import ProfileSteps


@dataclasses.dataclass(kw_only=True)
class TrainFlags:
    """Where a run is, on which devices, and what is looked at.

    Attributes:
      workdir: the folder for everything the run makes: metrics, checkpoints, report.
      dry_run: only print what would lie where, bytes and messages, on the devices here, or on so
        many (needs no --workdir).
      coordinator: where process 0 of several listens (auto: Slurm, Kubernetes, Cloud TPU, MPI know
        it and the next two); the same command on every host, each with its number, in a workdir
        that all of them can reach.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      timeout: how long to wait for the others, or for a sign of life of one (default 120).
      profile_steps: trace the steps A to B into DIR/profile, for XProf or TensorBoard.
      debug_nans: stop where the first NaN arises, with a traceback (slow).
    """

    workdir: Folder | None = None
    dry_run: Annotated[bool | int, FlagText("DEVICES")] = False
    coordinator: Annotated[str, FlagText("HOST:PORT")] = ""
    num_processes: int | None = None
    process_id: Annotated[int | None, FlagText("I")] = None
    timeout: Annotated[int | None, FlagText("SECONDS")] = None
    profile_steps: Annotated[str, FlagText("A:B")] = ""
    debug_nans: bool = False


def main(argv: Sequence[str]) -> None:
    """Parse the flags, train, evaluate, report."""
    config, flags = cli.parse_with_config(argv, TrainFlags, __doc__)
    if flags.dry_run is not False:
        _dry_run(config, flags.dry_run)
        return
    if flags.workdir is None:
        raise UserError(
            "--workdir=DIR is missing: the folder for everything the run makes, such as runs/first"
        )
    _connect(flags)

    from moe_jax.training import hosts
    from moe_jax.training.evaluation import read_evaluation

    workdir, profile = flags.workdir, _profile(flags.profile_steps)
    with hosts.together(), hosts.first_holds(folders.claimed(workdir, config)):
        task = config.make_task()
        if hosts.first_does(lambda: _finished(workdir)):
            if profile is not None:
                raise UserError(
                    f"--profile_steps={flags.profile_steps}: the run in {workdir} is finished; "
                    "give another folder"
                )
            title = f"This run is finished, at step {config.train.steps}"
            figures = read_evaluation(workdir)
        else:
            title = f"Step {config.train.steps}"
            _debug_nans(flags.debug_nans)
            figures = _train(task, config, workdir, profile)
    if not hosts.is_first():
        return
    if not task.show(workdir):
        cli.print_figures(title, figures)
    cli.print_files(workdir)


def _dry_run(config: Any, devices: bool | int) -> None:
    from rich.console import Console

    from launch._dry_run_table import print_dry_run
    from moe_jax.training.dry_run import dry_run

    if devices is not True and devices < 1:
        raise UserError(f"--dry_run={devices}: must be at least 1 device")
    plan = dry_run(config.make_task(), config.train, None if devices is True else devices)
    console = Console()
    print_dry_run(plan, console if console.is_terminal else Console(width=120))


def _connect(flags: TrainFlags) -> None:
    """Join the other processes, if the flags say that there are some."""
    names = ("num_processes", "process_id", "timeout")
    given = {n: getattr(flags, n) for n in names if getattr(flags, n) is not None}
    if not flags.coordinator and not given:
        return
    if not flags.coordinator:
        raise UserError(f"--{next(iter(given))} needs --coordinator=HOST:PORT (or auto)")
    if given.get("timeout", 1) < 1:
        raise UserError(f"--timeout={flags.timeout}: must be at least 1")

    from moe_jax.training import hosts

    hosts.connect(flags.coordinator, **given)


def _profile(text: str) -> "ProfileSteps | None":
    from moe_jax.training.profile import ProfileSteps

    return ProfileSteps.parse(text) if text else None


def _debug_nans(wanted: bool) -> None:
    import jax

    if wanted:
        jax.config.update("jax_debug_nans", True)


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
    sys.exit(_leave(cli.run(main, sys.argv, memory.keep_heap_on_cpu)))
