"""Rotary position embedding."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.models.causal_config import RopeConfig


def frequencies(config: RopeConfig, width: int) -> Float[np.ndarray, " half"]:
    """Angle per position of each pair of a head's dimensions: theta^(-2i / width), stretched.

    "llama3", with wavelength w = 2 pi / f and L = original_length: f / factor where
    w > L / low_factor, f where w < L / high_factor, and between (1 - m) f / factor + m f with
    m = (L / w - low_factor) / (high_factor - low_factor).

    Args:
      config: base and stretching.
      width: of a head, even.

    Returns:
      [width / 2] float64.

    Source: Su et al. 2021; Llama 3.1's release for "llama3".
    """
    plain = config.theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if config.scaling == "none":
        return plain
    if config.scaling == "linear":
        return plain / config.factor
    turns = config.original_length * plain / (2 * math.pi)
    blend = (turns - config.low_factor) / (config.high_factor - config.low_factor)
    blend = np.clip(blend, 0, 1)
    return (1 - blend) * plain / config.factor + blend * plain


def rotate(
    x: Float[Array, "b s h d"],
    positions: Int[Array, "b s"],
    frequency: Float[np.ndarray, " half"],
) -> Float[Array, "b s h d"]:
    """Turn each pair (x_i, x_{i + d/2}) by position * frequency_i, in float32.

    Args:
      x: queries or keys.
      positions: of each token, from 0.
      frequency: as `frequencies` gives it.

    Returns:
      [b s h d] in the dtype of x.
    """
    angle = (
        positions[:, :, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)[None, None]
    )
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
