"""Tiles found by timing on one kind of GPU, and which tile a kernel is given.

`kernels/benchmarks/tune.py` writes them, a file for each kind of device. They are looked for in the
folder that the environment variable MOE_KERNELS_TUNED names, then in `tuned/` beside this file,
which is for those that come with the package. A problem that neither knows gets the heuristics of
`tiles`.
"""

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moe_kernels.triton_gpu.precision import input_precision
from moe_kernels.triton_gpu.tiles import Tile, matmul_tile, weight_grad_tile

HELD = {
    "up": 1,
    "up_glu": 2,
    "grouped_matmul": 1,
    "grouped_matmul_transposed": 1,
    "hidden_grad": 4,
    "weight_grad": 1,
}
"""Kernel -> tiles of float32 that one of its programs holds at once."""

SHIPPED = Path(__file__).parent / "tuned"
VARIABLE = "MOE_KERNELS_TUNED"


def choose(kernel: str, rows: int, num_experts: int, n: int, k: int, dtype: Any) -> Tile:
    """The tile of a kernel in HELD for [rows of e, k] x [k, n] (weight_grad: for dW[e] of [k, n]).

    Raises:
      ValueError: a file of tiles is damaged; the message names it.
    """
    found = here().get(key(kernel, rows, num_experts, n, k, dtype))
    return found or heuristic(kernel, rows, num_experts, n, k, dtype)


def heuristic(kernel: str, rows: int, num_experts: int, n: int, k: int, dtype: Any) -> Tile:
    """The tile without regard to what was timed; arguments as for `choose`."""
    if kernel == "weight_grad":
        return weight_grad_tile(k, n, dtype)
    precision = input_precision(dtype)
    return matmul_tile(rows, num_experts, n, k, dtype, held=HELD[kernel], precision=precision)


def key(kernel: str, rows: int, num_experts: int, n: int, k: int, dtype: Any) -> str:
    """What a tile is stored under; of the loads only their mean, to the nearest power of two.

    To the nearest, because the layer pads its rows and the single operations do not: so a mean of
    512, and a little more, are the same load.
    """
    load = 1 << round(math.log2(max(1.0, rows / num_experts)))
    return f"{kernel} load={load} n={n} k={k} {jnp.dtype(dtype).name}"


@functools.cache
def here() -> dict[str, Tile]:
    """Key -> tile for the first GPU of this machine; empty where there is no GPU.

    A machine with GPUs of several kinds uses those of the first for all.
    """
    try:
        name = file_name(jax.devices("gpu")[0].device_kind)
    except RuntimeError:
        return {}
    folders = [SHIPPED] + ([Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else [])
    return {k: v for folder in folders for k, v in read(folder / name).items()}


def file_name(device_kind: str) -> str:
    """The name of a device's file: "NVIDIA H200" -> "nvidia_h200.json"."""
    return re.sub(r"[^a-z0-9]+", "_", device_kind.lower()).strip("_") + ".json"


def read(path: Path) -> dict[str, Tile]:
    """Key -> tile of a file; empty if there is none.

    Raises:
      ValueError: the file does not hold tiles.
    """
    if not path.is_file():
        return {}
    try:
        tiles = {k: Tile(**v) for k, v in json.loads(path.read_text())["tiles"].items()}
        if any(type(side) is not int or side < 1 for tile in tiles.values() for side in tile):
            raise ValueError("a size is not a whole number from 1 on")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold tiles ({error}); delete it, or write it anew with "
            "kernels/benchmarks/tune.py"
        ) from None
    return tiles


def write(path: Path, tiles: Mapping[str, Tile], about: Mapping[str, Any]) -> None:
    """Adds tiles to a file, or makes it; `about` says where and when the newest were timed."""
    everything = read(path) | dict(tiles)
    found = {
        "about": dict(about),
        "tiles": {k: everything[k]._asdict() for k in sorted(everything)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)
