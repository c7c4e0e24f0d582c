"""The backend "xla": plain XLA; tuned for CPU, correct on every platform."""

from moe_kernels.plan import make_plan as make_plan
from moe_kernels.xla.layer import backward as backward
from moe_kernels.xla.layer import forward as forward
from moe_kernels.xla.ops import combine as combine
from moe_kernels.xla.ops import grouped_matmul as grouped_matmul
from moe_kernels.xla.ops import segment_pool as segment_pool
from moe_kernels.xla.ops import topk_route as topk_route
from moe_kernels.xla.ops import weight_grad as weight_grad

__all__ = [
    "backward",
    "combine",
    "forward",
    "grouped_matmul",
    "make_plan",
    "segment_pool",
    "topk_route",
    "weight_grad",
]
