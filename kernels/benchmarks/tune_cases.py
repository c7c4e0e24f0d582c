"""The products that are tuned, on the data of one layer, each with an oracle of another backend."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import loads
import moe_kernels
from moe_kernels.activations import ACTIVATIONS


class Case(NamedTuple):
    """One kernel of `triton_gpu` with its arguments.

    `problem` is what `tuned.key` takes; `kernel(*args, tile=tile)` and `oracle(*args)` give arrays
    (or None) in the same order, the oracle's by the backend "xla".
    """

    problem: tuple[str, int, int, int, int, str]
    kernel: Callable[..., Any]
    oracle: Callable[..., Any]
    args: tuple[Any, ...]


def cases(shape: loads.Shape, data: dict[str, Any]) -> list[Case]:
    """The five products of a gated layer, forward and backward, that have tiles of their own."""
    from moe_kernels import triton_gpu as kernels

    _, d, f, e, _ = shape
    dtype, act = data["x"].dtype.name, ACTIVATIONS["silu"]
    plan = jax.jit(moe_kernels.make_plan, static_argnums=1)(data["expert"], e)
    rows, offset = plan.token.size, plan.offset

    def grouped(x: Any, w: Any) -> Any:
        return moe_kernels.grouped_gemm(x, w, offset, backend="xla")

    def normal(seed: int, width: int) -> Any:
        return jax.random.normal(jax.random.key(seed), (rows, width), dtype)

    def glu(h_in: Any, h_gate: Any) -> Any:
        return act(h_gate.astype(jnp.float32)) * h_in.astype(jnp.float32)

    def up(x: Any, w_in: Any, w_gate: Any, *, tile: Any) -> Any:
        own = (w_in, w_gate, None, None)
        return kernels.KERNELS.up(
            x, plan.token, offset, *own, activation="silu", keep=True, tile=tile
        )

    def up_oracle(x: Any, w_in: Any, w_gate: Any) -> Any:
        h_in, h_gate = grouped(x[plan.token], w_in), grouped(x[plan.token], w_gate)
        return glu(h_in, h_gate), h_in, h_gate

    def down(a: Any, w_out: Any, *, tile: Any) -> Any:
        return (kernels.grouped_matmul(a, w_out, offset, tile=tile),)

    def dx(dh: Any, w_in: Any, w_gate: Any, *, tile: Any) -> Any:
        both = {"x2": dh, "w2": w_gate, "transposed": True}
        return (kernels.grouped_matmul(dh, w_in, offset, tile=tile, **both),)

    def dx_oracle(dh: Any, w_in: Any, w_gate: Any) -> Any:
        return (grouped(dh, w_in.swapaxes(1, 2)) + grouped(dh, w_gate.swapaxes(1, 2)),)

    def hidden(dy: Any, weight_s: Any, w_out: Any, h_in: Any, h_gate: Any, *, tile: Any) -> Any:
        own = (dy, plan.token, weight_s, offset, w_out, h_in, h_gate)
        return kernels.KERNELS.hidden_grad(*own, activation="silu", tile=tile)

    def hidden_oracle(dy: Any, weight_s: Any, w_out: Any, h_in: Any, h_gate: Any) -> Any:
        da = grouped(dy[plan.token], w_out.swapaxes(1, 2)).astype(jnp.float32)
        wide = (h_in.astype(jnp.float32), h_gate.astype(jnp.float32))
        a, pull = jax.vjp(glu, *wide)
        return (*pull(weight_s[:, None] * da), weight_s[:, None] * a, jnp.sum(da * a, axis=1))

    def grad(x: Any, dh: Any, *, tile: Any) -> Any:
        return (kernels.weight_grad(x, dh, offset, x_index=plan.token, tile=tile),)

    def grad_oracle(x: Any, dh: Any) -> Any:
        return jax.vjp(lambda w: grouped(x[plan.token], w), jnp.zeros((e, d, f), dtype))[1](dh)

    x, w_in, w_gate, w_out = (data[name] for name in ("x", "w_in", "w_gate", "w_out"))
    weight_s, h, g = data["weight"].reshape(-1)[plan.slot], normal(1, f), normal(2, f)
    back = "grouped_matmul_transposed"
    return [
        Case(("up_glu", rows, e, f, d, dtype), up, up_oracle, (x, w_in, w_gate)),
        Case(
            ("grouped_matmul", rows, e, d, f, dtype),
            down,
            lambda a, w_out: (grouped(a, w_out),),
            (h, w_out),
        ),
        Case((back, rows, e, d, f, dtype), dx, dx_oracle, (h, w_in, w_gate)),
        Case(
            ("hidden_grad", rows, e, f, d, dtype),
            hidden,
            hidden_oracle,
            (data["dy"], weight_s, w_out, h, g),
        ),
        Case(("weight_grad", rows, e, f, d, dtype), grad, grad_oracle, (x, h)),
    ]
