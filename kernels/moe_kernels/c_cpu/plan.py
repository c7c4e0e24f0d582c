"""The plan by a counting sort, which XLA doesn't have."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from moe_kernels.c_cpu.calls import call
from moe_kernels.plan import Plan


def make_plan(expert_tk: Int[Array, "t k"], num_experts: int) -> Plan:
    """`moe_kernels.make_plan`, the same integers."""
    rows = (expert_tk.size,)
    return Plan(
        *call("moe_plan", (expert_tk,), (rows, rows, rows, (num_experts + 1,)), dtype=jnp.int32)
    )
