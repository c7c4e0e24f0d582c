"""Routes of texts, part by part, so that other texts can take them: donors, and records.

Letters: n prompts, t tokens, l layers with experts, k choices of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_jax.errors import UserError
from moe_jax.gating import KEEP
from moe_jax.misrouting.context import Context


class Routes(NamedTuple):
    """The experts of each token of a text, by the part that it belongs to; -1 is "as routed".

    Attributes:
      prompt: [t l k], in order.
      explanation: the same.
      answer: the delimiter's and the answer's.
    """

    prompt: Int[np.ndarray, "t l k"]
    explanation: Int[np.ndarray, "t l k"]
    answer: Int[np.ndarray, "t l k"]

    def along(self, part: Int[np.ndarray, " t"]) -> Int[np.ndarray, "t l k"]:
        """For tokens of these parts: token j of a part takes its route j, -1 beyond the last."""
        found = np.full((len(part), *self.prompt.shape[1:]), KEEP, np.int32)
        for number, mine in enumerate(self):
            at = np.flatnonzero(part == number)[: len(mine)]
            found[at] = mine[: len(at)]
        return found

    def after(self, part: str, start: int, count: int) -> Int[np.ndarray, "t l k"]:
        """`count` tokens of a part that are yet to be read, `start` of which were."""
        mine = getattr(self, part)[start : start + count]
        found = np.full((count, *mine.shape[1:]), KEEP, np.int32)
        found[: len(mine)] = mine
        return found

    def within(self, layers: Bool[np.ndarray, " l"]) -> "Routes":
        """The same in the layers that are True, as routed in the others."""
        return Routes(*(np.where(layers[None, :, None], mine, KEEP) for mine in self))


def by_part(context: Context, expert: Int[np.ndarray, "t l k"] | None) -> Routes:
    """The routes of a text that was read: `Routing.expert` of its tokens.

    Raises:
      ValueError: there are none.
    """
    if expert is None:
        raise ValueError("the model has no experts")
    return Routes(*(expert[context.part == number] for number in range(len(Routes._fields))))


def of_prompt(expert: Int[np.ndarray, "t l k"]) -> Routes:
    """Routes of a prompt's tokens alone; what comes after is routed as usual."""
    return Routes(expert, expert[:0], expert[:0])


def donors(
    difficulty: Float[np.ndarray, " n"], rng: np.random.Generator, *, peers: bool
) -> Int[np.ndarray, " n"]:
    """For each prompt another one, drawn at random: its donor.

    Args:
      difficulty: of each prompt.
      rng: of the draws.
      peers: of the same difficulty; else of another.

    Raises:
      UserError: there is none for some prompt.
    """
    found = np.zeros(len(difficulty), int)
    for number, level in enumerate(difficulty):
        alike = difficulty == level
        alike[number] = not peers
        others = np.flatnonzero(alike if peers else ~alike)
        if not len(others):
            what = "the same" if peers else "another"
            name = "donor_peer" if peers else "donor"
            raise UserError(
                f"interventions: {name} needs a prompt of {what} difficulty for each prompt: there "
                f"is none for difficulty {level:g}; leave {name} out of --interventions"
            )
        found[number] = rng.choice(others)
    return found


def check_recorded(
    recorded: Sequence[np.ndarray], contexts: Sequence[Context], numbers: Sequence[int]
) -> None:
    """Are these records of the prompts' tokens? An engine may leave out the last.

    Args:
      recorded: of each prompt [t l k].
      contexts: the prompts' tokens.
      numbers: of the prompts in their file, to name them.

    Raises:
      UserError: another number of rows (which prompt).
    """
    for number, rows, context in zip(numbers, recorded, contexts, strict=True):
        if len(context.ids) - len(rows) not in (0, 1):
            raise UserError(
                f"routes: prompt {number} has {len(context.ids)} tokens here, its record "
                f"{len(rows)}: give the rows of the prompt's tokens, as this model's tokenizer "
                "makes them"
            )
