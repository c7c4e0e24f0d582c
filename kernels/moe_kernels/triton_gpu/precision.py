"""How exact products of float32 are: what the user told JAX, in Triton's words."""

from typing import Any

import jax
import jax.numpy as jnp

EXACT = "ieee"
"""Ordinary float32 arithmetic, on the processor's ordinary units."""

TENSOR_CORES: dict[str | None, str] = {
    **dict.fromkeys((None, "default", "fastest", "bfloat16", "tensorfloat32"), "tf32"),
    **dict.fromkeys(("high", "bfloat16_3x"), "tf32x3"),
    **dict.fromkeys(("TF32_TF32_F32", "BF16_BF16_F32", "BF16_BF16_BF16"), "tf32"),
    **dict.fromkeys(("F16_F16_F32", "F16_F16_F16"), "tf32"),
    **dict.fromkeys(("TF32_TF32_F32_X3", "BF16_BF16_F32_X3"), "tf32x3"),
}
"""Values of `jax_default_matmul_precision` -> Triton's `input_precision`; EXACT for the others."""


def input_precision(dtype: Any) -> str:
    """Triton's `input_precision` for products of that dtype, read while a program is traced.

    By default float32 is rounded to TF32 (10 bits after the point), as in XLA's own products on
    GPUs; "high" makes one product of three in TF32, which is nearly float32; "highest" and
    "float32" are float32. Shorter types are multiplied as they are.
    """
    if jnp.dtype(dtype) != jnp.float32:
        return EXACT
    config: Any = jax.config
    return TENSOR_CORES.get(config.jax_default_matmul_precision, EXACT)
