"""Finds the fastest tiles of the GPU kernels by timing them, and stores them for this device.

  python kernels/benchmarks/tune.py --shapes=30B,7B --dtype=bfloat16 --out=tuned
  MOE_KERNELS_TUNED=tuned python my_training.py

For each shape every product of the layer, forward and backward, is compiled with a few dozen tiles.
All values that a tile gives are compared with those of the backend "xla" before it is timed; one
that is wrong, or does not fit the GPU, is left out and counted. The rest are timed in turns; the
fastest is stored under the kernel, the mean load, the sizes and the dtype, in a file named after
the device. Set MOE_KERNELS_TUNED to the folder to have it used; files committed to
moe_kernels/triton_gpu/tuned come with the package.

Columns: heuristic_ms is the time with the tile that would be chosen without tuning, best_ms with
the best one, gain their ratio; tried, wrong and unfit count tiles. Why tiles are unfit is said on
stderr.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import carried  # isort: split

import checks
import interleave
import jax
import jax.numpy as jnp
import loads
import options
import tables
import tune_cases
from absl import app, flags

OUT = options.define_path("out", "tuned", "folder for the file of this device's tiles")
MINUTES = flags.DEFINE_float("minutes", 20.0, "no kernel is begun after this", lower_bound=0.1)
for used in ("shapes", "dtype", "load", "load_file", "load_layer", "repeats", "seed"):
    flags.declare_key_flag(used)

COLUMNS = [
    "T,d,f,E,k",
    "kernel",
    "heuristic_ms",
    "best_ms",
    "gain",
    "tile",
    "tried",
    "wrong",
    "unfit",
]
SHARED = 227 * 1024
"""Bytes of shared memory that a block of the largest GPUs may have."""


class Tuned(NamedTuple):
    """The best tile of a kernel; times in milliseconds."""

    tile: Any
    best_ms: float
    heuristic_ms: float
    tried: int
    wrong: int
    unfit: tuple[str, ...]  # the reasons


def candidates(heuristic: Any, kernel: str, held: int, size: int) -> Iterator[Any]:
    """Tiles near the heuristic one (which comes first) that registers and shared memory allow.

    At most 128 accumulators a thread, and all stages of a pipeline in shared memory.
    """
    tile = type(heuristic)
    yield heuristic
    grad = kernel == "weight_grad"
    rows = (32, 64) if grad else _near(heuristic.block_m)
    depths = (64, 128) if grad else (32, 64)
    widths, seen = (64, 128, 256), {heuristic}
    for m, n, k in ((m, n, k) for m in rows for n in widths for k in depths):
        if n > 2 * heuristic.block_n or k > 2 * heuristic.block_k:
            continue  # the heuristic is narrow because the matrix or the registers are
        held_there = k * n if grad else held * m * n
        loaded = m * (k + n) if grad else k * (m + min(held, 2) * n)
        for warps, stages in ((w, s) for w in (4, 8) for s in (2, 3, 4)):
            found = tile(m, n, k, warps, stages)
            fits = held_there <= 128 * 32 * warps and stages * loaded * size <= SHARED
            if fits and found not in seen:
                seen.add(found)
                yield found


def _near(block_m: int) -> tuple[int, ...]:
    return tuple(m for m in (16, 32, 64, 128) if block_m // 2 <= m <= 2 * block_m)


def best(case: tune_cases.Case, tiles: list[Any], repeats: int) -> Tuned:
    """Checks and times tiles, the first of which is the heuristic one.

    Raises:
      Disagreement: the heuristic tile is wrong or does not fit.
    """
    want = jax.jit(case.oracle)(*case.args)
    limit = checks.tolerance(case.problem[-1])
    rivals: dict[str, Callable[[], Any]] = {}
    wrong = 0
    unfit: list[str] = []
    for i, tile in enumerate(tiles):
        run = _bound(case, tile)
        try:
            error = worst_error(run(), want, case.problem[1], case.own)
        except Exception as reason:  # the compiler, the driver and JAX raise each their own
            if i == 0:
                raise checks.Disagreement(
                    f"{case.problem[0]}: {tile} does not run: {reason}"
                ) from None
            unfit.append((str(reason) or repr(reason)).splitlines()[0])
            continue
        if error <= limit:
            rivals[str(i)] = run
        elif i == 0:
            raise checks.Disagreement(f"{case.problem[0]}: {tile} is off by {error:.2g}")
        else:
            wrong += 1
    times = {name: t.wall for name, t in interleave.measure(rivals, repeats).items()}
    first = min(times, key=lambda name: times[name])
    return Tuned(tiles[int(first)], times[first], times["0"], len(tiles), wrong, tuple(unfit))


def worst_error(ours: Any, want: Any, rows: int, own: int) -> float:
    """The largest `checks.error_of` over all arrays; of those with `rows` rows the first `own`."""

    def cut(a: Any) -> Any:
        return a[:own] if a.shape[0] == rows else a

    pairs = zip(ours, want, strict=True)
    return float(jnp.max(jnp.stack([checks.error_of(cut(a), cut(b)) for a, b in pairs])))


def _bound(case: tune_cases.Case, tile: Any) -> Callable[[], Any]:
    run = jax.jit(lambda *args: case.kernel(*args, tile=tile))
    return lambda: run(*case.args)


def tune(
    shape: loads.Shape, load: loads.Load, out: Path, table: tables.Table, end: float
) -> list[str]:
    """Tunes the kernels of a shape and stores each as soon as it is known.

    Returns:
      The kernels left out because `end` (monotonic seconds) had come.
    """
    from moe_kernels.triton_gpu import tuned

    dtype = jnp.dtype(options.DTYPE.value)
    data = loads.routed(shape, options.SEED.value, options.DTYPE.value, load)
    about = interleave.machine()
    left_out = []
    for case in tune_cases.cases(shape, data):
        kernel = case.problem[0]
        if time.monotonic() > end:
            left_out.append(f"{shape.text} {kernel}")
            continue
        first = tuned.heuristic(*case.problem)
        tiles = list(candidates(first, kernel, tuned.HELD[kernel], dtype.itemsize))
        with tables.progress(f"{shape.text}: {kernel}: compiling and timing {len(tiles)} tiles"):
            found = best(case, tiles, options.REPEATS.value)
        path = out / tuned.file_name(str(about["device"]))
        tuned.write(path, {tuned.key(*case.problem): found.tile}, about)
        table.add(
            [shape.text, kernel, f"{found.heuristic_ms:.3f}", f"{found.best_ms:.3f}"]
            + [f"{found.heuristic_ms / found.best_ms:.2f}", "x".join(map(str, found.tile))]
            + [str(n) for n in (found.tried, found.wrong, len(found.unfit))]
        )
        for reason in sorted(set(found.unfit)):
            print(f"{kernel}: {found.unfit.count(reason)} unfit: {reason}", file=sys.stderr)
    return left_out


def main(argv: list[str]) -> None:
    """Tunes all shapes, prints the table, says where the tiles are."""
    tables.no_arguments(argv)
    for flag in (options.BACKEND, options.JSON_OUT):
        if flag.present:
            tables.fail(f"tune.py has no use for --{flag.name}: it tunes triton_gpu, into --out")
    carried.require_gpu("tune.py", None, options.DTYPE.value)
    shapes, load = options.shapes_and_load()
    table = tables.Table(COLUMNS, {"T,d,f,E,k": 22, "kernel": 25, "tile": 16})
    end, out, left_out = time.monotonic() + 60 * MINUTES.value, Path(OUT.value), []
    for shape in shapes:
        try:
            left_out += tune(shape, load, out, table, end)
        except checks.Disagreement as error:
            table.close()
            tables.fail(error)
        gc.collect()
    table.close()
    if left_out:
        print(f"time is up: left out {'; '.join(left_out)} (--minutes={MINUTES.value:g})")
    print(f"to use these tiles: export MOE_KERNELS_TUNED={out.resolve()}")


if __name__ == "__main__":
    app.run(main)
