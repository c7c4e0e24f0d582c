"""The floor under a layer's time: this machine's measured ceilings, and what a layer has to do.

  python kernels/benchmarks/floor.py --dtype=float32      # prints the three ceilings

Three products of tokens * k rows make 6 * T * k * d * f FLOPs forward and 12 more backward. Bytes
count every array once for each pass that cannot do without it:
  forward           x, the weights of all experts, ids and combine weights read; y written;
  forward+backward  the same; pre-activations h (2 * T * k * f) written and read; x, weights, ids
                    and dy read again; dx and all parameter gradients written.
What a real layer moves besides (gathered rows, experts' outputs) is its own affair. The floor is
max(FLOPs / peak, bytes / bandwidth); the peak is XLA's, or on a CPU grouped_gemm's with one expert,
which AMX makes faster in float32. The ceilings are measured once, before the first shape: where
other programs use the machine, they and the floor move with them.
On a CPU fresh memory costs page faults on top: the time to fill arrays as large as the gradients is
given apart, and is no part of the floor.
"""

import mmap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from loads import Shape
from moe_kernels import grouped_gemm

PASSES = ("forward", "forward+backward")


class Ceilings(NamedTuple):
    """What the machine can do, measured."""

    flops: float  # FLOP/s of one big matrix product
    bandwidth: float  # bytes/s of a = s * a + b in place: two reads and one write
    first_touch: float | None  # bytes/s of filling fresh memory; None where that costs nothing


def flops(shape: Shape, what: str) -> float:
    """FLOPs of a pass, "forward" or "forward+backward"."""
    t, d, f, _, k = shape
    return (6.0 if what == "forward" else 18.0) * t * k * d * f


def gradient_bytes(shape: Shape, dtype: Any) -> int:
    """Bytes of dx and of all parameter gradients."""
    t, d, f, e, _ = shape
    return (t * d + 3 * e * d * f) * jnp.dtype(dtype).itemsize


def least_bytes(shape: Shape, what: str, dtype: Any) -> int:
    """Bytes that a pass has to move, as counted above."""
    t, d, f, e, k = shape
    size = jnp.dtype(dtype).itemsize
    inputs = (t * d + 3 * e * d * f) * size + 8 * t * k
    forward = inputs + t * d * size
    if what == "forward":
        return forward
    kept = 2 * (2 * t * k * f) * size
    return forward + kept + inputs + t * d * size + gradient_bytes(shape, dtype)


def floor_ms(shape: Shape, what: str, dtype: Any, ceilings: Ceilings) -> float:
    """Milliseconds below which the pass cannot come on this machine."""
    arithmetic = flops(shape, what) / ceilings.flops
    memory = least_bytes(shape, what, dtype) / ceilings.bandwidth
    return 1e3 * max(arithmetic, memory)


def measure(dtype: Any, fresh_bytes: int, repeats: int = 5) -> Ceilings:
    """Measures the ceilings; the best of a few repeats each.

    Args:
      dtype: of the product.
      fresh_bytes: how much fresh memory to fill, at least 1 MB (CPU only).
      repeats: timed calls.
    """
    on_cpu = jax.default_backend() == "cpu"
    side = 1536 if on_cpu else 8192
    numbers = 2**24 if on_cpu else 2**28
    keys = jax.random.split(jax.random.key(0), 2)
    a, b = (jax.random.normal(key, (side, side), dtype) for key in keys)
    product = jax.jit(jnp.matmul)
    seconds = _best(lambda: product(a, b), repeats)
    if on_cpu:
        ours = jax.jit(lambda a, b: grouped_gemm(a, b[None], jnp.asarray([0, side])))
        seconds = min(seconds, _best(lambda: ours(a, b), repeats))
    peak = 2 * side**3 / seconds

    triad = jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0)
    state = [jnp.ones(numbers, jnp.float32)]
    other = jnp.ones(numbers, jnp.float32)

    def step() -> Any:
        state[0] = triad(state[0], other)
        return state[0]

    bandwidth = 3 * 4 * numbers / _best(step, repeats)
    return Ceilings(peak, bandwidth, _first_touch(fresh_bytes, repeats) if on_cpu else None)


def _first_touch(fresh_bytes: int, repeats: int) -> float:
    """Bytes/s of writing arrays whose memory was never touched."""
    size = max(fresh_bytes, 2**20)
    # An anonymous mapping: memory of a heap might have been touched before.

    def fill() -> Any:
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            view = np.frombuffer(memory, np.uint8)
            view[...] = 1
            del view

    return size / _best(fill, min(repeats, 3))


def _best(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(argv: list[str]) -> None:
    """Prints the ceilings."""
    import tables

    tables.no_arguments(argv)
    found = measure(DTYPE.value, FRESH_MB.value * 2**20)
    print(f"product       {found.flops / 1e9:10.1f} GFLOP/s, {DTYPE.value}")
    print(f"bandwidth     {found.bandwidth / 1e9:10.1f} GB/s, reads and writes")
    if found.first_touch is None:
        print("first touch   not measured: costs nothing on this platform")
    else:
        print(f"first touch   {found.first_touch / 1e9:10.1f} GB/s over {FRESH_MB.value} MB")


if __name__ == "__main__":
    from absl import app, flags

    DTYPE = flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16", "float16"], "of the product"
    )
    FRESH_MB = flags.DEFINE_integer("fresh_mb", 256, "fresh memory to fill, in MB", lower_bound=1)
    app.run(main)
