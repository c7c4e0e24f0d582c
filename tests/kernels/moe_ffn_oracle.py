"""An independent oracle: float64 NumPy, one token and one choice at a time, derivatives by hand."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activation(name: str, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """act(h) and act'(h)."""
    if name == "silu":
        s = 1 / (1 + np.exp(-h))
        return h * s, s + h * s * (1 - s)
    if name == "gelu":
        cdf = (1 + _erf(h / math.sqrt(2))) / 2
        return h * cdf, cdf + h * np.exp(-h * h / 2) / math.sqrt(2 * math.pi)
    if name == "gelu_tanh":
        c = math.sqrt(2 / math.pi)
        th = np.tanh(c * (h + 0.044715 * h**3))
        return h * (1 + th) / 2, (1 + th) / 2 + h / 2 * (1 - th**2) * c * (1 + 3 * 0.044715 * h**2)
    positive = np.maximum(h, 0)
    if name == "relu":
        return positive, (h > 0).astype(np.float64)
    if name == "relu2":
        return positive**2, 2 * positive
    raise KeyError(name)


def moe_ffn(name, x, expert, weight, params, dy):
    """Y and the gradients of <dy, y>: {"y", "x", "weight", and one entry for each parameter}."""
    x, weight, dy = (np.asarray(a, np.float64) for a in (x, weight, dy))
    p = {n: np.asarray(a, np.float64) for n, a in params.items()}
    num_experts, _, f = p["w_in"].shape
    d = x.shape[1]
    y, dx, dweight = np.zeros_like(x), np.zeros_like(x), np.zeros_like(weight)
    dp = {n: np.zeros_like(a) for n, a in p.items()}
    for t in range(x.shape[0]):
        for k in range(expert.shape[1]):
            e = int(expert[t, k])
            if not 0 <= e < num_experts:
                continue
            h_in = x[t] @ p["w_in"][e] + p.get("b_in", np.zeros((num_experts, f)))[e]
            if "w_gate" in p:
                h_gate = x[t] @ p["w_gate"][e] + p.get("b_gate", np.zeros((num_experts, f)))[e]
                act, slope = activation(name, h_gate)
                a = act * h_in
            else:
                a, slope = activation(name, h_in)
            out = a @ p["w_out"][e] + p.get("b_out", np.zeros((num_experts, d)))[e]
            y[t] += weight[t, k] * out

            dweight[t, k] = dy[t] @ out
            dout = weight[t, k] * dy[t]
            dp["w_out"][e] += np.outer(a, dout)
            da = p["w_out"][e] @ dout
            if "w_gate" in p:
                dh_in, dh_gate = da * act, da * h_in * slope
                dp["w_gate"][e] += np.outer(x[t], dh_gate)
                dx[t] += p["w_gate"][e] @ dh_gate
            else:
                dh_in, dh_gate = da * slope, None
            dp["w_in"][e] += np.outer(x[t], dh_in)
            dx[t] += p["w_in"][e] @ dh_in
            for bias, g in (("b_in", dh_in), ("b_gate", dh_gate), ("b_out", dout)):
                if bias in p:
                    dp[bias][e] += g
    return {"y": y, "x": dx, "weight": dweight, **dp}
