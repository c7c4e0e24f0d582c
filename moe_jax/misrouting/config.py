"""The settings of a misrouting run: a small mixture of experts that learns graded arithmetic."""

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar

from moe_jax.common.files import local
from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting.arithmetic import ArithmeticConfig
from moe_jax.misrouting.arithmetic_texts import VOCABULARY
from moe_jax.models.causal_config import CausalConfig, ExpertsConfig
from moe_jax.models.causal_families import write_causal_config
from moe_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from moe_jax.misrouting.task import ArithmeticTask


def small_model() -> CausalConfig:
    """A decoder of 3 layers with 8 experts each, of which a token has one (Switch, dropless).

    In Hugging Face's terms an OLMoE.
    """
    return CausalConfig(
        vocab_size=len(VOCABULARY),
        d_model=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        experts=ExpertsConfig(gate=GateConfig(num_experts=8, k=1), d_expert=96),
        qk_norm="all",
        max_length=128,
    )


@dataclasses.dataclass(kw_only=True)
class MisroutingConfig:
    """A run of the misrouting system (seed 001) on data that it makes itself.

    Attributes:
      data: the chains.
      model: the language model. Its vocabulary is that of `arithmetic_texts.tokenizer`, and it must
        be one that a covered architecture has, so that it can be saved.
      balance: weight of the experts' balance loss (`losses.switch_balance`, mean over layers).
      router_z: weight of the router z-loss (`losses.router_z`, mean over tokens and layers).
      batch_size: texts in a training step.
      start: folder of a model of the same shape, as a run's `model`, to start from; "": random.
      train: steps, learning rate, checkpoints.
    """

    system: ClassVar[str] = "misrouting"

    data: ArithmeticConfig = dataclasses.field(default_factory=ArithmeticConfig)
    model: CausalConfig = dataclasses.field(default_factory=small_model)
    balance: float = 0.01
    router_z: float = 0.0
    batch_size: int = 128
    start: str = ""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def validate(self) -> None:
        """Check every field.

        Raises:
          UserError: the first wrong one, by its dotted path.
        """
        self.data.validate("data")
        self._validate_model()
        for name in ("balance", "router_z"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 0 <= value < math.inf:
                raise UserError(f"{name}={value!r} must be a finite number of at least 0")
        if isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size!r} must be a whole number of at least 1")
        local(self.start, "start")
        self.train.validate("train")

    def make_task(self) -> "ArithmeticTask":
        """The task that this config describes."""
        from moe_jax.misrouting.task import ArithmeticTask

        return ArithmeticTask(self)

    def _validate_model(self) -> None:
        self.model.validate("model")
        if self.model.experts is None:
            raise UserError("model.experts=None is a model without experts, so without routing")
        if self.model.vocab_size != len(VOCABULARY):
            raise UserError(
                f"model.vocab_size={self.model.vocab_size} must be {len(VOCABULARY)}, "
                "the tokens of arithmetic"
            )
        if self.model.max_length < self.data.longest:
            raise UserError(
                f"model.max_length={self.model.max_length} must be at least {self.data.longest}, "
                "the longest text that data may have"
            )
        try:
            write_causal_config(self.model)
        except UserError as error:
            raise UserError(f"model can't be saved: {error}") from None
