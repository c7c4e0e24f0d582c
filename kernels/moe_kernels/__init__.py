"""Fused routing kernels: JAX arrays in, JAX arrays out.

`moe_ffn` is the operation: gather, grouped products, weighted combine, with its own backward pass.
`moe_ffn_expert_parallel` is the same with the experts spread over the devices of a mesh.
`gather_gemm`, `grouped_gemm`, `combine`, `segment_pool` and `topk_route` are its parts, each usable
alone. `make_plan` and `make_tiles` give the integers that grouped kernels work from. `rows_where`
and `whole_where` bring other arrays to the mesh that tokens lie on. `resolve_backend` says which
backend runs. `keep_heap` saves a process on CPU from fresh memory for each large array.
"""

from moe_kernels.activations import ACTIVATIONS as ACTIVATIONS
from moe_kernels.api import moe_ffn as moe_ffn
from moe_kernels.backends import BACKENDS as BACKENDS
from moe_kernels.backends import resolve_backend as resolve_backend
from moe_kernels.expert_parallel import EXCHANGES as EXCHANGES
from moe_kernels.expert_parallel import moe_ffn_expert_parallel as moe_ffn_expert_parallel
from moe_kernels.explicit_mesh import rows_where as rows_where
from moe_kernels.explicit_mesh import whole_where as whole_where
from moe_kernels.export import EXPORT_CHECKS_OFF as EXPORT_CHECKS_OFF
from moe_kernels.heap import keep_heap as keep_heap
from moe_kernels.ops import combine as combine
from moe_kernels.ops import gather_gemm as gather_gemm
from moe_kernels.ops import grouped_gemm as grouped_gemm
from moe_kernels.ops import segment_pool as segment_pool
from moe_kernels.ops import topk_route as topk_route
from moe_kernels.plan import Plan as Plan
from moe_kernels.plan import Tiles as Tiles
from moe_kernels.plan import make_plan as make_plan
from moe_kernels.plan import make_tiles as make_tiles
from moe_kernels.vjp import RESIDUALS as RESIDUALS

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "EXCHANGES",
    "EXPORT_CHECKS_OFF",
    "RESIDUALS",
    "Plan",
    "Tiles",
    "combine",
    "gather_gemm",
    "grouped_gemm",
    "keep_heap",
    "make_plan",
    "make_tiles",
    "moe_ffn",
    "moe_ffn_expert_parallel",
    "resolve_backend",
    "rows_where",
    "segment_pool",
    "topk_route",
    "whole_where",
]
