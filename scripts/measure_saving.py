r"""How long a checkpoint holds the training loop, and what it costs the steps beside it.

  python scripts/measure_saving.py [--megabytes=300] [--rounds=7]

In each round, in turns: steps without a save; the call that begins a save, which is all the loop
waits for; the steps that run while the save is written. Then the same save waited for, as if it
were not asynchronous. Medians over the rounds. On a machine with few cores the steps and the
writing compete for them; on a GPU they would not.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx
from rich.console import Console
from rich.table import Table

from moe_jax.training import Batches, MeshConfig, Task, TrainConfig, make_mesh
from moe_jax.training.layout import Layout
from moe_jax.training.retention import Retention
from moe_jax.training.saver import RunRecord, Saver
from moe_jax.training.state import Parts, first_state
from moe_jax.training.step import compile_step, make_optimizer

MEGABYTES = flags.DEFINE_integer("megabytes", 300, "size of a checkpoint", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 7, "measurements, of which the medians are shown")
ROWS, WIDTH = 256, 1024


class Wide(nnx.Module):
    """Matrices of 1024 x 1024, each applied to the rows of the batch."""

    def __init__(self, count: int, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.w_ndd = nnx.Param(init(rngs.params(), (count, WIDTH, WIDTH), jnp.float32))


class WideTask(Task):
    """Least squares with more parameters than it needs."""

    def __init__(self, count: int):
        self.count = count

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The matrices."""
        return Wide(self.count, rngs)

    def loss(self, model, batch, rngs):
        """Mean square of what the matrices make of the batch."""
        y = jnp.einsum("bd,ndf->nbf", batch["x"], model.w_ndd[...])
        return jnp.mean(y**2), {}

    def train_data(self, part: tuple[int, int] = (0, 1)) -> Batches:
        """The batch is made here."""
        raise NotImplementedError

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """Nothing."""
        return {}


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    logging.set_verbosity(logging.WARNING)
    count = max(1, round(MEGABYTES.value * 1e6 / (3 * 4 * WIDTH * WIDTH)))  # parameters, 2 averages
    task, config = WideTask(count), TrainConfig(mesh=MeshConfig(data=1))
    model = task.init(nnx.Rngs(0))
    parts = Parts(model, task.trainable)
    layout, optimizer = Layout(parts, make_mesh(config.mesh)), make_optimizer(config)
    state = first_state(*parts.split(model), optimizer, jax.random.key(0))
    state = jax.device_put(state, layout.shardings(optimizer, state))
    step = compile_step(task, parts, config, layout)
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, WIDTH)), jnp.float32)}
    record = RunRecord(config={}, data={}, window={})
    times: dict[str, list[float]] = {name: [] for name in ("alone", "begin", "beside", "whole")}

    def one() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state.params, metrics))
        return time.perf_counter() - began

    one()
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder), Retention(1)) as saver:
        for _ in range(ROUNDS.value):
            times["alone"].append(statistics.median(one() for _ in range(5)))
            times["begin"].append(_seconds(lambda: saver.save(state, record)))
            beside = []
            while saver.busy():
                beside.append(one())
            times["beside"].append(statistics.median(beside or [float("nan")]))
            times["whole"].append(_seconds(lambda: (saver.save(state, record), saver.wait())))
    _print(times, sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state))))


def _seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _print(times: dict[str, list[float]], size: int) -> None:
    middle = {name: statistics.median(values) for name, values in times.items()}
    table = Table(title=f"A checkpoint of {size / 1e6:.0f} MB, {jax.default_backend()}")
    table.add_column("what")
    for name in ("median ms", "smallest", "largest", "steps"):
        table.add_column(name, justify="right")
    for name, text in (
        ("alone", "a step, no save under way"),
        ("beside", "a step while a save is written"),
        ("begin", "the loop waits to begin a save"),
        ("whole", "the loop would wait for the whole save"),
    ):
        values = [f"{x * 1e3:.0f}" for x in (middle[name], min(times[name]), max(times[name]))]
        table.add_row(text, *values, f"{middle[name] / middle['alone']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
