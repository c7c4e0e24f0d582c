"""The backend "c_cpu": C kernels for float32 on CPUs, compiled on the machine that runs them.

The plan is a counting sort. Products gather their rows, apply biases and activations, and share the
threads of XLA; sums over choices and top-k are XLA's. A row's result depends neither on the other
rows nor on the number of threads (with AMX: among calls above, or up to, four rows an expert).
"""

from functools import partial

from jaxtyping import Array

from moe_kernels import composed
from moe_kernels.arguments import Experts
from moe_kernels.c_cpu.plan import make_plan as make_plan
from moe_kernels.c_cpu.products import experts_forward, hidden_grad, up
from moe_kernels.c_cpu.products import grouped_matmul as grouped_matmul
from moe_kernels.c_cpu.products import weight_grad as weight_grad
from moe_kernels.plan import Plan
from moe_kernels.protocols import Kernels
from moe_kernels.xla.ops import combine as combine
from moe_kernels.xla.ops import segment_pool as segment_pool
from moe_kernels.xla.ops import topk_route as topk_route

KERNELS = Kernels(up, grouped_matmul, combine, hidden_grad, weight_grad, segment_pool, topk_route)


def forward(
    x_td: Array, weight_tk: Array, experts: Experts, plan: Plan, *, activation: str, keep: bool
) -> tuple[Array, Array | None, Array | None]:
    """`composed.forward` with up and down in one kernel."""
    token_s = composed.padded(plan.token)
    y_sd, h_in_sf, h_gate_sf = experts_forward(
        x_td, token_s, plan.offset, experts, activation=activation, keep=keep
    )
    row_tk = plan.row.reshape(weight_tk.shape)
    return combine(y_sd, row_tk, plan.offset[-1], weight_tk), h_in_sf, h_gate_sf


backward = partial(composed.backward, KERNELS)
