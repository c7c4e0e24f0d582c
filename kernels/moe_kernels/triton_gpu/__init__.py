"""The backend "triton_gpu": Triton kernels for NVIDIA GPUs, launched by jax_triton.

The kernels are those of `composed`. A model's sizes are compile-time constants; numbers of
tokens and loads are not, so another batch is another compilation only if it takes other tiles.
Products of float32 are as exact as `jax_default_matmul_precision` asks (`precision`).
What no GPU is needed for is tested without one: the kernels run in Triton's interpreter and are
compiled for sm_80, sm_90 and sm_100.
"""

from functools import partial

from moe_kernels import composed
from moe_kernels.plan import make_plan as make_plan
from moe_kernels.protocols import Kernels
from moe_kernels.triton_gpu.grouped_matmul import grouped_matmul as grouped_matmul
from moe_kernels.triton_gpu.hidden_grad import hidden_grad
from moe_kernels.triton_gpu.sums import combine as combine
from moe_kernels.triton_gpu.sums import segment_pool as segment_pool
from moe_kernels.triton_gpu.topk_route import topk_route as topk_route
from moe_kernels.triton_gpu.up import up
from moe_kernels.triton_gpu.weight_grad import weight_grad as weight_grad

KERNELS = Kernels(up, grouped_matmul, combine, hidden_grad, weight_grad, segment_pool, topk_route)
forward = partial(composed.forward, KERNELS)
backward = partial(composed.backward, KERNELS)
