"""The layer and its backward pass, composed of a backend's raw kernels (`protocols`).

Forward: up (gather, W_in, W_gate, activation), down (W_out), combine. Backward: hidden gradients
(gather of dy, W_out^T, activation), dW_out, rows of dx, dW_in and dW_gate, combine. The experts'
outputs are not kept: <dy, y_row> = <dy W_out^T, a>, which the hidden gradients have in hand
(SonicMoE, Guo et al. 2025). The table of these eight kernels is in the README.
"""

import jax.numpy as jnp
from jaxtyping import Array

from moe_kernels.arguments import Experts
from moe_kernels.plan import PADDING, Plan, below
from moe_kernels.protocols import Kernels


def forward(
    kernels: Kernels,
    x_td: Array,
    weight_tk: Array,
    experts: Experts,
    plan: Plan,
    *,
    activation: str,
    keep: bool,
) -> tuple[Array, Array | None, Array | None]:
    """y_td and, if `keep`, the pre-activations h_in_sf and h_gate_sf (else None)."""
    a_sf, h_in_sf, h_gate_sf = _up(kernels, x_td, experts, plan, activation, keep)
    y_sd = kernels.grouped_matmul(a_sf, experts.w_out, plan.offset, bias=experts.b_out)
    row_tk = plan.row.reshape(weight_tk.shape)
    return kernels.combine(y_sd, row_tk, plan.offset[-1], weight_tk), h_in_sf, h_gate_sf


def backward(
    kernels: Kernels,
    x_td: Array,
    weight_tk: Array,
    experts: Experts,
    plan: Plan,
    h_in_sf: Array | None,
    h_gate_sf: Array | None,
    dy_td: Array,
    *,
    activation: str,
) -> tuple[Array, Array, Experts]:
    """The gradients of x, weight and the parameters, each in its own dtype.

    Without h_in_sf the pre-activations are computed again.
    """
    if h_in_sf is None:
        _, h_in_sf, h_gate_sf = _up(kernels, x_td, experts, plan, activation, True)
        assert h_in_sf is not None
    token, offset = padded(plan.token), plan.offset
    weight_s = padded(weight_tk.reshape(-1)[plan.slot])
    dh_in, dh_gate, wa_sf, dweight_s = kernels.hidden_grad(
        dy_td, token, weight_s, offset, experts.w_out, h_in_sf, h_gate_sf, activation=activation
    )
    dx_sd = kernels.grouped_matmul(
        dh_in, experts.w_in, offset, x2=dh_gate, w2=experts.w_gate, transposed=True
    )
    row_tk = plan.row.reshape(weight_tk.shape)
    dx_td = kernels.combine(dx_sd, row_tk, offset[-1], None)
    dweight_tk = dweight_s[row_tk]
    if experts.b_out is not None:
        dweight_tk += _bias_part(dy_td, experts.b_out, plan, row_tk)
    # Selected after the sum, so that what a dropped choice's row holds stays out of it.
    dweight_tk = jnp.where(row_tk < offset[-1], dweight_tk, 0).astype(weight_tk.dtype)

    def from_x(dh: Array) -> Array:
        return kernels.weight_grad(x_td, dh, offset, x_index=token)

    dexperts = Experts(
        w_in=from_x(dh_in),
        w_out=kernels.weight_grad(wa_sf, dy_td, offset, dy_index=token),
        w_gate=None if dh_gate is None else from_x(dh_gate),
        b_in=None if experts.b_in is None else kernels.segment_pool(dh_in, offset),
        b_gate=None
        if experts.b_gate is None or dh_gate is None
        else kernels.segment_pool(dh_gate, offset),
        b_out=None
        if experts.b_out is None
        else kernels.segment_pool(dy_td, offset, index=token, weight_s=weight_s),
    )
    return dx_td, dweight_tk, dexperts


def _up(
    kernels: Kernels, x_td: Array, experts: Experts, plan: Plan, activation: str, keep: bool
) -> tuple[Array, Array | None, Array | None]:
    own = (experts.w_in, experts.w_gate, experts.b_in, experts.b_gate)
    return kernels.up(x_td, padded(plan.token), plan.offset, *own, activation=activation, keep=keep)


def padded(values_s: Array) -> Array:
    """Padded with PADDING unused rows: all backends keep arrays of the same shape."""
    return jnp.pad(values_s, (0, PADDING))


def _bias_part(dy_td: Array, b_out: Array, plan: Plan, row_tk: Array) -> Array:
    """<dy_t, b_out[expert of (t, k)]>, float32, by products with all biases."""
    by_expert_te = jnp.matmul(
        dy_td, b_out.T, precision="highest", preferred_element_type=jnp.float32
    )
    expert_tk = below(plan.offset, row_tk + 1) - 1
    expert_tk = jnp.minimum(expert_tk, b_out.shape[0] - 1)
    return jnp.take_along_axis(by_expert_te, expert_tk, axis=1)
