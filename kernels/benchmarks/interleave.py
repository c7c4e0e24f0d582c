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


def measure(rivals: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """One call of each to warm up, then `repeats` rounds of one call each.

    Each round has its own order, so that what one rival leaves behind (threads that still spin,
    memory to give back) does not always hit the same next one.
    """
    for call in rivals.values():
        jax.block_until_ready(call())
    walls: dict[str, list[float]] = {name: [] for name in rivals}
    cpus: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(names)
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(rivals[name]())
            walls[name].append(1e3 * (time.perf_counter() - wall))
            cpus[name].append(1e3 * (time.process_time() - cpu))
    return {n: Times(float(np.median(walls[n])), float(np.median(cpus[n]))) for n in rivals}


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
