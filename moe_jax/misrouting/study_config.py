"""The settings of Stage 2: what it is given, what is done to the routing, how it is measured."""

import dataclasses
from typing import Annotated

from moe_jax.common.checks import joined, number, several, text, whole, wrong
from moe_jax.common.schema import EscapedText, FileName, FlagText, FolderName
from moe_jax.errors import UserError
from moe_jax.misrouting.inputs import Inputs
from moe_jax.misrouting.specs import Spec, parse_spec

Texts = Annotated[tuple[str, ...], FlagText("NAME,...")]
Experts = Annotated[str, FlagText("L:E,...")]


@dataclasses.dataclass(kw_only=True)
class StudyConfig:
    r"""What to do to the routing, and how to measure what becomes of it.

    Attributes:
      interventions: with commas between; on the experts suppress, exclude, zero, mean (their mean
        output in place of their own), force, steer=-0.01 (below all other logits; 0.01: above),
        bias=2, scale=0.5, permute; on all tokens of their layers random, rank_shift, gumbel=1
        (noise of that temperature), top_1, donor (the routes of a prompt of another difficulty),
        donor_peer (of the same), replay (those of --routes); each acts always, or with @prompt,
        @explanation or @answer only while that is read.
      controls: matched random sets for each intervention on experts: at least 20, or 0 for none.
      delimiter: what the model writes between explanation and answer, a special token too; \n is a
        line break.
      max_new_tokens: most tokens of the explanation, with the delimiter.
      answer_tokens: most tokens of the answer.
      filler: a text that is one token inside a text; it takes the place of explanations and of
        parts of prompts; \n is a line break.
      options: wrong answers that an answer is compared with, besides the right one.
      max_steps: most steps of an explanation that are looked at; of longer ones, so many spread
        evenly.
      faithfulness_prompts: prompts on which faithfulness is measured; 0: all.
      margin: change of accuracy within which it counts as kept.
      batch_size: prompts read at once.
      seed: of all that is drawn.
    """

    interventions: Texts = (
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
    delimiter: EscapedText = "Answer:"
    max_new_tokens: int = 256
    answer_tokens: int = 16
    filler: EscapedText = "\n"
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


@dataclasses.dataclass(kw_only=True)
class StudyInputs(Inputs):
    """What Stage 2 is given: which experts, and what is measured or replayed beside the model.

    Attributes:
      profile: what launch/profile_routing.py wrote (or its profile.json): its selected experts, on
        the prompts that had no part in selecting them; it must be made with the same --chat and
        --system.
      experts: in place of a profile: experts named by hand, such as 1:0,1:3 (layer of the
        model:expert), on all prompts.
      routes: an .npz with the experts that another engine chose for the prompts' tokens, for
        replay: an array [tokens, layers, k] for each prompt of the file, in order, layers being
        those with experts or all (as vLLM records them).
      planted_ignores: a model known to ignore its explanation, beside --planted_uses.
      planted_uses: a model known to use its explanation: do the measures tell the two apart?
    """

    profile: FolderName = ""
    experts: Experts = ""
    routes: FileName = ""
    planted_ignores: FolderName = ""
    planted_uses: FolderName = ""

    def validate(self, path: str = "") -> None:
        """Check what can be said before anything is loaded; see `Inputs.validate`."""
        super().validate(path)
        at = f"{path}." if path else "--"
        if bool(self.profile) == bool(self.experts):
            raise UserError(
                f"which experts? Give one of {at}profile=DIR (from launch/profile_routing.py) and "
                f"{at}experts=LAYER:EXPERT,..."
            )
        if bool(self.planted_ignores) != bool(self.planted_uses):
            there = "planted_ignores" if self.planted_ignores else "planted_uses"
            other = "planted_uses" if self.planted_ignores else "planted_ignores"
            raise UserError(
                f"{at}{there} without {at}{other}: diagnosticity compares the two models"
            )


@dataclasses.dataclass(kw_only=True)
class MisrouteConfig(StudyConfig, StudyInputs):
    """All of Stage 2 (`study.run`): its inputs and its settings."""

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one, after `path`."""
        StudyInputs.validate(self, path)
        StudyConfig.validate(self, path)

    def settings(self) -> StudyConfig:
        """The settings alone, interventions written out, as the study's config.json holds them."""
        names = [field.name for field in dataclasses.fields(StudyConfig)]
        values = {name: getattr(self, name) for name in names}
        values["interventions"] = tuple(str(spec) for spec in self.specs())
        return StudyConfig(**values)
