"""Up and hidden gradients: the products with the activation in their epilogue."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from moe_kernels.activations import ACTIVATIONS
from moe_kernels.pallas_tpu.grouped_matmul import tiled


def up(
    x_td: Float[Array, "t d"],
    token_s: Int[Array, " s"],
    offset: Int[Array, " boundaries"],
    w_in: Float[Array, "e d f"],
    w_gate: Float[Array, "e d f"] | None,
    b_in: Float[Array, "e f"] | None,
    b_gate: Float[Array, "e f"] | None,
    *,
    activation: str,
    keep: bool,
) -> tuple[Array, Array | None, Array | None]:
    """`protocols.Up`: rows are gathered by XLA, then one kernel."""
    glu, has_in, has_gate = w_gate is not None, b_in is not None, b_gate is not None

    def epilogue(products: Sequence[Array], biases: Sequence[Array], _: Any) -> list[Array]:
        h_in = products[0] + biases[0] if has_in else products[0]
        if not glu:
            a, kept = ACTIVATIONS[activation](h_in), [h_in]
        else:
            h_gate = products[1] + biases[-1] if has_gate else products[1]
            a, kept = ACTIVATIONS[activation](h_gate) * h_in, [h_in, h_gate]
        return [a, *(kept if keep else ())]

    x_sd = x_td[token_s]
    pairs = [(x_sd, w_in)] if w_gate is None else [(x_sd, w_in), (x_sd, w_gate)]
    biases = [b for b in (b_in, b_gate) if b is not None]
    dtypes = (x_td.dtype,) * (1 + keep * len(pairs))
    a, *h = tiled(epilogue, pairs, biases, (), offset, dtypes, transposed=False)
    return a, h[0] if keep else None, h[1] if keep and glu else None


def hidden_grad(
    dy_td: Float[Array, "t d"],
    token_s: Int[Array, " s"],
    weight_s: Float[Array, " s"],
    offset: Int[Array, " boundaries"],
    w_out: Float[Array, "e f d"],
    h_in_sf: Float[Array, "s f"],
    h_gate_sf: Float[Array, "s f"] | None,
    *,
    activation: str,
) -> tuple[Array, Array | None, Array, Array]:
    """`protocols.HiddenGrad`: rows are gathered by XLA, then one kernel."""
    f = w_out.shape[1]

    def hidden(h_in: Array, *h_gate: Array) -> Array:
        act = ACTIVATIONS[activation]
        return act(h_gate[0]) * h_in if h_gate else act(h_in)

    def epilogue(products: Sequence[Array], _: Any, blocks: Sequence[Array]) -> list[Array]:
        da, weight, *h = products[0], *blocks
        a, pull = jax.vjp(hidden, *h)
        # Columns past the last one, in the last tile, hold anything.
        column = lax.broadcasted_iota(jnp.int32, da.shape, 1) + pl.program_id(0) * da.shape[1]
        inner = jnp.where(column < f, da * a, 0)
        return [*pull(weight * da), weight * a, jnp.sum(inner, axis=1, keepdims=True)]

    gates = () if h_gate_sf is None else (h_gate_sf,)
    dtypes = (*(dy_td.dtype,) * (2 + len(gates)), jnp.float32)
    rows = (weight_s[:, None], h_in_sf, *gates)
    pairs = [(dy_td[token_s], w_out)]
    *dh, wa, parts = tiled(epilogue, pairs, (), rows, offset, dtypes, transposed=True, row_sum=True)
    own = jnp.arange(token_s.size) < offset[-1]
    dweight_s = jnp.where(own, jnp.sum(parts[:, :, 0], axis=0), 0)
    return dh[0], dh[1] if gates else None, wa, dweight_s
