"""The settings of Stage 1: how prompts are read, and how their routing is evaluated."""

import dataclasses
from typing import Annotated

from moe_jax.common.checks import flag, number, one_of, several, whole
from moe_jax.common.schema import FileName, FlagText, FolderName
from moe_jax.errors import UserError
from moe_jax.misrouting.inputs import Inputs
from moe_jax.misrouting.subsets import TokenSubset, check_reading
from moe_jax.misrouting.usage import KINDS


@dataclasses.dataclass(kw_only=True)
class ProfileMethod:
    """What is counted of each prompt, and the statistics of it.

    Attributes:
      usage: what is compared of each expert: its share of a prompt's choices (share) or of its
        tokens (selection), its mean combine weight (gate) or mean score before the cut (soft).
      weights: of the levels, the easiest first, such as -1,0,1; they add up to 0 (none given: they
        rise evenly).
      length_bins: compare prompts of like length only: labels are permuted within so many quantiles
        of the number of tokens counted, in each group; 0: of any length.
      permutations: of the labels, in each test.
      samples: of the prompts, in each bootstrap interval.
      top: experts to select for Stage 2; 0: a quarter of them, at most 10.
      select_half: true: select on half of the prompts and test on the other half; false: select and
        test on all.
      minimum: times that a token must be seen to be listed among those of an expert.
      seed: of permutations, bootstrap and halves.
      tokens: which tokens count: all, after:TEXT, after-first:TEXT, generated, last:M, span:FROM:TO
        or chars:FROM:TO; --tokens=generated leaves a chat template's tokens out.
      generate: let the model write up to so many tokens after each prompt, and read them too; 0:
        only the prompts are read. Of an encoder-decoder (Switch Transformers) the decoder's experts
        are then profiled, else the encoder's.
      stop: a text that ends what the model writes, a special token too, besides the model's own
        stop tokens.
    """

    usage: Annotated[str, FlagText("KIND")] = "share"
    weights: tuple[float, ...] = ()
    length_bins: int = 0
    permutations: int = 9_999
    samples: int = 2_000
    top: int = 0
    select_half: bool = True
    minimum: int = 10
    seed: int = 0
    tokens: Annotated[str, FlagText("WHICH")] = "all"
    generate: int = 0
    stop: str = ""

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one, after `path`."""
        one_of(path, "usage", self.usage, KINDS)
        several(path, "weights", self.weights)
        for i, weight in enumerate(self.weights):
            number(path, f"weights[{i}]", weight)
        for name in ("length_bins", "top", "seed"):
            whole(path, name, getattr(self, name), 0)
        whole(path, "permutations", self.permutations, 19, why="with fewer no p can be 0.05")
        for name in ("samples", "minimum"):
            whole(path, name, getattr(self, name), 1)
        flag(path, "select_half", self.select_half)


@dataclasses.dataclass(kw_only=True)
class ProfileSettings(ProfileMethod):
    """What a profile records of how it was made.

    Attributes:
      prompts: the file.
      routes: the file of recorded routes; "": the model ran.
      chat: the model's chat template was around the prompts.
      system: the chat's system message; "": none.
    """

    prompts: str = ""
    routes: str = ""
    chat: bool = False
    system: str = ""


@dataclasses.dataclass(kw_only=True)
class ProfileConfig(ProfileMethod, Inputs):
    """All of Stage 1 (`profile.run`): inputs, method, and what reads the prompts.

    Attributes:
      compare: a second model or checkpoint that reads the same prompts.
      routes: an .npz with the experts that another engine chose, one array [tokens, layers, k] for
        each prompt, in order, layers being those with experts or all (as vLLM records them);
        --model then gives tokenizer and shape only.
      batch_size: prompts read at once.
    """

    compare: FolderName = ""
    routes: FileName = ""
    batch_size: int = 16

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one, after `path`."""
        Inputs.validate(self, path)
        if self.compare and (self.generate or self.routes):
            at = f"{path}." if path else "--"
            raise UserError(
                f"{at}compare reads the same tokens with both models: leave out {at}generate and "
                f"{at}routes"
            )
        ProfileMethod.validate(self, path)
        check_reading(
            TokenSubset.parse(self.tokens),
            generate_tokens=self.generate,
            batch_size=self.batch_size,
        )

    def settings(self) -> ProfileSettings:
        """What the profile records of these fields."""
        names = [field.name for field in dataclasses.fields(ProfileSettings)]
        return ProfileSettings(**{name: getattr(self, name) for name in names})
