"""Values and gradients of a layer against the reference backend, on a sample of the tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import moe_kernels
import numpy as np

SAMPLE = 64
PARAMETERS = ("w_in", "w_out", "w_gate")
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2, "float16": 1e-2}
"""Largest error allowed, as a part of the largest value of the array."""
TF32_TOLERANCE = 5e-3
"""The same for float32 where products may run in TF32, XLA's default on GPUs."""


class Disagreement(Exception):
    """A rival's values differ from the reference by more than its dtype explains."""


def layer(backend: str | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward, and forward with all gradients, of `moe_ffn`, jitted.

    forward(x, weight, params, expert) gives y; both(..., dy) gives y, (dx, dweight, dparams).
    """

    def forward(x: Any, weight: Any, params: Any, expert: Any) -> Any:
        return moe_kernels.moe_ffn(x, expert, weight, **params, backend=backend)

    return jax.jit(forward), jax.jit(with_gradients(forward))


def with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    """forward(x, weight, params, *rest) -> both(x, weight, params, *rest, dy), as in `layer`."""

    def both(x: Any, weight: Any, params: Any, *rest: Any) -> Any:
        y, pull = jax.vjp(lambda *args: forward(*args, *rest[:-1]), x, weight, params)
        return y, pull(rest[-1])

    return both


def check(name: str, both: Callable[[Any], Any], data: dict[str, Any]) -> float:
    """Compares both(dy) -> (y, (dx, dweight, dparams)) with the reference on data.

    With dy zero elsewhere, the gradients of the parameters come from the sample alone. A None
    among the results is not compared.

    Returns:
      The largest error, as a part of the largest value of its array.

    Raises:
      Disagreement: a value or a gradient is off by more than the dtype explains.
    """
    x, expert, weight = data["x"], data["expert"], data["weight"]
    params = {name: data[name] for name in PARAMETERS}
    chosen = np.random.default_rng(1).permutation(x.shape[0])[:SAMPLE]
    dy = jnp.zeros_like(data["dy"]).at[chosen].set(data["dy"][chosen])
    y, (dx, dweight, dparams) = both(dy)
    dweight = None if dweight is None else dweight[chosen]
    few = [a[chosen] for a in (x, weight, expert, dy)]
    want_y, want = layer("reference")[1](few[0], few[1], params, few[2], few[3])
    pairs = {"y": (y[chosen], want_y), "dx": (dx[chosen], want[0]), "dweight": (dweight, want[1])}
    pairs |= {f"d{key}": (dparams[key], want[2][key]) for key in PARAMETERS}
    limit, worst = tolerance(x.dtype), 0.0
    for what, (ours, right) in pairs.items():
        if ours is None:
            continue
        error = float(error_of(jnp.asarray(ours), right))
        if not error <= limit:
            raise Disagreement(f"{name}: {what} is off by {error:.2g} of its largest value")
        worst = max(worst, error)
    return worst


def tolerance(dtype: Any) -> float:
    """The largest error allowed on this platform."""
    name = jnp.dtype(dtype).name
    if name == "float32" and jax.default_backend() != "cpu":
        return TF32_TOLERANCE
    return TOLERANCE[name]


@jax.jit
def error_of(ours: Any, right: Any) -> Any:
    """The largest error, as a part of the largest value of `right`; NaN stays NaN."""
    ours, right = ours.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.max(jnp.abs(ours - right)) / jnp.maximum(jnp.max(jnp.abs(right)), 1e-30)
