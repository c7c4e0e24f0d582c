"""The fingerprint of weights: the same for the same values, another for any other."""

import hashlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe_jax.models import weights_digest


class Two(nnx.Module):
    def __init__(self, a, b):
        self.b, self.a = nnx.Param(jnp.asarray(b)), nnx.Param(jnp.asarray(a))
        self.count = nnx.Variable(jnp.zeros(3))


A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)


def test_by_hand():
    text = (
        b"['a'] float32 (2, 3)\n"
        + A.astype("<f4").tobytes()
        + b"['b'] float32 (2,)\n"
        + B.astype("<f4").tobytes()
    )
    assert weights_digest(Two(A, B)) == hashlib.sha256(text).hexdigest()


def test_only_parameters_count():
    other = Two(A, B)
    other.count[...] = jnp.ones(3)
    assert weights_digest(other) == weights_digest(Two(A, B))


def test_any_other_value_shape_or_dtype_gives_another():
    last_bit = A.copy()
    last_bit[1, 2] = np.nextafter(last_bit[1, 2], 9)
    models = [
        Two(A, B),
        Two(last_bit, B),
        Two(A.reshape(3, 2), B),
        Two(A, B.astype(np.float16)),
        Two(A.astype(jnp.bfloat16), B),
        Two(B, A),
    ]
    assert len({weights_digest(model) for model in models}) == len(models)
