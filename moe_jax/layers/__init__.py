"""Layers for Flax NNX: the gate with its parameters, and the mixture of experts."""

from moe_jax.layers.gate import Gate, SelectionBias
from moe_jax.layers.moe import ExpertOptions, FeedForward, MoE

__all__ = ["ExpertOptions", "FeedForward", "Gate", "MoE", "SelectionBias"]
