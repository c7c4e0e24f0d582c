"""The four kernels of `protocols` that are products, as calls of the compiled ones."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_kernels.activations import ACTIVATIONS
from moe_kernels.arguments import Experts
from moe_kernels.c_cpu.calls import call


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
    """`protocols.Up`: gather, both products and the activation in one pass."""
    own = Experts(w_in, jnp.zeros((0,)), w_gate, b_in, b_gate)
    _, a_sf, h_in_sf, h_gate_sf = _forward(x_td, token_s, offset, own, activation, keep, False)
    return a_sf, h_in_sf, h_gate_sf


def experts_forward(
    x_td: Float[Array, "t d"],
    token_s: Int[Array, " s"],
    offset: Int[Array, " boundaries"],
    experts: Experts,
    *,
    activation: str,
    keep: bool,
) -> tuple[Array, Array | None, Array | None]:
    """Up and down in one kernel: y_sd, and if `keep` the pre-activations h_in_sf and h_gate_sf.

    What is between them stays in the cache.
    """
    y_sd, _, h_in_sf, h_gate_sf = _forward(x_td, token_s, offset, experts, activation, keep, True)
    return y_sd, h_in_sf, h_gate_sf


def grouped_matmul(
    x: Float[Array, "rows n_in"],
    w: Float[Array, "e a b"],
    offset: Int[Array, " boundaries"],
    *,
    index: Int[Array, " s"] | None = None,
    bias: Float[Array, "e n_out"] | None = None,
    x2: Float[Array, "rows n_in"] | None = None,
    w2: Float[Array, "e a b"] | None = None,
    transposed: bool = False,
) -> Float[Array, "s n_out"]:
    """`protocols.GroupedMatmul`: gather, up to two products and the bias in one pass."""
    num_rows = x.shape[0] if index is None else index.size
    (y,) = call(
        "moe_grouped_matmul",
        (x, index, offset, w, bias, x2, w2),
        ((num_rows, w.shape[1 if transposed else 2]),),
        transposed=np.int32(transposed),
    )
    return y


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
    """`protocols.HiddenGrad`: gather, product and the activation's derivatives in one pass."""
    rows = (token_s.size, w_out.shape[1])
    dh_in_sf, dh_gate_sf, wa_sf, dweight_s = call(
        "moe_hidden_grad",
        (dy_td, token_s, weight_s, offset, w_out, h_in_sf, h_gate_sf),
        (rows, None if h_gate_sf is None else rows, rows, rows[:1]),
        # The gradients take the place of the pre-activations, which nothing needs any more.
        aliases={5: 0} if h_gate_sf is None else {5: 0, 6: 1},
        activation=_number(activation),
    )
    return dh_in_sf, None if h_gate_sf is None else dh_gate_sf, wa_sf, dweight_s


def weight_grad(
    x: Float[Array, "rows n_in"],
    dy: Float[Array, "dy_rows n_out"],
    offset: Int[Array, " boundaries"],
    *,
    x_index: Int[Array, " s"] | None = None,
    dy_index: Int[Array, " s"] | None = None,
) -> Float[Array, "e n_in n_out"]:
    """`protocols.WeightGrad`."""
    (dw,) = call(
        "moe_weight_grad",
        (x, x_index, dy, dy_index, offset),
        ((offset.size - 1, x.shape[1], dy.shape[1]),),
    )
    return dw


def _forward(
    x_td: Array,
    token_s: Array,
    offset: Array,
    experts: Experts,
    activation: str,
    keep: bool,
    whole: bool,
) -> tuple[Array, Array, Array | None, Array | None]:
    """y_sd if `whole`, a_sf if not (the other one is empty), and the pre-activations if `keep`."""
    hidden = (token_s.size, experts.w_in.shape[2])
    glu = experts.w_gate is not None
    y_sd, a_sf, h_in_sf, h_gate_sf = call(
        "moe_forward",
        (x_td, token_s, offset, experts.w_in, experts.w_gate, experts.b_in, experts.b_gate)
        + ((experts.w_out, experts.b_out) if whole else (None, None)),
        (
            (token_s.size, experts.w_out.shape[2]) if whole else None,
            None if whole else hidden,
            hidden if keep else None,
            hidden if keep and glu else None,
        ),
        activation=_number(activation),
    )
    return y_sd, a_sf, h_in_sf if keep else None, h_gate_sf if keep and glu else None


def _number(activation: str) -> np.int32:
    """The activation's place in ACTIVATIONS, by which activations.h knows it."""
    return np.int32(list(ACTIVATIONS).index(activation))
