"""Mixture-of-experts in JAX: one gate at five scales."""

__version__ = "0.1.0"
