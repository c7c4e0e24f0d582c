"""Fused routing kernels: JAX arrays in, JAX arrays out.

`moe_ffn` is the one operation: gather, grouped products, weighted combine, with its own backward.
"""

from moe_kernels.api import BACKENDS as BACKENDS
from moe_kernels.api import choose as choose
from moe_kernels.api import moe_ffn as moe_ffn

__all__ = ["BACKENDS", "choose", "moe_ffn"]
