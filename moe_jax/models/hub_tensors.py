"""A model's parameters made of a Hugging Face model's tensors, and given back as these.

A parameter of ours is one tensor of theirs, transposed where it is a Linear's matrix (theirs are
[out, in]), or a stack of them, one of each expert.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from moe_jax.errors import UserError

Path = tuple[Any, ...]
Model = TypeVar("Model", bound=nnx.Module)


class Source(NamedTuple):
    """What a parameter is made of.

    Attributes:
      names: their tensors: one, or one of each expert.
      form: "as is", "matrix" (transposed) or "row" (theirs is [1, d]).
      stacked: the parameter has a leading axis of experts.
    """

    names: tuple[str, ...]
    form: str = "as is"
    stacked: bool = False


def check_names(wanted: set[str], found: set[str], where: str, *, ignored: Collection[str]) -> None:
    """Are all tensors there, and no others?

    Args:
      wanted: names that the model needs.
      found: names that there are.
      where: the folder, for messages.
      ignored: names that may be there or not.

    Raises:
      UserError: one is missing or unknown: which.
    """
    for what, which in (
        ("lacks tensors that its config calls for", wanted - found),
        ("has tensors that its config does not describe", found - wanted - set(ignored)),
    ):
        if which:
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            raise UserError(f"{where} {what}: {', '.join(sorted(which)[:3])}{more}")


def from_tensors(
    make: Callable[[], Model],
    table: Mapping[Path, Source],
    read: Callable[[str], np.ndarray],
    where: str,
    *,
    param_dtype: DTypeLike,
) -> Model:
    """The model that `make` gives, with the values of tensors.

    Args:
      make: called for its shapes alone.
      table: for each parameter, what it is made of.
      read: gives the tensor of a name.
      where: the folder, for messages.
      param_dtype: of the parameters; those of gates are float32 always.

    Raises:
      UserError: a tensor has another shape than the config says.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        full = bool(leaf.get_metadata().get("full_precision", False))
        dtype = jnp.dtype(jnp.float32 if full else param_dtype)
        value = _value(table[path], leaf.shape, read, where, dtype)
        leaves.append((path, leaf.replace(jnp.asarray(value))))
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def to_tensors(model: nnx.Module, table: Mapping[Path, Source]) -> Iterator[tuple[str, np.ndarray]]:
    """The model's parameters as their tensors, by name, one after the other."""
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        source, value = table[path], np.asarray(leaf[...])
        for name, part in zip(source.names, value if source.stacked else value[None], strict=True):
            yield name, _back(source.form, part)


def _value(
    source: Source,
    shape: tuple[int, ...],
    read: Callable[[str], np.ndarray],
    where: str,
    dtype: np.dtype,
) -> np.ndarray:
    """One parameter from its tensors, which are read one after the other."""
    theirs = _theirs(source.form, shape[1:] if source.stacked else shape)
    for i, name in enumerate(source.names):
        part = np.asarray(read(name))
        if part.shape != theirs:
            raise UserError(f"{where}: {name} has shape {part.shape}, its config asks for {theirs}")
        if i == 0:  # the config may ask for more than there is memory
            value = np.empty(shape, dtype)
            each = value if source.stacked else value[None]
        each[i] = _turned(source.form, part).astype(dtype)
    return value


def _theirs(form: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return {"matrix": shape[::-1], "row": (1, *shape), "as is": shape}[form]


def _turned(form: str, part: np.ndarray) -> np.ndarray:
    """Theirs as ours."""
    return {"matrix": part.T, "row": part.reshape(-1), "as is": part}[form]


def _back(form: str, part: np.ndarray) -> np.ndarray:
    """Ours as theirs."""
    return {"matrix": part.T, "row": part[None], "as is": part}[form]
