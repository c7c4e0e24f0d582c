"""An intervention on prompts, with the part of their texts that it acts on.

All edits are handed on in one form, a list with a row for each token and stand-ins of full width:
so the same compiled programs run every intervention and the run without one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.misrouting import interventions
from moe_jax.misrouting.context import Context
from moe_jax.misrouting.routes import Routes
from moe_jax.models.causal_pretrained import PretrainedLM


class Scoped(NamedTuple):
    """An edit, and the identity where it is out of scope.

    Attributes:
      edit: leaves [l 1 ...], the same for all prompts.
      nothing: the identity, with stand-ins of full width.
      scope: of `conditions.SCOPES`.
      routes: of each prompt, the experts that its tokens take; None: as routed.
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

    def on(self, contexts: Sequence[Context], prompts: Sequence[int]) -> list[RoutingEdit]:
        """The edit of each context, at all of its tokens: the caller masks those out of scope.

        Args:
          contexts: what is read.
          prompts: the number of the prompt that each is of.
        """
        if self.routes is None:
            return self._placed(self.edit, [len(context.ids) for context in contexts])
        routes = [
            self.routes[number].along(context.part)
            for context, number in zip(contexts, prompts, strict=True)
        ]
        return self._routed(routes)

    def later(
        self, part: str, start: Sequence[int], prompts: Sequence[int], *, count: int
    ) -> list[RoutingEdit]:
        """The edit of tokens of a part that are yet to be read.

        Args:
          part: "explanation" or "answer".
          start: tokens of that part that each context has.
          prompts: the number of the prompt that each is of.
          count: how many tokens may come.
        """
        counts = [count] * len(start)
        if self.scope not in ("all", part):
            return self._placed(self.nothing, counts)
        if self.routes is None:
            return self._placed(self.edit, counts)
        routes = [
            self.routes[number].after(part, first, count)
            for first, number in zip(start, prompts, strict=True)
        ]
        return self._routed(routes)

    def _placed(self, edit: RoutingEdit, counts: Sequence[int]) -> list[RoutingEdit]:
        """The edit with a row of `replay` for each token, and stand-ins of full width."""
        # NumPy and device_put: jax.numpy compiles a program for each shape.
        stand_in = np.broadcast_to(edit.stand_in, self.nothing.stand_in.shape)
        whole, replay = edit._replace(stand_in=jax.device_put(stand_in)), np.asarray(edit.replay)
        rows = {t: jax.device_put(np.repeat(replay, t, axis=1)) for t in set(counts)}
        return [whole._replace(replay=rows[t]) for t in counts]

    def _routed(self, routes: Sequence[Int[np.ndarray, "_ l k"]]) -> list[RoutingEdit]:
        """The edit under which tokens take these routes."""
        placed = self._placed(self.edit, [1] * len(routes))
        rows = [jax.device_put(np.moveaxis(mine, 1, 0)) for mine in routes]
        return [one._replace(replay=mine) for one, mine in zip(placed, rows, strict=True)]


def unedited(lm: PretrainedLM) -> Scoped:
    """No intervention, as arrays.

    Raises:
      ValueError: a model without experts.
    """
    gate, layers = gate_of(lm), len(lm.config.expert_layers)
    nothing = interventions.identity(gate, layers)._replace(
        stand_in=jnp.zeros((layers, gate.num_experts, lm.config.d_model), jnp.float32)
    )
    return Scoped(nothing, nothing, "all")


def gate_of(lm: PretrainedLM) -> GateConfig:
    """The gate of every layer with experts.

    Raises:
      ValueError: a model without experts.
    """
    if lm.config.experts is None:
        raise ValueError("the model has no experts")
    return lm.config.experts.gate
