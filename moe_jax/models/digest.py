"""A fingerprint of a model's weights."""

import hashlib

import jax
import numpy as np
from flax import nnx


def weights_digest(model: nnx.Module) -> str:
    """SHA-256 over the parameters in order of their paths: path, dtype, shape and bytes of each.

    The same on every machine for the same values and dtypes. One parameter at a time is copied to
    the host.

    Args:
      model: any module.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for path, leaf in sorted(leaves, key=lambda pair: jax.tree_util.keystr(pair[0])):
        value = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
