"""The runs of a Stage 2 study: which intervention, on which experts, while what is read.

Letters: l layers with a mixture, e experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting.controls import least_like, matched_controls
from moe_jax.misrouting.specs import ON_EXPERTS, Spec

Target = Bool[np.ndarray, "l e"]

BASE = "base"
_ENOUGH_SETS = 19


class Condition(NamedTuple):
    """One run of all prompts.

    Attributes:
      spec: `str` of the Spec; BASE for a run without intervention.
      experts: "selected", "opposite", "random-07"; for runs without intervention their name.
      scope: of SCOPES.
      target: experts that it is aimed at; none for the base.
    """

    spec: str
    experts: str
    scope: str
    target: Target

    @property
    def key(self) -> str:
        """A name of its own in the study."""
        return f"{self.spec}/{self.experts}"

    @property
    def is_control(self) -> bool:
        """A matched random set: measured, but not a row of the table."""
        return self.experts.startswith("random-")


def check_spec(gate: GateConfig, spec: Spec, target: Target) -> None:
    """Can these experts of this gate be treated so?

    Raises:
      UserError: "permute" with a single expert in a layer, "top_1" on a gate that has one choice.
    """
    if spec.name == "top_1" and gate.slots == 1:
        raise UserError("interventions: top_1 changes nothing here: the gate has one choice")
    if spec.name == "permute" and np.any(target.sum(axis=1) == 1):
        raise UserError(
            "interventions: permute exchanges experts of a layer, and a layer has one selected: "
            "select more, or leave it out"
        )


def conditions(
    gate: GateConfig,
    specs: Sequence[Spec],
    target: Target,
    *,
    usage: Float[np.ndarray, "l e"],
    score: Float[np.ndarray, "l e"],
    controls: int,
    seed: int,
) -> list[Condition]:
    """The base, and for each spec the selected experts, their opposite and matched random sets.

    Interventions on layers have neither opposite nor controls: they choose no experts.

    Args:
      gate: of the model.
      specs: what to do.
      target: the selected experts.
      usage: by which controls are matched (`matched_controls`).
      score: by which experts were selected, such as |z| of the trend: the opposite has the lowest.
      controls: random sets of each spec, at least 20, or 0 for none.
      seed: of the sets and of random interventions.

    Raises:
      UserError: too few experts outside the target to match it; as `check_spec`.
    """
    found = [Condition(BASE, BASE, "all", np.zeros_like(target))]
    sets = {"selected": target}
    if any(spec.name in ON_EXPERTS for spec in specs):
        sets |= _other_sets(target, usage=usage, score=score, controls=controls, seed=seed)
    for spec in specs:
        mine = sets if spec.name in ON_EXPERTS else {"selected": target}
        for name, experts in mine.items():
            check_spec(gate, spec, experts)
            found.append(Condition(str(spec), name, spec.scope, experts))
    return found


def _other_sets(
    target: Target,
    *,
    usage: Float[np.ndarray, "l e"],
    score: Float[np.ndarray, "l e"],
    controls: int,
    seed: int,
) -> dict[str, Target]:
    try:
        sets = {"opposite": least_like(target, score)}
        if controls:
            drawn = _finest(target, usage, controls=controls, seed=seed)
            sets |= {f"random-{i:02d}": one for i, one in enumerate(drawn)}
    except ValueError as error:
        raise UserError(f"no controls for the selected experts: {error}") from None
    return sets


def _finest(
    target: Target, usage: Float[np.ndarray, "l e"], *, controls: int, seed: int
) -> Bool[np.ndarray, "n l e"]:
    """Sets matched by deciles of usage, or by the finest coarser groups that give enough sets.

    Enough: so many different ones that p = 1 / (sets + 1) can be 0.05 or less. Where none are, the
    experts of a layer are one group, which gives the most there are.
    """
    for bins in range(10, 1, -1):
        try:
            drawn = matched_controls(target, usage, seed=seed, number=controls, bins=bins)
        except ValueError:
            continue
        if len(np.unique(drawn.reshape(controls, -1), axis=0)) >= _ENOUGH_SETS:
            return drawn
    return matched_controls(target, usage, seed=seed, number=controls, bins=1)
