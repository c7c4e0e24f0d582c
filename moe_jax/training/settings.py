"""JAX's settings that change what a run computes without a word; a run goes on under its own."""

from collections.abc import Mapping

import jax

from moe_jax.errors import UserError

NAMES = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
    "jax_default_matmul_precision",
)
"""Widths, random draws and the precision of matrix products."""


def current() -> dict[str, str]:
    """The settings of this process, as text."""
    return {name: str(getattr(jax.config, name)) for name in NAMES if hasattr(jax.config, name)}


def check(theirs: Mapping[str, str], where: str) -> None:
    """That a run which was begun under `theirs` goes on under the same.

    Args:
      theirs: from `current`; what isn't in it is not compared (older runs recorded nothing).
      where: the run, for the error.

    Raises:
      UserError: one differs; names both and how to set it.
    """
    for name, mine in current().items():
        was = theirs.get(name, mine)
        if was == mine:
            continue
        variable = name.upper()
        how = f"unset {variable}" if was == "None" else f"set {variable}={was}"
        raise UserError(
            f"{where} was begun with {name}={was}, this process has {mine}, which changes results: "
            f"{how} in the environment (or jax.config.update), or give another folder"
        )
