"""An intervention on prompts, with the part of their texts that it acts on."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.misrouting import interventions
from moe_jax.misrouting.context import Context
from moe_jax.misrouting.routes import Routes
from moe_jax.models.causal_pretrained import PretrainedLM
from moe_jax.models.rows import Edits


class Scoped(NamedTuple):
    """An edit, and the identity where it is out of scope. So one program runs both.

    Attributes:
      edit: leaves [l 1 ...], the same for all prompts.
      nothing: the identity.
      scope: of `conditions.SCOPES`.
      routes: of each prompt, the experts that its tokens take; None: as the edit has it.
    """

    edit: RoutingEdit
    nothing: RoutingEdit
    scope: str
    routes: tuple[Routes, ...] | None = None

    def off(self) -> "Scoped":
        """No intervention."""
        return self._replace(edit=self.nothing, routes=None)

    def take(self, prompts: Sequence[int]) -> "Scoped":
        """The same for some of the prompts, by their numbers."""
        if self.routes is None:
            return self
        return self._replace(routes=tuple(self.routes[i] for i in prompts))

    def on(self, contexts: Sequence[Context], prompts: Sequence[int]) -> Edits:
        """The edit of each context, at all of its tokens: the caller masks those out of scope.

        Args:
          contexts: what is read.
          prompts: the number of the prompt that each is of.
        """
        if self.routes is None:
            return self.edit
        return [
            self._with(self.routes[number].along(context.part))
            for context, number in zip(contexts, prompts, strict=True)
        ]

    def later(
        self, part: str, start: Sequence[int], prompts: Sequence[int], *, count: int
    ) -> Edits:
        """The edit of tokens of a part that are yet to be read.

        Args:
          part: "explanation" or "answer".
          start: tokens of that part that each context has.
          prompts: the number of the prompt that each is of.
          count: how many tokens may come.
        """
        if self.scope not in ("all", part):
            return self.nothing
        if self.routes is None:
            return self.edit
        return [
            self._with(self.routes[number].after(part, first, count))
            for first, number in zip(start, prompts, strict=True)
        ]

    def _with(self, routes: Int[np.ndarray, "t l k"]) -> RoutingEdit:
        return self.edit._replace(replay=jnp.asarray(np.moveaxis(routes, 1, 0)))


def unedited(lm: PretrainedLM) -> Scoped:
    """No intervention, as arrays.

    Raises:
      ValueError: a model without experts.
    """
    nothing = interventions.identity(gate_of(lm), len(lm.config.expert_layers))
    return Scoped(nothing, nothing, "all")


def gate_of(lm: PretrainedLM) -> GateConfig:
    """The gate of every layer with experts.

    Raises:
      ValueError: a model without experts.
    """
    if lm.config.experts is None:
        raise ValueError("the model has no experts")
    return lm.config.experts.gate
