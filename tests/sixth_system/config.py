"""The settings of the sketch: a curve in pieces, learned by experts of which each point has one."""

import dataclasses
from typing import ClassVar

from moe_jax.common import nested, number, whole
from moe_jax.gating import GateConfig
from moe_jax.training import TrainConfig


@dataclasses.dataclass(kw_only=True)
class CurveConfig:
    """A run of the sketch.

    Attributes:
      points: of the curve, to train on.
      gate: which expert a point goes to.
      balance: weight of the experts' balance loss.
      train: steps, learning rate, checkpoints.
    """

    system: ClassVar[str] = "curve"

    points: int = 256
    gate: GateConfig = dataclasses.field(default_factory=lambda: GateConfig(num_experts=4, k=1))
    balance: float = 0.01
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(steps=60, learning_rate=0.02, checkpoint_every=20)
    )

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        whole(path, "points", self.points, 32)
        nested(path, "gate", self.gate, GateConfig)
        number(path, "balance", self.balance, low=0)
        nested(path, "train", self.train, TrainConfig)


def get_config() -> CurveConfig:
    """What --config=FILE asks for."""
    return CurveConfig()
