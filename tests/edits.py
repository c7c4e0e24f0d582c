"""Edits put together for tests."""

import jax.numpy as jnp

from moe_jax.gating import RoutingEdit
from moe_jax.gating.edit import WITHOUT_TOKENS


def side_by_side(*edits):
    """[l 1 ...] of each prompt -> [l n ...]; what has no axis of tokens is that of the first."""
    leaves = {
        name: a[0] if name in WITHOUT_TOKENS else jnp.concatenate(a, 1)
        for name, *a in zip(RoutingEdit._fields, *edits, strict=True)
    }
    return RoutingEdit(**leaves)
