"""The backend "c_cpu": C kernels for float32 on CPUs, compiled on the machine that runs them.

The four kernels that are products gather their rows, apply biases and activations, and share the
threads of XLA; sums over choices and top-k are XLA's. A row's result depends neither on the other
rows nor on the number of threads.
"""

from functools import partial

from moe_kernels import staged
from moe_kernels.c_cpu.products import grouped_matmul as grouped_matmul
from moe_kernels.c_cpu.products import hidden_grad, up
from moe_kernels.c_cpu.products import weight_grad as weight_grad
from moe_kernels.primitives import Primitives
from moe_kernels.xla.ops import combine as combine
from moe_kernels.xla.ops import segment_pool as segment_pool
from moe_kernels.xla.ops import topk_route as topk_route

KERNELS = Primitives(
    up, grouped_matmul, combine, hidden_grad, weight_grad, segment_pool, topk_route
)
forward = partial(staged.forward, KERNELS)
backward = partial(staged.backward, KERNELS)
