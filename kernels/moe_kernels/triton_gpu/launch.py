"""The one place that calls jax_triton."""

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from moe_kernels.triton_gpu.tiles import Tile, capability
from moe_kernels.varying import match_axes


def launch(
    kernel: Any,
    inputs: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    grid: int,
    tile: Tile,
    constants: dict[str, Any],
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> list[Array]:
    """Runs a Triton kernel on `grid` programs.

    Args:
      kernel: a @triton.jit function of pointers to inputs, pointers to outputs, sizes, constexprs.
      inputs: arrays.
      outputs: what to allocate, not initialised.
      grid: number of programs; with 0 nothing runs.
      tile: its block sizes go to the kernel's constexprs of the same names, in capitals, as far as
        it has them; warps and stages to the compiler.
      constants: the other constexprs.
      sizes: integers that the compiled kernel gets when it starts, so that it is the same for all
        of them: what depends on the number of tokens.
    """
    if grid == 0:  # CUDA refuses such a launch
        return match_axes((list(inputs), [jnp.zeros(o.shape, o.dtype) for o in outputs]))[1]
    found = load().triton_call(
        *inputs,
        kernel=kernel,
        out_type=list(outputs),
        grid=(grid,),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        compute_capability=capability(),
        # Said, because Triton's default changes from 3.9 to 3.10: a * b + c in one rounding.
        backend_options={"enable_fp_fusion": True},
        **sizes,
        **constants,
        **blocks(kernel, tile),
    )
    # jax_triton does not know of values that differ over the devices of a shard_map.
    return match_axes((list(inputs), found))[1]


def blocks(kernel: Any, tile: Tile) -> dict[str, int]:
    """The tile's block sizes that the kernel asks for."""
    sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
    return {name: size for name, size in sizes.items() if name in kernel.arg_names}


def load() -> ModuleType:
    """jax_triton, with two things made to fit.

    Triton 3.6 has one constant less than jax_triton 0.4.1 imports, which then takes it for a Triton
    without NVIDIA's part. And its rule for dead code has two arguments; from JAX 0.12 on it is
    called with three.

    Raises:
      ImportError: it, or NVIDIA's part of Triton, is not there.
    """
    import jax_triton
    from jax._src.interpreters import partial_eval

    lib: Any = jax_triton.triton_lib
    if not isinstance(lib.cb, ModuleType):
        from triton.backends.nvidia import compiler, driver

        lib.cb, lib._TMA_DTYPE_DEVICE_TO_HOST = compiler, driver.TMA_DTYPE_DEVICE_TO_HOST
        lib._TMA_TF32 = 11  # as in Triton 3.7
    primitive = jax_triton.triton_lib.triton_kernel_call_p
    rule = partial_eval.dce_rules.get(primitive)
    if jax.__version_info__ >= (0, 12) and rule and len(inspect.signature(rule).parameters) == 2:

        def keep_all(used: Any, live: Any, eqn: Any) -> Any:
            return [True] * len(eqn.invars), eqn

        rules: dict[Any, Any] = partial_eval.dce_rules
        rules[primitive] = keep_all
    return jax_triton
