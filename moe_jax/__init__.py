"""Mixture-of-experts in JAX: one gate, pure losses, a layer, a training loop, and systems on top.

The core by name (JAX and Flax are enough for it):

    moe = moe_jax.MoE(64, 128, moe_jax.GateConfig(num_experts=8, k=2), rngs=nnx.Rngs(0))
    y, routing = moe(x)

Names are loaded when they are first used, so that no part asks for the packages of another. What
each package offers stands in its __init__.pyi; everything else may move.
"""

import lazy_loader

__version__ = "0.1.0"

# As in __init__.pyi, whose reading would take longer than all the rest of `import moe_jax`.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        *("data", "gating", "layers", "losses", "misrouting", "models", "rationale", "reports"),
        "training",
    ],
    {
        "errors": ["UserError"],
        "gating": [
            *("GateConfig", "Routing", "RoutingEdit", "dropped", "expert_counts", "gate_logits"),
            *("route", "update_selection_bias"),
        ],
        "layers": ["ExpertOptions", "FeedForward", "Gate", "MoE", "SelectionBias"],
    },
)
