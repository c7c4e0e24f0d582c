"""The arguments of `moe_ffn`: one record for the backends, and the checks that make it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from moe_kernels.activations import ACTIVATIONS

FLOATS = ("bfloat16", "float16", "float32", "float64")
MAX_SLOTS = 2**31 - 1


class Experts(NamedTuple):
    """The parameters of E feed-forward experts; what an expert lacks is None."""

    w_in: Array  # e d f
    w_out: Array  # e f d
    w_gate: Array | None = None  # e d f
    b_in: Array | None = None  # e f
    b_gate: Array | None = None  # e f
    b_out: Array | None = None  # e d


def check(
    x: ArrayLike,
    expert: ArrayLike,
    weight: ArrayLike,
    experts: Experts,
    activation: str,
    num_experts: int | None = None,
) -> tuple[Array, Array, Array, Experts]:
    """Returns the arguments as JAX arrays, or says what is wrong with them.

    `expert` comes back as int32, `weight` in the dtype of sums: its own dtype counts for nothing.

    `num_experts` is what ids count up to; None: the number of experts given.

    Raises:
      ValueError: naming the argument, what it was and what would be right.
    """
    x, expert, weight = jnp.asarray(x), jnp.asarray(expert), jnp.asarray(weight)
    experts = jax.tree.map(jnp.asarray, experts)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}")
    if experts.b_gate is not None and experts.w_gate is None:
        raise ValueError("b_gate was given without w_gate: give w_gate too, or leave b_gate out")
    _check_routing(x, expert, weight)
    _check_experts(x, experts)
    if jax.config.jax_enable_checks and expert.size:  # type: ignore[attr-defined]
        _check_ids(expert, num_experts or experts.w_in.shape[0])
    return x, expert.astype(jnp.int32), weight.astype(wide(x.dtype)), experts


def check_fixed(backend: str | None, *arrays: Array) -> None:
    """Raises ValueError if a shape is symbolic (`jax.export`): the reference alone takes those."""
    for array in arrays:
        if backend != "reference" and not all(isinstance(n, int) for n in array.shape):
            raise ValueError(
                f"an argument has the symbolic shape {array.shape}, which only "
                "backend='reference' takes: export once for each size, or use that"
            )


def wide(dtype: Any) -> Any:
    """The dtype that sums are made in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def _check_ids(expert: Array, num_experts: int) -> None:
    """In JAX's debug mode: ids outside 0..num_experts are an error, when the program runs."""

    def stop(least: Array, most: Array) -> None:
        for bad in (int(least), int(most)):
            if not 0 <= bad <= num_experts:
                raise ValueError(
                    f"expert holds the id {bad}; ids are 0 to {num_experts - 1}, or {num_experts} "
                    "for a dropped choice"
                )

    if isinstance(expert, jax.core.Tracer):
        jax.debug.callback(stop, jnp.min(expert), jnp.max(expert))
    else:
        stop(jnp.min(expert), jnp.max(expert))


def _check_routing(x: Array, expert: Array, weight: Array) -> None:
    check_shape("x", x, ("tokens", "d_model"))
    check_floats(x=x)
    check_shape("expert", expert, ("tokens", "k"), (x.shape[0], None))
    if not jnp.issubdtype(expert.dtype, jnp.integer):
        raise ValueError(f"expert holds {expert.dtype}; expert ids must be integers")
    if expert.shape[1] < 1:
        raise ValueError("expert has k=0 choices per token; k must be at least 1")
    if isinstance(expert.size, int) and expert.size > MAX_SLOTS:
        raise ValueError(f"expert has {expert.size} elements; at most {MAX_SLOTS} (int32) work")
    check_shape("weight", weight, ("tokens", "k"), expert.shape)
    check_floats(weight=weight)


def _check_experts(x: Array, experts: Experts) -> None:
    d = x.shape[1]
    check_shape("w_in", experts.w_in, ("experts", "d_model", "d_expert"), (None, d, None))
    e, _, f = experts.w_in.shape
    if min(e, d, f) < 1:
        raise ValueError(f"w_in has shape {experts.w_in.shape}; every axis must be at least 1 long")
    axes = {
        "w_out": (("experts", "d_expert", "d_model"), (e, f, d)),
        "w_gate": (("experts", "d_model", "d_expert"), (e, d, f)),
        "b_in": (("experts", "d_expert"), (e, f)),
        "b_gate": (("experts", "d_expert"), (e, f)),
        "b_out": (("experts", "d_model"), (e, d)),
    }
    for name, (letters, shape) in axes.items():
        if (array := getattr(experts, name)) is not None:
            check_shape(name, array, letters, shape)
    for name, array in experts._asdict().items():
        if array is not None and array.dtype != x.dtype:
            raise ValueError(f"{name} is {array.dtype} but x is {x.dtype}; cast one to the other")


def check_shape(
    name: str, array: Array, axes: Sequence[str], want: Sequence[Any] | None = None
) -> None:
    """Raises ValueError unless the array has these axes, of these lengths where they are given."""
    want = want or (None,) * len(axes)
    fits = array.ndim == len(axes) and all(
        w is None or w == n for n, w in zip(array.shape, want, strict=True)
    )
    if not fits:
        text = ", ".join(a if w is None else f"{a}={w}" for a, w in zip(axes, want, strict=True))
        raise ValueError(f"{name} has shape {array.shape}; it must be ({text})")


def check_floats(**arrays: Array) -> None:
    """Raises ValueError unless every array is of a float dtype that the kernels know."""
    for name, array in arrays.items():
        if array.dtype.name not in FLOATS:
            raise ValueError(f"{name} holds {array.dtype}; it must be one of {', '.join(FLOATS)}")
