"""The settings of a Stage 2 study."""

import dataclasses

from moe_jax.common.checks import joined, number, several, text, whole, wrong
from moe_jax.errors import UserError
from moe_jax.misrouting.specs import Spec, parse_spec


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

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        several(path, "interventions", self.interventions)
        if not self.interventions:
            raise wrong(path, "interventions", (), "name at least one")
        for i, spec in enumerate(self.interventions):
            text(path, f"interventions[{i}]", spec)
        texts = [str(spec) for spec in self.specs()]
        twice = next((t for i, t in enumerate(texts) if t in texts[:i]), None)
        if twice:
            raise UserError(f"{joined(path, 'interventions')}: {twice} is there twice")
        whole(path, "controls", self.controls, 0)
        if 0 < self.controls < 20:
            must = "be at least 20 (p can't be below 1/(controls+1)), or 0 for none"
            raise wrong(path, "controls", self.controls, must)
        text(path, "delimiter", self.delimiter)
        text(path, "filler", self.filler)
        for name in ("max_new_tokens", "answer_tokens", "options", "max_steps", "batch_size"):
            whole(path, name, getattr(self, name), 1)
        for name in ("faithfulness_prompts", "seed"):
            whole(path, name, getattr(self, name), 0)
        number(path, "margin", self.margin, above=0, below=1)
