"""The settings of a Stage 2 study."""

import dataclasses

from moe_jax.errors import UserError
from moe_jax.misrouting.conditions import Spec, parse_spec


@dataclasses.dataclass(kw_only=True)
class StudyConfig:
    """What to do to the routing, and how to measure what becomes of it.

    Attributes:
      interventions: specifications, see `conditions.parse_spec`.
      controls: matched random sets for each intervention on experts: 0, or at least 20.
      delimiter: what the model writes between explanation and answer.
      max_new_tokens: of the explanation, with the delimiter.
      answer_tokens: of the answer.
      filler: a text that is one token inside a text; it takes the place of explanations and of
        parts of prompts.
      options: wrong answers that an answer is compared with, besides the right one.
      max_steps: of an explanation that are looked at; of longer ones, so many spread evenly.
      faithfulness_prompts: how many prompts faithfulness is measured on; 0: all.
      margin: of accuracy, within which it counts as preserved.
      batch_size: prompts read at once.
      seed: of everything that is drawn.
    """

    interventions: tuple[str, ...] = (
        "suppress",
        "suppress@answer",
        "zero",
        "mean",
        "scale=0.5",
        "random",
        "gumbel",
        "rank_shift",
    )
    controls: int = 20
    delimiter: str = "Answer:"
    max_new_tokens: int = 256
    answer_tokens: int = 16
    filler: str = "\n"
    options: int = 3
    max_steps: int = 6
    faithfulness_prompts: int = 40
    margin: float = 0.05
    batch_size: int = 64
    seed: int = 0

    def specs(self) -> list[Spec]:
        """The interventions, parsed."""
        return [parse_spec(text) for text in self.interventions]

    def validate(self) -> None:
        """Check every field; a UserError names the first wrong one."""
        if not self.interventions:
            raise UserError("interventions is empty: name at least one")
        texts = [str(spec) for spec in self.specs()]
        twice = next((t for i, t in enumerate(texts) if t in texts[:i]), None)
        if twice:
            raise UserError(f"interventions: {twice} is there twice")
        if self.controls != 0 and self.controls < 20:
            raise UserError(
                f"controls={self.controls} must be at least 20 (p can't be below "
                f"1/(controls+1)), or 0 for none"
            )
        for name in ("delimiter", "filler"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty")
        least = {
            **{"max_new_tokens": 1, "answer_tokens": 1, "options": 1, "max_steps": 1},
            **{"faithfulness_prompts": 0, "batch_size": 1, "seed": 0},
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{name}={getattr(self, name)} must be at least {low}")
        if not 0 < self.margin < 1:
            raise UserError(f"margin={self.margin} must be between 0 and 1")
