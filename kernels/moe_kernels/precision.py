"""How exactly products multiply: the argument `precision`, as one of JAX's names for it."""

import jax
from jax import lax

NAMES = {
    lax.Precision.DEFAULT: "default",
    lax.Precision.HIGH: "high",
    lax.Precision.HIGHEST: "highest",
}


def resolve(precision: lax.Precision | str | None) -> str | None:
    """The name of a precision that `jax.default_matmul_precision` takes.

    Args:
      precision: a name, a member of `jax.lax.Precision`, or None: what
        `jax.default_matmul_precision` or `jax_default_matmul_precision` says where this is called.

    Raises:
      ValueError: JAX has no precision of that name.
    """
    if precision is None:
        return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if isinstance(precision, lax.Precision):
        return NAMES[precision]
    try:
        with jax.default_matmul_precision(precision):
            return precision
    except (TypeError, ValueError):
        raise ValueError(
            f"precision={precision!r} is no precision of matrix products: use 'default', 'high', "
            "'highest', a jax.lax.Precision, or another name that jax.default_matmul_precision has"
        ) from None
