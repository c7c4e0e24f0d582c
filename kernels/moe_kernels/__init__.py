"""Fused routing kernels: JAX arrays in, JAX arrays out."""
