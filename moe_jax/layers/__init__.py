"""Layers for Flax NNX: the gate with its parameters, and the mixture of experts."""

from moe_jax.layers.gate import Gate, SelectionBias
from moe_jax.layers.moe import FeedForward, MoE

__all__ = ["FeedForward", "Gate", "MoE", "SelectionBias"]
