"""Functions that have first derivatives in reverse mode only, and say so where others are asked."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from moe_kernels.varying import match_axes


def reverse_only(
    why: str,
    plain: Callable[..., Any],
    forward: Callable[..., Any],
    keep: Callable[..., Any],
    backward: Callable[..., Any],
    named: Callable[[Any], Any] = lambda made: made,
) -> Callable[..., Any]:
    """`plain` with derivatives as of `jax.custom_vjp`, and one sentence where that has none.

    It is an error to use another derivative (forward mode, a second one); one that nothing depends
    on, such as one behind `stop_gradient`, is left out.

    Args:
      why: the error's sentence.
      plain: of pytrees of arrays.
      forward: of the same; gives what `plain` gives and what it made for the backward pass.
      keep: of the same; those of them that are kept for the backward pass, as they are.
      backward: of what is kept, what was made and the derivative of the result; gives the
        derivatives of all arguments.
      named: gives names to what was made; `jax.checkpoint` does not see any that `forward` gives.

    Returns:
      A function that raises ValueError(why) while it is differentiated or its program is lowered.
    """

    # Derivatives go to and from `marked`, values come from `args`: what is kept of these is
    # the arrays themselves, which would be copies if they went through the mark or a function.
    @jax.custom_vjp
    def call(marked: Any, args: Any) -> Any:
        return plain(*args)

    def call_forward(marked: Any, args: Any) -> tuple[Any, Any]:
        out, made = _no_derivatives(forward, why)(*args)
        return out, (keep(*args), named(made))

    def call_backward(saved: Any, dy: Any) -> tuple[Any, None]:
        return _no_derivatives(backward, why)(*saved, dy), None

    call.defvjp(call_forward, call_backward)

    def run(*args: Any) -> Any:
        return call(jax.tree.map(partial(_mark, why), args), args)

    return run


def _mark(why: str, array: Array) -> Array:
    return _marked.bind(array, why=why) if _has_derivative(array) else array


def _no_derivatives(function: Callable[..., Any], why: str) -> Callable[..., Any]:
    """A pass made by hand: its derivatives are errors where they are used."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refused(primals: Any, tangents: Any) -> tuple[Any, Any]:
        out = guarded(*primals)
        floats = [t for t in jax.tree.leaves(tangents) if t.dtype != jax.dtypes.float0]
        seed = sum(jnp.sum(t, dtype=jnp.float32) for t in match_axes(floats))
        return out, jax.tree.map(partial(_tangent, _second_order.bind(seed, why=why)), out)

    return guarded


def _tangent(seed: Array, out: Array) -> Any:
    """A tangent of `out`'s type that depends on the seed."""
    if not _has_derivative(out):
        return np.zeros(out.shape, jax.dtypes.float0)
    zeros, seed = match_axes((jnp.zeros_like(out), seed))
    return zeros + seed.astype(out.dtype)


def _has_derivative(array: Array) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _refuse(*_: Any, why: str) -> Any:
    raise ValueError(why)


# Tangents on their way through what they must not go through. Reverse mode transposes the first to
# the identity before a program is made; a program that still holds one is refused. A vmap meets the
# first only outside jax.jvp, as in jax.jacfwd: inside, it has met the value.
_forward_mode = Primitive("forward_mode")
_second_order = Primitive("second_derivative")
for _primitive in (_forward_mode, _second_order):
    _primitive.def_abstract_eval(lambda t, **_: t)
    _primitive.def_impl(_refuse)
    mlir.register_lowering(_primitive, _refuse)
ad.deflinear2(_forward_mode, lambda ct, _, **__: [ct])
ad.deflinear2(_second_order, _refuse)
batching.primitive_batchers[_forward_mode] = lambda *_, why: _refuse(why=why)
batching.defvectorized(_second_order)

# A value whose tangent is one of the forward mode.
_marked = Primitive("reverse_only")
_marked.def_abstract_eval(lambda x, **_: x)
_marked.def_impl(lambda x, **_: x)
ad.defjvp(_marked, lambda t, x, *, why: _forward_mode.bind(t, why=why))
batching.defvectorized(_marked)
mlir.register_lowering(_marked, lambda ctx, x, **_: [x])
