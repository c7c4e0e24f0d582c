"""One gate for everything: pure functions from router logits to a `Routing`.

In reading order: `config` (what a gate does), `edit` (what an intervention changes), `scores`
(softmax, sigmoid, weights), `choice` (top-k, groups, capacity), `route` (the steps together).
"""

from moe_jax.gating.config import GateConfig
from moe_jax.gating.edit import KEEP, RoutingEdit
from moe_jax.gating.route import (
    Routing,
    dropped,
    expert_counts,
    gate_logits,
    route,
    update_selection_bias,
    withhold,
)

__all__ = [
    "KEEP",
    "GateConfig",
    "Routing",
    "RoutingEdit",
    "dropped",
    "expert_counts",
    "gate_logits",
    "route",
    "update_selection_bias",
    "withhold",
]
