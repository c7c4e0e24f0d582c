"""One text at a time, without cache, batch or padding masks: what batched code is compared with.

Texts are filled up to one length, so that little is compiled: what comes later changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax.misrouting import interventions

_LENGTH = 64


@nnx.jit
def _forward(model, ids, edit):
    out = model(ids, edit=edit)
    return out.logits, out.routing.expert, out.routing.weight


def read(lm, ids, *, edit=None, where=None):
    """(log-probabilities of the next token [s v] in float64, experts [s l k], weights)."""
    layers, s = len(lm.config.expert_layers), len(ids)
    edit = interventions.identity(lm.config.experts.gate, layers) if edit is None else edit
    on = np.zeros(_LENGTH, bool)
    on[:s] = True if where is None else where
    edit = edit._replace(tokens=jnp.broadcast_to(on, (layers, _LENGTH)))
    filled = np.zeros(_LENGTH, np.int32)
    filled[:s] = ids
    logits, expert, weight = jax.device_get(_forward(lm.model, filled[None], edit))
    z = logits[0, :s].astype(np.float64)
    top = z.max(axis=1, keepdims=True)
    logp = z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    return logp, expert[0, :s], weight[0, :s]


def score(lm, context, tail, *, edit=None, where=None):
    """The log-probability of each of the tail's tokens; `where` covers context and tail."""
    ids = [*context, *tail]
    logp, _, _ = read(lm, ids, edit=edit, where=where)
    at = np.arange(len(context), len(ids))
    return logp[at - 1, np.asarray(tail, int)]


def greedy(lm, context, count, *, edit=None, where=None, later=False):
    """The likeliest tokens one after the other; `later`: does the edit act on new tokens?"""
    ids, mask = list(context), list(np.ones(len(context), bool) if where is None else where)
    for _ in range(count):
        logp, _, _ = read(lm, ids, edit=edit, where=np.asarray(mask))
        ids.append(int(logp[-1].argmax()))
        mask.append(later)
        if ids[-1] in lm.stop_ids:
            break
    return ids[len(context) :]
