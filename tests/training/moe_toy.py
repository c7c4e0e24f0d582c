"""A small real task with a mixture of experts: regression, both router losses over the batch."""

import dataclasses
import json
import os
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch._systems import System
from moe_jax import losses
from moe_jax.common import nested
from moe_jax.data import batches
from moe_jax.gating import GateConfig, dropped
from moe_jax.layers import MoE
from moe_jax.training import MeshConfig, Task, TrainConfig
from moe_jax.training.mesh import batch_axes

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


class Wrapped:
    """A data iterator around another."""

    def __init__(self, inner):
        self.inner = inner

    def get_state(self):
        return self.inner.get_state()

    def set_state(self, state):
        self.inner.set_state(state)

    def close(self):
        self.inner.close()


class Recorded(Wrapped):
    """Writes down the ids of every batch, by position, into the folder MOE_TOY_IDS."""

    def __init__(self, inner, part):
        super().__init__(inner)
        name = f"{part[0]}of{part[1]}-{os.getpid()}.jsonl"
        self.file = (Path(os.environ["MOE_TOY_IDS"]) / name).open("w")

    def __next__(self):
        position = json.dumps(self.inner.get_state())
        batch = next(self.inner)
        print(json.dumps([position, batch["id"].tolist()]), file=self.file, flush=True)
        time.sleep(float(os.environ.get("MOE_TOY_PAUSE", "0")))
        return batch


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

    def train_data(self, part=(0, 1)):
        inner = batches(data(), batch_size=BATCH, seed=0, part=part)
        return Recorded(inner, part) if "MOE_TOY_IDS" in os.environ else inner

    def evaluate(self, model):
        every = data()
        return {
            "fit": float(np.mean((np.asarray(model(jnp.asarray(every["x"]))[0]) - every["y"]) ** 2))
        }


@dataclasses.dataclass(kw_only=True)
class MoEToyConfig:
    """What launch/train.py --config=tests/training/moe_toy.py trains."""

    system: str = "moe_toy"
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(
            steps=30,
            learning_rate=0.01,
            log_every=1,
            checkpoint_every=10,
            eval_every=10,
            mesh=MeshConfig(expert=2),
        )
    )

    def validate(self, path: str = "") -> None:
        nested(path, "train", self.train, TrainConfig)


def make_task(config) -> Task:
    return MoETask()


def get_config() -> MoEToyConfig:
    return MoEToyConfig()


SYSTEM = System("tests.training.moe_toy:MoEToyConfig", "tests.training.moe_toy:make_task")
