"""The interventions of a study as a flag's text: NAME, NAME=AMOUNT, or either with @SCOPE.

Such as "suppress" and "scale=0.5@answer".
"""

import difflib
import math
from typing import NamedTuple

from moe_jax.errors import UserError

SCOPES = ("all", "prompt", "explanation", "answer")
ON_EXPERTS = ("suppress", "exclude", "zero", "mean", "force", "steer", "bias", "scale", "permute")
"""Interventions that are aimed at a set of experts, so that other sets can be controls."""
ON_LAYERS = ("random", "rank_shift", "gumbel", "top_1", "donor", "donor_peer", "replay")
"""Interventions that concern every token of the layers that hold the chosen experts."""
_AMOUNTS = {"steer": -0.01, "bias": 2.0, "scale": 0.5, "gumbel": 1.0}
"""Defaults of those that take an amount."""


class Spec(NamedTuple):
    """One kind of intervention.

    Attributes:
      name: of ON_EXPERTS or ON_LAYERS.
      amount: what "bias" adds, "scale" multiplies by, the temperature of "gumbel", the margin of
        "steer" (above 0: beyond the largest logit, below: beyond the smallest); NaN for the others.
      scope: of SCOPES: tokens that are read while it acts.
    """

    name: str
    amount: float
    scope: str

    def __str__(self) -> str:
        """The text that `parse_spec` reads, with the scope always said."""
        amount = "" if math.isnan(self.amount) else f"={self.amount:g}"
        return f"{self.name}{amount}@{self.scope}"


def parse_spec(text: str) -> Spec:
    """The intervention that a flag's text stands for.

    Raises:
      UserError: an unknown name or scope (names the nearest), an amount that is missing, isn't a
        number, or that the intervention doesn't take.
    """
    rest, _, scope = text.partition("@")
    name, has_amount, amount = rest.partition("=")
    names = ON_EXPERTS + ON_LAYERS
    for kind, value, known in (("intervention", name, names), ("scope", scope or "all", SCOPES)):
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"interventions: {kind} {value!r} of {text!r} is unknown{hint}: "
                f"use {', '.join(known)}"
            )
    if has_amount and name not in _AMOUNTS:
        raise UserError(f"interventions: {text!r}: {name} takes no amount")
    number = _AMOUNTS.get(name, math.nan)
    if has_amount:
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"interventions: {text!r}: {amount!r} is not a number")
    if name == "replay" and scope not in ("", "all", "prompt"):
        raise UserError(
            f"interventions: {text!r}: records are of the prompts' tokens: use replay or "
            "replay@prompt"
        )
    if name == "steer" and number == 0:
        raise UserError(f"interventions: {text!r}: the amount must not be 0")
    if name == "gumbel" and number <= 0:
        raise UserError(f"interventions: {text!r}: the temperature must be above 0")
    return Spec(name, number, scope or "all")
