"""Timing of rivals in turns, so that whatever else the machine does hits all of them."""

import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jax
import numpy as np


class Times(NamedTuple):
    """Medians over the repeats, in milliseconds."""

    wall: float
    cpu: float  # of all threads of this process; steadier than wall time on a shared machine


SYNC_MS = 20.0
"""On accelerators a call that takes less than this is timed with others of its kind, which wait in
the device's queue: so neither the start of each nor the wait for it is in the figure."""


def measure(
    rivals: Mapping[str, Callable[[], Any]], repeats: int, calls: int | None = None
) -> dict[str, Times]:
    """One call of each to warm up, then `repeats` rounds; figures are for one call.

    Each round has its own order, so that what one rival leaves behind (threads that still spin,
    memory to give back) does not always hit the same next one.

    Args:
      rivals: by name; what they give is thrown away.
      repeats: rounds.
      calls: of a rival in a round, one after the other, before the wait for the last of them; None
        for one on CPU, and elsewhere as many as take SYNC_MS, at most 20.
    """
    several = {name: calls or _calls(call) for name, call in rivals.items()}
    walls: dict[str, list[float]] = {name: [] for name in rivals}
    cpus: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(names)
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            _run(rivals[name], several[name])
            walls[name].append(1e3 * (time.perf_counter() - wall) / several[name])
            cpus[name].append(1e3 * (time.process_time() - cpu) / several[name])
    return {n: Times(float(np.median(walls[n])), float(np.median(cpus[n]))) for n in rivals}


def _run(call: Callable[[], Any], calls: int) -> None:
    """A device runs one program after the other, so the last one is waited for."""
    for _ in range(calls):
        last = call()
    jax.block_until_ready(last)


def _calls(call: Callable[[], Any]) -> int:
    """How many calls a round has, after one to warm up."""
    _run(call, 1)
    if jax.default_backend() == "cpu":
        return 1
    start = time.perf_counter()
    _run(call, 1)
    return max(1, min(20, round(SYNC_MS / (1e3 * (time.perf_counter() - start)))))


def machine() -> dict[str, Any]:
    """What a figure must be read with: device, cores, load, versions, date."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
