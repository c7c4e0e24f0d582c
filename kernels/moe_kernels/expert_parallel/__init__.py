"""`moe_ffn` with the experts spread over the devices of a mesh axis (expert parallelism).

`api` has the public function, `rounds` the passes of its exchanges by buffers, `exchange` what
moves in one of them.
"""

from moe_kernels.expert_parallel.api import EXCHANGES as EXCHANGES
from moe_kernels.expert_parallel.api import moe_ffn_expert_parallel as moe_ffn_expert_parallel
