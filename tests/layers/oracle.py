"""MoE layers as loops over tokens and experts, in float64, and as dense sums."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax.gating import GateConfig, route
from moe_jax.layers import MoE

D, F, E, T = 6, 5, 4, 12
X = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)


def make(*, seed=0, d_expert=F, **kwargs):
    fields = kwargs.pop("gate", {})
    return MoE(D, d_expert, GateConfig(num_experts=E, **fields), rngs=nnx.Rngs(seed), **kwargs)


def array(x):
    return jnp.asarray(x)


def act(h, name):
    if name == "silu":
        return h / (1 + np.exp(-h))
    return np.maximum(h, 0)


def loop(moe, x, routing, put=None):
    """The layer in float64, token by token and choice by choice.

    put: what some experts give at some tokens instead of their output, {(t, e): [d]}.
    """
    w = {
        name: None if p is None else np.asarray(p[...], np.float64)
        for name, p in (("in", moe.w_in_edf), ("out", moe.w_out_efd), ("gate", moe.w_gate_edf))
    }
    y = np.zeros(x.shape, np.float64)
    for t in range(len(x)):
        for e, weight in zip(routing.expert[t], routing.weight[t], strict=True):
            if (t, int(e)) in (put or {}):
                y[t] += float(weight) * np.asarray(put[t, int(e)], np.float64)
            elif e < E:
                h = x[t].astype(np.float64) @ w["in"][e]
                if w["gate"] is None:
                    h = act(h, moe.activation)
                else:
                    h = act(x[t].astype(np.float64) @ w["gate"][e], moe.activation) * h
                y[t] += float(weight) * (h @ w["out"][e])
    return y


def dense(params, x, config, gone=()):
    """The layer as one sum over all experts, in plain JAX, to differentiate.

    gone: experts that give their row of params["stand_in"] instead.
    """
    routing = route(x @ params["router"], config)
    rows = jnp.arange(len(x))[:, None]
    weight = jnp.zeros((len(x), E)).at[rows, routing.expert].add(routing.weight, mode="drop")
    h = jax.nn.silu(jnp.einsum("td,edf->tef", x, params["gate"]))
    h = h * jnp.einsum("td,edf->tef", x, params["in"])
    y = jnp.einsum("tef,efd->ted", h, params["out"])
    if gone:
        y = y.at[:, np.array(gone)].set(params["stand_in"][None, np.array(gone)])
    return jnp.einsum("ted,te->td", y, weight)
