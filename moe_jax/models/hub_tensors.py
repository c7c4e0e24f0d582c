"""A model's parameters made of a Hugging Face model's tensors, and given back as these.

A parameter of ours is one tensor of theirs, transposed where it is a Linear's matrix (theirs are
[out, in]), or a stack of them, one of each expert.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from moe_jax.errors import UserError
from moe_jax.models.shapes import shapes_of
from moe_jax.models.tensor_files import FileTensors, Index, Tensors

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


class Place(NamedTuple):
    """Where a tensor of a model stands in its files.

    Attributes:
      name: there.
      part: which part of that one it is.
    """

    name: str
    part: Index = ()


def placed(found: FileTensors, places: Iterable[tuple[str, Place]], where: str) -> Tensors:
    """The tensors of a model by its own names for them.

    Args:
      found: what the files hold.
      places: names and where they stand; a name may come more than once.
      where: the folder, for messages.

    Raises:
      UserError: a name stands for two tensors that aren't equal.
    """
    table: dict[str, Place] = {}
    for name, place in places:
        first = table.setdefault(name, place)
        if first != place and not equal(found.read(*first), found.read(*place)):
            raise UserError(
                f"{where} has {name} twice, as {first.name} and as {place.name}, which differ"
            )
    return Tensors(tuple(table), lambda name: found.read(*table[name]))


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tensors have one shape and the same values, whatever their dtypes."""
    if one.shape != other.shape:
        return False
    one, other, rows = np.atleast_1d(one), np.atleast_1d(other), 4096
    return all(
        np.array_equal(one[i : i + rows].astype(np.float64), other[i : i + rows].astype(np.float64))
        for i in range(0, len(one), rows)
    )


def check_count(count: int, what: str, found: Collection[str], where: str) -> None:
    """Refuses a config that asks for more layers or experts than there are tensors.

    Names of tensors are made of these numbers, and must not be made without end.
    """
    if count > len(found):
        raise UserError(f"{where} has {len(found)} tensors, too few for {count} {what}")


def finite(value: np.ndarray, name: str, where: str) -> np.ndarray:
    """The values, if all are numbers.

    Raises:
      UserError: one isn't.
    """
    if not np.isfinite(value).all():
        raise UserError(f"{where}: {name} has values that are not finite as {value.dtype}")
    return value


def check_names(
    wanted: set[str],
    found: set[str],
    where: str,
    *,
    ignored: Collection[str] = (),
    says: tuple[str, str] = ("config calls for", "config does not describe"),
) -> None:
    """Are all tensors there, and no others?

    Args:
      wanted: names that the model needs.
      found: names that there are.
      where: the folder, for messages.
      ignored: names that may be there or not.
      says: what asks for the tensors, for messages.

    Raises:
      UserError: one is missing or unknown: which.
    """
    wrong = []
    for what, which in (
        (f"lacks tensors that its {says[0]}", wanted - found),
        (f"has tensors that its {says[1]}", found - wanted - set(ignored)),
    ):
        if which:
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            wrong.append(f"{what}: {', '.join(sorted(which)[:3])}{more}")
    if wrong:
        raise UserError(f"{where} {'; and '.join(wrong)}")


def from_tensors(
    make: Callable[[nnx.Rngs], Model],
    table: Mapping[Path, Source],
    read: Callable[[str], np.ndarray],
    where: str,
    *,
    param_dtype: DTypeLike,
) -> Model:
    """The model that `make` gives, with the values of tensors.

    Args:
      make: called for its shapes alone (`shapes_of`).
      table: for each parameter, what it is made of.
      read: gives the tensor of a name.
      where: the folder, for messages.
      param_dtype: of the parameters; those of gates are float32 always.

    Raises:
      UserError: a tensor has another shape than the config says.
    """
    graphdef, state = nnx.split(shapes_of(make))
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
    value, each = None, np.empty(0)
    for i, name in enumerate(source.names):
        part = np.asarray(read(name))
        if part.shape != theirs:
            raise UserError(f"{where}: {name} has shape {part.shape}, its config asks for {theirs}")
        if value is None:  # not before a tensor was as large as the config says
            value = np.empty(shape, dtype)
            each = value if source.stacked else value[None]
        with np.errstate(over="ignore"):
            each[i] = finite(_turned(source.form, part).astype(dtype), name, where)
    assert value is not None
    return value


def _theirs(form: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return {"matrix": shape[::-1], "row": (1, *shape), "as is": shape}[form]


def _turned(form: str, part: np.ndarray) -> np.ndarray:
    """Theirs as ours."""
    return {"matrix": part.T, "row": part.reshape(-1), "as is": part}[form]


def _back(form: str, part: np.ndarray) -> np.ndarray:
    """Ours as theirs."""
    return {"matrix": part.T, "row": part[None], "as is": part}[form]
