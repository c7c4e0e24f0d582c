"""A small real task with a mixture of experts: regression, both router losses over the batch."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax import losses
from moe_jax.data.batches import batches
from moe_jax.gating import GateConfig, dropped
from moe_jax.layers import MoE
from moe_jax.training.mesh import batch_axes
from moe_jax.training.task import Task

WIDTH, BATCH = 8, 64


class Model(nnx.Module):
    def __init__(self, *, rngs):
        gate = GateConfig(num_experts=8, k=2, renormalise=True)
        self.moe = MoE(WIDTH, 16, gate, d_shared=8, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        y, routing = self.moe(x)
        return self.head(x + y), routing


def data(count=320):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, WIDTH)).astype(np.float32)
    y = np.sin(x @ rng.normal(size=(WIDTH, 3))).astype(np.float32)
    return {"x": x, "y": y, "id": np.arange(count)}


class MoETask(Task):
    def init(self, rngs):
        return Model(rngs=rngs)

    def loss(self, model, batch, rngs):
        out, routing = model(jnp.asarray(batch["x"]))
        balance = losses.switch_balance(routing.probs, routing.expert, axis_name=batch_axes())
        z = jnp.mean(losses.router_z(routing.logits))
        fit = jnp.mean((out - batch["y"]) ** 2)
        metrics = {"fit": fit, "balance": balance, "z": z, "dropped": dropped(routing) * 1.0}
        return fit + 0.1 * balance + 0.01 * z, metrics

    def train_data(self):
        return batches(data(), batch_size=BATCH, seed=0)

    def evaluate(self, model):
        every = data()
        return {
            "fit": float(np.mean((np.asarray(model(jnp.asarray(every["x"]))[0]) - every["y"]) ** 2))
        }
