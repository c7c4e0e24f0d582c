r"""How long the permutation test of a study takes, beside the bare matrix product in it.

  python scripts/measure_permutations.py [--prompts=500] [--columns=1024] [--permutations=10000]

Medians of seven rounds, in turns. The product is what no way of doing it can avoid: permutations x
prompts x columns multiply-adds in float32.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

from moe_jax.misrouting import trend

PROMPTS = flags.DEFINE_integer("prompts", 500, "n", lower_bound=2)
COLUMNS = flags.DEFINE_integer("columns", 1024, "experts of all layers", lower_bound=1)
PERMUTATIONS = flags.DEFINE_integer("permutations", 10_000, "b", lower_bound=1)
ROUNDS = 7


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    rng = np.random.default_rng(0)
    rate = rng.random((PROMPTS.value, COLUMNS.value))
    level = np.arange(PROMPTS.value) % 5
    left = rng.random((PERMUTATIONS.value, PROMPTS.value), np.float32)
    right = rate.astype(np.float32)
    whole, product = [], []
    for _ in range(ROUNDS + 1):
        whole.append(_seconds(lambda: trend(rate, level, seed=0, permutations=PERMUTATIONS.value)))
        product.append(_seconds(lambda: left @ right))
    test, bare = statistics.median(whole[1:]), statistics.median(product[1:])
    print(f"test {test:.3f} s, bare product {bare:.3f} s, ratio {test / bare:.2f}")


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    app.run(main)
