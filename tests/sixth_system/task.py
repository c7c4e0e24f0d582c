"""What is trained, and how it is evaluated."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import moe_jax
from moe_jax import losses
from moe_jax.data import batches
from moe_jax.training import Task
from tests.sixth_system import report
from tests.sixth_system.config import CurveConfig


class CurveModel(nnx.Module):
    """x -> a mixture of experts -> y."""

    def __init__(self, config: CurveConfig, *, rngs: nnx.Rngs):
        self.lift, self.out = nnx.Linear(1, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
        self.moe = moe_jax.MoE(16, 32, config.gate, rngs=rngs)

    def __call__(self, x):
        hidden, routing = self.moe(jnp.tanh(self.lift(x)))
        return self.out(hidden), routing


def curve(points: int) -> dict[str, np.ndarray]:
    """Points of the curve: a wave, then a slope."""
    x = np.linspace(-2, 2, points, dtype=np.float32)[:, None]
    return {"x": x, "y": np.where(x < 0, np.sin(4 * x), 1 - x)}


class CurveTask(Task):
    """Least squares, and experts that are used evenly."""

    def __init__(self, config: CurveConfig):
        self.config = config

    def init(self, rngs):
        return CurveModel(self.config, rngs=rngs)

    def loss(self, model, batch, rngs):
        y, routing = model(batch["x"])
        balance = losses.switch_balance(routing.probs, routing.expert)
        terms = {"error": (y - batch["y"]) ** 2, "balance": balance}
        return losses.weighted_sum(terms, {"error": 1.0, "balance": self.config.balance})

    def train_data(self, part=(0, 1)):
        return batches(curve(self.config.points), batch_size=32, seed=0, part=part)

    def evaluate(self, model):
        held_out = curve(101)
        y, routing = model(held_out["x"])
        error = np.mean((np.asarray(y) - held_out["y"]) ** 2)
        used = np.mean(np.bincount(np.asarray(routing.expert)[:, 0], minlength=4) > 0)
        return {"error": float(error), "experts_used": float(used)}

    def report(self, model, workdir):
        report.write(curve(101)["x"], model, workdir)
