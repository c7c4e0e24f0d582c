r"""Train a system.

  python launch/train.py --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Example:
  python launch/train.py --config=configs/rationale.py --workdir=runs/short --config.train.steps=100

The same command in the same folder goes on with an interrupted run (Ctrl-C, SIGTERM, a crash), and
ends bit for bit where the unbroken run would have. A finished run is only shown.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch import _cache as cache
from launch import _cli as cli
from launch import _memory as memory
from launch import _systems as systems
from moe_jax.common import FlagText, Folder
from moe_jax.errors import UserError


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
      timeout: how long to wait for the others, or for a sign of life of one (120).
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
        from launch._dry_run_table import show_dry_run

        show_dry_run(systems.make_task(config), config.train, flags.dry_run)
        return
    if flags.workdir is None:
        raise UserError(
            "--workdir=DIR is missing: the folder for everything the run makes, such as runs/first"
        )

    import jax

    from moe_jax.training import ProfileSteps, hosts, run

    hosts.join(flags.coordinator, flags.num_processes, flags.process_id, flags.timeout)
    if flags.debug_nans:
        jax.config.update("jax_debug_nans", True)
    profile = ProfileSteps.parse(flags.profile_steps) if flags.profile_steps else None
    task = systems.make_task(config)
    result = run(task, config, flags.workdir, profile=profile)
    if not hosts.is_first():
        return
    title = "This run is finished, at step" if result.was_finished else "Step"
    if not task.show(flags.workdir):
        cli.print_figures(f"{title} {result.step}", result.metrics)
    cli.print_files(flags.workdir)


def _leave(status: int) -> int:
    """The exit status; one of several processes that failed ends at once, so that nobody waits."""
    if status and "jax" in sys.modules:
        from moe_jax.training import hosts

        return hosts.leave(status)
    return status


if __name__ == "__main__":
    sys.exit(_leave(cli.run(main, sys.argv, memory.keep_heap_on_cpu, cache.keep_programs)))
