"""The backend "pallas_tpu": Pallas kernels (Mosaic) for TPUs. No TPU has run it yet.

The products of `composed` are Pallas kernels; rows are gathered before them, and combined after
them, by XLA.
"""

from functools import partial

from moe_kernels import composed
from moe_kernels.pallas_tpu.grouped_matmul import grouped_matmul as grouped_matmul
from moe_kernels.pallas_tpu.layer_kernels import hidden_grad, up
from moe_kernels.pallas_tpu.weight_grad import segment_pool as segment_pool
from moe_kernels.pallas_tpu.weight_grad import weight_grad as weight_grad
from moe_kernels.plan import make_plan as make_plan
from moe_kernels.protocols import Kernels
from moe_kernels.xla.ops import combine as combine
from moe_kernels.xla.ops import topk_route as topk_route

KERNELS = Kernels(up, grouped_matmul, combine, hidden_grad, weight_grad, segment_pool, topk_route)
forward = partial(composed.forward, KERNELS)
backward = partial(composed.backward, KERNELS)
