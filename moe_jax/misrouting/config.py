"""The settings of a misrouting run: a small mixture of experts that learns graded arithmetic."""

import dataclasses
from typing import ClassVar

from moe_jax.common.checks import joined, nested, number, text, whole, wrong
from moe_jax.common.files import local
from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting.arithmetic import ArithmeticConfig
from moe_jax.misrouting.arithmetic_texts import VOCABULARY
from moe_jax.models.causal_config import CausalConfig, ExpertsConfig
from moe_jax.models.causal_families import write_causal_config
from moe_jax.training.config import TrainConfig


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

    def validate(self, path: str = "") -> None:
        """Check every field.

        Raises:
          UserError: the first wrong one, by its dotted path.
        """
        nested(path, "data", self.data, ArithmeticConfig)
        nested(path, "model", self.model, CausalConfig)
        self._validate_model(joined(path, "model"), joined(path, "data"))
        number(path, "balance", self.balance, low=0)
        number(path, "router_z", self.router_z, low=0)
        whole(path, "batch_size", self.batch_size, 1)
        text(path, "start", self.start, empty=True)
        local(self.start, joined(path, "start"))
        nested(path, "train", self.train, TrainConfig)

    def _validate_model(self, path: str, data: str) -> None:
        if self.model.experts is None:
            raise wrong(path, "experts", None, "be given: without experts there is no routing")
        if self.model.vocab_size != len(VOCABULARY):
            must = f"be {len(VOCABULARY)}, the tokens of arithmetic"
            raise wrong(path, "vocab_size", self.model.vocab_size, must)
        if self.model.max_length < self.data.longest:
            must = f"be at least {self.data.longest}, the longest text that {data} may have"
            raise wrong(path, "max_length", self.model.max_length, must)
        try:
            write_causal_config(self.model)
        except UserError as error:
            raise UserError(f"{path} can't be saved: {error}") from None
