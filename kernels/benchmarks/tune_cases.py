"""The products that are tuned, on the data of one layer, each with an oracle of another backend."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import loads
import moe_kernels
from moe_kernels.activations import ACTIVATIONS
from moe_kernels.plan import PADDING


class Case(NamedTuple):
    """One kernel of `triton_gpu` with its arguments.

    `problem` is what `tuned.key` takes; `kernel(*args, tile=tile)` and `oracle(*args)` give arrays
    in the same order, the oracle's by the backend "xla". Of arrays with as many rows as the problem
    only the first `own` count: the kernels leave the others as they are.
    """

    problem: tuple[str, int, int, int, int, str]
    kernel: Callable[..., Any]
    oracle: Callable[..., Any]
    args: tuple[Any, ...]
    own: int


def cases(shape: loads.Shape, data: dict[str, Any]) -> list[Case]:
    """The six products of a gated layer, forward and backward, that have tiles of their own."""
    from moe_kernels import triton_gpu as kernels

    _, d, f, e, _ = shape
    dtype, act = data["x"].dtype.name, ACTIVATIONS["silu"]
    plan = jax.jit(moe_kernels.make_plan, static_argnums=1)(data["expert"], e)
    # As many rows as the layer gives its kernels: the last PADDING belong to nobody.
    token, offset = jnp.pad(plan.token, (0, PADDING)), plan.offset
    rows, own = token.size, plan.token.size

    def grouped(x: Any, w: Any) -> Any:
        return moe_kernels.grouped_gemm(x, w, offset, backend="xla")

    def normal(seed: int, width: int) -> Any:
        return jax.random.normal(jax.random.key(seed), (rows, width), dtype)

    def glu(h_in: Any, h_gate: Any) -> Any:
        return act(h_gate.astype(jnp.float32)) * h_in.astype(jnp.float32)

    def up(x: Any, w_in: Any, w_gate: Any, *, tile: Any) -> Any:
        experts = (w_in, w_gate, None, None)
        return kernels.KERNELS.up(
            x, token, offset, *experts, activation="silu", keep=True, tile=tile
        )

    def up_oracle(x: Any, w_in: Any, w_gate: Any) -> Any:
        h_in, h_gate = grouped(x[token], w_in), grouped(x[token], w_gate)
        return glu(h_in, h_gate), h_in, h_gate

    def down(a: Any, w_out: Any, *, tile: Any) -> Any:
        return (kernels.grouped_matmul(a, w_out, offset, tile=tile),)

    def down_oracle(a: Any, w_out: Any) -> Any:
        return (grouped(a, w_out),)

    def dx(dh: Any, w_in: Any, w_gate: Any, *, tile: Any) -> Any:
        both = {"x2": dh, "w2": w_gate, "transposed": True}
        return (kernels.grouped_matmul(dh, w_in, offset, tile=tile, **both),)

    def dx_oracle(dh: Any, w_in: Any, w_gate: Any) -> Any:
        return (grouped(dh, w_in.swapaxes(1, 2)) + grouped(dh, w_gate.swapaxes(1, 2)),)

    def hidden(dy: Any, weight_s: Any, w_out: Any, h_in: Any, h_gate: Any, *, tile: Any) -> Any:
        args = (dy, token, weight_s, offset, w_out, h_in, h_gate)
        return kernels.KERNELS.hidden_grad(*args, activation="silu", tile=tile)

    def hidden_oracle(dy: Any, weight_s: Any, w_out: Any, h_in: Any, h_gate: Any) -> Any:
        da = grouped(dy[token], w_out.swapaxes(1, 2)).astype(jnp.float32)
        wide = (h_in.astype(jnp.float32), h_gate.astype(jnp.float32))
        a, pull = jax.vjp(glu, *wide)
        return (*pull(weight_s[:, None] * da), weight_s[:, None] * a, jnp.sum(da * a, axis=1))

    def out_grad(a: Any, dy: Any, *, tile: Any) -> Any:
        return (kernels.weight_grad(a, dy, offset, dy_index=token, tile=tile),)

    def out_grad_oracle(a: Any, dy: Any) -> Any:
        return jax.vjp(lambda w: grouped(a, w), jnp.zeros((e, f, d), dtype))[1](dy[token])

    def grad(x: Any, dh: Any, *, tile: Any) -> Any:
        return (kernels.weight_grad(x, dh, offset, x_index=token, tile=tile),)

    def grad_oracle(x: Any, dh: Any) -> Any:
        return jax.vjp(lambda w: grouped(x[token], w), jnp.zeros((e, d, f), dtype))[1](dh)

    x, w_in, w_gate, w_out = (data[name] for name in ("x", "w_in", "w_gate", "w_out"))
    weight_s = jnp.pad(data["weight"].reshape(-1)[plan.slot], (0, PADDING))
    h, g, dy = normal(1, f), normal(2, f), data["dy"]
    back = "grouped_matmul_transposed"
    return [
        Case(problem, kernel, oracle, args, own)
        for problem, kernel, oracle, args in (
            (("up_glu", rows, e, f, d, dtype), up, up_oracle, (x, w_in, w_gate)),
            (("grouped_matmul", rows, e, d, f, dtype), down, down_oracle, (h, w_out)),
            ((back, rows, e, d, f, dtype), dx, dx_oracle, (h, w_in, w_gate)),
            (
                ("hidden_grad", rows, e, f, d, dtype),
                hidden,
                hidden_oracle,
                (dy, weight_s, w_out, h, g),
            ),
            (("weight_grad", rows, e, f, d, dtype), grad, grad_oracle, (x, h)),
            (("weight_grad", rows, e, d, f, dtype), out_grad, out_grad_oracle, (h, dy)),
        )
    ]
