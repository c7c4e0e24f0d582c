"""What `jax.export` has to be told to take programs that call kernels of this package."""

from jax import export

from moe_kernels.c_cpu.library import KERNELS

TRITON = ("triton_kernel_call_ffi", "triton_kernel_call")

EXPORT_CHECKS_OFF = tuple(
    export.DisabledSafetyCheck.custom_call(name) for name in (*KERNELS, *TRITON)
)
"""For `jax.export.export(f, disabled_checks=EXPORT_CHECKS_OFF)`. JAX promises for none of these
calls that a later version will run them. A program for CPU with calls of "c_cpu" runs in processes
that have loaded its kernels, by `moe_kernels.resolve_backend("c_cpu")`; one of "xla" runs anywhere.
"""
