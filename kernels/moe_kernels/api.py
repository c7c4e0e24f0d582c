"""The public operation: `moe_ffn`."""

from typing import Any

import jax
from jaxtyping import Array, Float, Int

from moe_kernels import vjp
from moe_kernels.arguments import Experts, check, check_fixed
from moe_kernels.backends import resolve_backend
from moe_kernels.explicit_mesh import per_device, place_of
from moe_kernels.precision import resolve
from moe_kernels.varying import match_axes


def moe_ffn(
    x: Float[Array, "t d"],
    expert: Int[Array, "t k"],
    weight: Float[Array, "t k"],
    w_in: Float[Array, "e d f"],
    w_out: Float[Array, "e f d"],
    *,
    w_gate: Float[Array, "e d f"] | None = None,
    b_in: Float[Array, "e f"] | None = None,
    b_gate: Float[Array, "e f"] | None = None,
    b_out: Float[Array, "e d"] | None = None,
    activation: str = "silu",
    recompute: bool = False,
    precision: jax.lax.Precision | str | None = None,
    backend: str | None = None,
) -> Float[Array, "t d"]:
    """Sends every token through its k experts and sums what they give, weighted.

        y_t = sum_k weight_tk * (a W_out[e] + b_out[e]),  e = expert_tk,
        a = act(x_t W_gate[e] + b_gate[e]) * (x_t W_in[e] + b_in[e])   with w_gate (SwiGLU ...),
        a = act(x_t W_in[e] + b_in[e])                                 without.

    A choice whose id is num_experts is dropped: it adds exactly 0, takes no part in any gradient
    and costs (almost) nothing. Ids outside 0..num_experts are treated the same way, and no read
    ever leaves the arrays; with jax_enable_checks on (JAX's debug mode) they are an error.

    Args:
      x: tokens, bfloat16, float16 or float32 (float64 where JAX has it on).
      expert: ids of the chosen experts, any integer dtype.
      weight: combine weights, any float dtype, used as they are (no normalisation), in float32.
      w_in: up-projections, in the dtype of x, as are all parameters.
      w_out: down-projections.
      w_gate: gate projections; None for experts without a gate.
      b_in: bias of the up-projection, or None.
      b_gate: bias of the gate projection, or None.
      b_out: bias of the down-projection, or None; like W_out's product, it is weighted.
      activation: silu, gelu (exact), gelu_tanh, relu or relu2.
      recompute: keep no pre-activations for the backward pass, but compute them again there: less
        memory (2 * tokens * k * d_expert numbers with a gate), one or two products more.
      precision: of products of float32 on GPUs and TPUs, in both passes: "default", "high",
        "highest" or another name that `jax.default_matmul_precision` takes, or a
        `jax.lax.Precision`; None: what that context or jax_default_matmul_precision says where this
        is traced. On CPU float32 is float32 whatever is asked.
      backend: "reference" (every expert sees every token; the oracle), "xla" (grouped blocks, plain
        XLA, its own backward), "c_cpu" (C kernels, float32), "triton_gpu", "pallas_tpu", or None:
        the fastest that exists for the platform (`resolve_backend(None)` says which). A named
        backend never falls back to another.

    Where tokens are sharded over Explicit axes of a mesh (those of `jax.make_mesh`), each device
    works on its own by `jax.shard_map`; what else is sharded, parameters too, is gathered first,
    and gradients go back the same way. (`moe_ffn_expert_parallel` leaves experts where they are.)
    Under Auto axes every device gets all tokens and does all work: write the shard_map yourself.

    Returns:
      y, in the dtype of x, sharded over tokens as they are; products are summed in float32.
      Reverse-mode derivatives exist for x, weight and every parameter, and what they need is kept
      under the names `RESIDUALS`, for policies of `jax.checkpoint`. The reference also has the
      forward mode and derivatives of any order; the others say that they have not.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument. Or a derivative
        is asked that the backend does not have.
      jax.errors.JaxRuntimeError: in debug mode under jit, an id is out of range.
    """
    x, expert, weight, experts = check(
        x, expert, weight, Experts(w_in, w_out, w_gate, b_in, b_gate, b_out), activation
    )
    if backend is not None:
        resolve_backend(backend)
    check_fixed(backend, x, expert, *jax.tree.leaves(experts))
    options = vjp.Options(activation, backend, recompute, resolve(precision))
    tokens = x, expert, weight
    if place := place_of(tokens, experts):
        return per_device(_own, place, tokens, experts, options=options)[0]
    return _own(tokens, experts, options)[0]


def _own(
    tokens: tuple[Array, Array, Array], experts: Experts, options: vjp.Options
) -> tuple[Array]:
    """The layer on one device, of arguments that are already checked."""
    args: Any = match_axes((*tokens, experts))
    return (vjp.moe_ffn(*args, options=options),)
