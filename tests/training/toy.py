"""A small real task: noisy softmax regression with dropout, as a script and as a config file.

python tests/training/toy.py WORKDIR [train.FIELD=VALUE ...]    trains it
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch._systems import System
from moe_jax.common import joined, nested, whole
from moe_jax.data import batches
from moe_jax.training import Task, TrainConfig

FEATURES, CLASSES = 6, 3


class Toy(nnx.Module):
    """Two linear layers with dropout, a frozen input scale and a running mean of the input."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.full((FEATURES,), 2.0))
        self.layers = nnx.List(
            [nnx.Linear(FEATURES, 8, rngs=rngs), nnx.Linear(8, CLASSES, rngs=rngs)]
        )
        self.mean = nnx.BatchStat(jnp.zeros(FEATURES))

    def __call__(self, x_bd, key=None):
        if key is not None:
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * x_bd.mean(0)
        hidden = nnx.relu(self.layers[0](self.scale[...][None] * x_bd))
        if key is not None:
            hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape) / 0.9
        return self.layers[1](hidden)


def data(seed: int, count: int = 96) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES)).astype(np.float32)
    truth = np.random.default_rng(5).normal(size=(FEATURES, CLASSES))
    noise = rng.gumbel(size=(count, CLASSES)) * 0.1
    return {"x": x, "y": np.argmax(x @ truth + noise, -1).astype(np.int32)}


class ToyTask(Task):
    """Freezes `scale`; `prepare` sets it from the data, once."""

    trainable = staticmethod(
        lambda path, variable: isinstance(variable, nnx.Param) and path[0] != "scale"
    )

    def __init__(self, poison: range = range(0), prepared: list | None = None):
        self.poison, self.prepared, self.evaluated = poison, prepared, 0

    def init(self, rngs):
        return Toy(rngs=rngs)

    def prepare(self, model, rngs):
        if self.prepared is not None:
            self.prepared.append(1)
        noise = 0.01 * jax.random.normal(rngs(), (FEATURES,))
        model.scale[...] = 1 / data(0)["x"].std(0) + noise
        return model

    def loss(self, model, batch, rngs):
        logits = model(batch["x"], rngs())
        loss = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(batch["y"])), batch["y"]])
        return loss, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == batch["y"])}

    def train_data(self, part=(0, 1)):
        return batches(data(0), batch_size=16, seed=3)

    def evaluate(self, model):
        self.evaluated += 1
        test = data(1)
        return {"accuracy": float(np.mean(np.argmax(model(test["x"]), -1) == test["y"]))}

    def report(self, model, workdir):
        (workdir / "report.html").write_text("<p>toy</p>")


@dataclasses.dataclass(kw_only=True)
class ToyModelConfig:
    width: int = 8
    name: str | None = None
    rates: tuple[float, ...] = (0.1,)


@dataclasses.dataclass(kw_only=True)
class ToyConfig:
    """What configs/NAME.py:get_config() returns."""

    system: str = "toy"
    model: ToyModelConfig = dataclasses.field(default_factory=ToyModelConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(
            steps=40, learning_rate=0.03, log_every=7, eval_every=10, checkpoint_every=8
        )
    )

    def validate(self, path: str = "") -> None:
        whole(joined(path, "model"), "width", self.model.width, 1)
        nested(path, "train", self.train, TrainConfig)


def make_task(config) -> Task:
    return ToyTask()


def get_config() -> ToyConfig:
    return ToyConfig()


SYSTEM = System("tests.training.toy:ToyConfig", "tests.training.toy:make_task")
