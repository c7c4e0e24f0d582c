"""Problems for the benchmarks: named sets of shapes, and random data with uneven loads."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Shape(NamedTuple):
    """Sizes of one mixture-of-experts layer."""

    tokens: int
    d_model: int
    d_expert: int
    experts: int
    k: int


SETS = {
    "cpu": (
        Shape(2048, 512, 1024, 8, 2),
        Shape(2048, 512, 1024, 64, 2),
        Shape(4096, 512, 512, 64, 8),
        Shape(8192, 256, 512, 16, 1),
    ),
    "tiny": (Shape(64, 16, 32, 4, 2),),
}


def parse(text: str) -> tuple[Shape, ...]:
    """The shapes of a set by its name, or of "T,d,f,E,k" (several apart by ";").

    Raises:
      ValueError: text is neither.
    """
    if text in SETS:
        return SETS[text]
    try:
        return tuple(Shape(*map(int, one.split(","))) for one in text.split(";"))
    except (TypeError, ValueError):
        names = ", ".join(SETS)
        raise ValueError(f"{text!r} is neither one of {names} nor T,d,f,E,k numbers") from None


def routed(shape: Shape, seed: int, dtype: Any) -> dict[str, Any]:
    """Arguments of `moe_ffn` with a gate, and dy: normal values, experts of uneven popularity.

    Popularities are Dirichlet(3): with 64 experts the busiest gets about three times the mean.
    A token's k experts differ.
    """
    rng = np.random.default_rng(seed)
    t, d, f, e, k = shape
    popularity = np.log(rng.dirichlet(np.full(e, 3.0)))
    noisy = popularity + rng.gumbel(size=(t, e))

    def normal(*size: int) -> Any:
        return jnp.asarray(rng.standard_normal(size, np.float32), dtype)

    return {
        "x": normal(t, d),
        "expert": jnp.asarray(np.argsort(-noisy, axis=1)[:, :k], jnp.int32),
        "weight": jnp.asarray(rng.random((t, k), np.float32)),
        "w_in": normal(e, d, f) / d**0.5,
        "w_out": normal(e, f, d) / f**0.5,
        "w_gate": normal(e, d, f) / d**0.5,
        "dy": normal(t, d),
    }
