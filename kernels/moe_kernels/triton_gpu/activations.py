"""The activations and their slopes inside kernels; the names are those of `ACTIVATIONS`."""

import triton
import triton.language as tl


@triton.jit
def activate(h, ACTIVATION: tl.constexpr):
    """act(h), float32, any shape."""
    if ACTIVATION == "silu":
        return h * tl.sigmoid(h)
    elif ACTIVATION == "gelu":
        return 0.5 * h * (1 + tl.erf(h * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2 u)
        return h * tl.sigmoid(1.5957691216057308 * (h + 0.044715 * h * h * h))
    elif ACTIVATION == "relu":
        return tl.where(h > 0, h, 0.0)
    else:
        tl.static_assert(ACTIVATION == "relu2")
        return tl.where(h > 0, h * h, 0.0)


@triton.jit
def slope(h, ACTIVATION: tl.constexpr):
    """act'(h), float32, any shape."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(h)
        return s * (1 + h * (1 - s))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1 + tl.erf(h * 0.7071067811865476))
        return cdf + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
    elif ACTIVATION == "gelu_tanh":
        s = tl.sigmoid(1.5957691216057308 * (h + 0.044715 * h * h * h))
        return s + h * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * h * h)
    elif ACTIVATION == "relu":
        return tl.where(h > 0, 1.0, 0.0)
    else:
        tl.static_assert(ACTIVATION == "relu2")
        return tl.where(h > 0, 2 * h, 0.0)
