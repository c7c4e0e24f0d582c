"""Fused routing kernels: JAX arrays in, JAX arrays out.

`moe_ffn` is the operation: gather, grouped products, weighted combine, with its own backward pass.
`make_plan` and `make_tiles` give the integers that grouped kernels work from.
"""

from moe_kernels.activations import ACTIVATIONS as ACTIVATIONS
from moe_kernels.api import moe_ffn as moe_ffn
from moe_kernels.backends import BACKENDS as BACKENDS
from moe_kernels.backends import choose as choose
from moe_kernels.plan import Plan as Plan
from moe_kernels.plan import Tiles as Tiles
from moe_kernels.plan import make_plan as make_plan
from moe_kernels.plan import make_tiles as make_tiles

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "Plan",
    "Tiles",
    "choose",
    "make_plan",
    "make_tiles",
    "moe_ffn",
]
