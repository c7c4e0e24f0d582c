"""The arrays of an intervention that a specification names.

Letters: l layers with experts, e experts, d width.
"""

import numpy as np
from jaxtyping import Float

from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.misrouting import interventions
from moe_jax.misrouting.conditions import Target
from moe_jax.misrouting.specs import Spec


def make_edit(
    gate: GateConfig,
    spec: Spec,
    target: Target,
    *,
    seed: int,
    means: Float[np.ndarray, "l e d"] | None = None,
) -> RoutingEdit:
    """The edit of a spec for a set of experts, leaves [l 1 ...].

    Of "donor", "donor_peer" and "replay" it is the identity: what these do differs by prompt and
    token (`routes.Routes`).

    Args:
      gate: of the model.
      spec: what to do.
      target: to which experts.
      seed: of what is drawn.
      means: mean outputs of the experts; only "mean" needs them.

    Raises:
      ValueError: "mean" without means; as the function of `interventions`.
    """
    layers = np.asarray(target.any(axis=1))
    if spec.name in ("donor", "donor_peer", "replay"):
        return interventions.identity(gate, len(target))
    if spec.name == "mean":
        if means is None:
            raise ValueError('means=None: "mean" needs the mean outputs of the experts')
        return interventions.mean_ablate(gate, target, means)
    if spec.name in ("suppress", "exclude", "zero", "force"):
        return getattr(interventions, spec.name)(gate, target)
    if spec.name in ("bias", "scale"):
        return getattr(interventions, spec.name)(gate, target, spec.amount)
    if spec.name == "permute":
        return interventions.permute(gate, target, seed=seed)
    if spec.name == "steer":
        sets = (target, np.zeros_like(target))
        forced, suppressed = sets if spec.amount > 0 else sets[::-1]
        return interventions.steer(
            gate, forced=forced, suppressed=suppressed, margin=abs(spec.amount)
        )
    if spec.name == "random":
        return interventions.random(gate, layers, seed=seed)
    if spec.name == "gumbel":
        return interventions.gumbel(gate, layers, spec.amount, seed=seed)
    return getattr(interventions, spec.name)(gate, layers)
