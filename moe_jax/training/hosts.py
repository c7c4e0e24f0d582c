"""Several processes that train as one run: how they meet, agree, and learn that one has gone.

All of it is JAX's own (`jax.distributed`, collectives); with a single process every function here
does nothing but its local part. Processes share the file system of the workdir. "First" is process
0: it alone writes figures and reports; checkpoints are written by all.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from moe_jax.common.schema import first_difference
from moe_jax.errors import UserError
from moe_jax.training import settings

Value = TypeVar("Value")
AUTO = "auto"
LOST = 3
"""Exit status of a process that the others never came to."""


class Lost(UserError):
    """Another process of the run has gone, so this one can't go on."""


def join(
    coordinator: str, num_processes: int | None, process_id: int | None, timeout: int | None
) -> None:
    """`connect`, if any of its arguments is given: what a script does with its flags.

    Raises:
      UserError: as `connect`; others are given without a coordinator; a timeout below 1.
    """
    named = {"num_processes": num_processes, "process_id": process_id, "timeout": timeout}
    given = [name for name, value in named.items() if value is not None]
    if not coordinator and given:
        raise UserError(f"--{given[0]} needs --coordinator=HOST:PORT (or auto)")
    if timeout is not None and timeout < 1:
        raise UserError(f"--timeout={timeout}: must be at least 1")
    if coordinator:
        connect(coordinator, num_processes, process_id, timeout=timeout or 120)


def connect(
    coordinator: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 120,
) -> None:
    """Join the other processes; before anything else of JAX is used.

    If they are not all there in time, a line says so on stderr and the process ends (status 3):
    JAX itself would abort with a stack trace.

    Args:
      coordinator: HOST:PORT of process 0, the same for all; or "auto": ask the environment (Slurm,
        Kubernetes, Cloud TPU, Open MPI).
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      timeout: seconds to wait for the others now, and without a sign of life of one later, until
        it counts as gone.

    Raises:
      UserError: an argument is missing or wrong; "auto" finds no cluster.
    """
    if coordinator == AUTO:
        where = "the cluster's coordinator"
        address = None
    else:
        where = f"the coordinator {coordinator}"
        _check(coordinator, num_processes, process_id)
        address = coordinator
    waiting = threading.Timer(timeout, _give_up, (where, num_processes, process_id, timeout))
    waiting.daemon = True
    waiting.start()
    try:
        with warnings.catch_warnings():
            if address is not None:  # JAX looks for a cluster all the same, and misses a package
                warnings.filterwarnings("ignore", "\n?Kubernetes environment detected")
            jax.distributed.initialize(
                address,
                num_processes,
                process_id,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=timeout,
                shutdown_timeout_seconds=timeout,
            )
    except ValueError as error:
        raise UserError(
            f"--coordinator={coordinator}: {error}; give --coordinator=HOST:PORT, --num_processes "
            "and --process_id"
        ) from error
    finally:
        waiting.cancel()


def is_first() -> bool:
    """Is this process 0, or the only one?"""
    return jax.process_index() == 0


def part() -> tuple[int, int]:
    """(i, n): this process reads the i-th of n parts of every batch."""
    return jax.process_index(), jax.process_count()


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, in their order, on each of them."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:n]).decode() for row, n in zip(rows, lengths, strict=True)]


def first_does(function: Callable[[], Value]) -> Value:
    """What `function` gives on the first process (JSON values), on every process.

    Raises:
      UserError: it raised one there; everywhere.
    """
    if jax.process_count() == 1:
        return function()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": function()}
        except UserError as error:
            told = {"error": str(error)}
    told = json.loads(gather_texts(json.dumps(told))[0])
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]


@contextlib.contextmanager
def first_holds(manager: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """The first process enters the context manager; if it can't (UserError), nobody goes on."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(manager)

        first_does(enter)
        yield


def any_signal(signum: int | None) -> int | None:
    """A signal that some process was sent, on every process; None if none was."""
    if jax.process_count() == 1:
        return signum
    every = multihost_utils.process_allgather(np.array(signum or 0, np.int32))
    return int(every.max()) or None


def check_alike(config: dict[str, Any]) -> None:
    """That all processes have this config and the same versions.

    Raises:
      UserError: one has not; on every process, naming the first difference.
    """
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    mine = {"config": config, "versions": versions, "settings": settings.current()}
    every = [json.loads(text) for text in gather_texts(json.dumps(mine))]
    for i, other in enumerate(every):
        difference = first_difference(every[0], other)
        if difference is not None:
            name, first, theirs = difference
            raise UserError(
                f"process {i} has {name}={theirs}, process 0 has {first}: "
                "start all processes with the same command, packages and config"
            )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns a collective that failed because another process has gone into `Lost`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Gloo's failures come as either; a ValueError of our own code is not one of them.
        ours = isinstance(error, ValueError) and "Gloo" not in str(error)
        if jax.process_count() == 1 or ours:
            raise
        raise Lost(
            f"process {jax.process_index()} lost the others: one of them has ended or can't be "
            "reached (its own output says why); start all processes again, and they go on from "
            f"the newest checkpoint. JAX says: {_first_line(error)}"
        ) from error


def leave(status: int) -> int:
    """The exit status, for sys.exit; a process that failed ends here, so that nobody waits for it.

    (JAX would wait for the others at the exit.)
    """
    if status and jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(2)  # with it goes JAX's service, at which the others would abort
        os._exit(status)
    return status


def _check(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT, or auto")
    if num_processes is None or num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: must be at least 1")
    if process_id is None or not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id}: must be from 0 to {num_processes - 1}")


def _give_up(where: str, num_processes: int | None, process_id: int | None, timeout: int) -> None:
    if process_id == 0:
        said = f"not all {num_processes} processes came to {where} within {timeout} s: start the "
        said += "others, or correct --num_processes"
    else:
        said = f"{where} did not answer, or not all processes came, within {timeout} s: start "
        said += "process 0 there and all the others, and check that its port can be reached"
    print(f"error: {said}", file=sys.stderr, flush=True)
    os._exit(LOST)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
