"""Tensors in safetensors files: one file or shards, read by name and written."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moe_jax.errors import UserError
from moe_jax.models.tokenizer import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What can be a weight; whole numbers are somebody's quantisation.
FLOATS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
INSTEAD = (
    "load the publisher's unquantised files, or dequantise them in transformers "
    "(model.dequantize()) and save that"
)

Index = tuple[int | slice, ...]


class Read(Protocol):
    """Gives a tensor, or the part of it that an index of its first axes picks."""

    def __call__(self, name: str, index: Index = ()) -> np.ndarray:
        """The tensor of that name, or the part."""


class Tensors(NamedTuple):
    """Tensors by the names that a model has for them.

    Attributes:
      names: of all tensors.
      read: gives the tensor of a name.
    """

    names: tuple[str, ...]
    read: Callable[[str], np.ndarray]


class FileTensors(NamedTuple):
    """What a folder's files hold.

    Attributes:
      shapes: of all tensors, by name.
      kinds: their dtypes as safetensors calls them.
      read: gives a tensor or a part of it, as it stands in the file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    read: Read


class _Entry(NamedTuple):
    """Where a tensor stands."""

    file: pathlib.Path
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


def open_tensors(folder: pathlib.Path) -> FileTensors:
    """A folder's safetensors, which are read from disk when they are asked for.

    Raises:
      UserError: files are missing, broken, pickles or do not agree; one line that says which.
    """
    entries: dict[str, _Entry] = {}
    files = weight_files(folder)
    for file in files:
        for name, entry in _entries(file).items():
            if name in entries:
                other = entries[name].file.name
                raise UserError(f"{folder} has {name} twice: in {other} and in {file.name}")
            entries[name] = entry
    for name, listed in _weight_map(folder).items():
        found = entries[name].file if name in entries else None
        if listed in files and found != listed:
            where = f"in {found.name}" if found else "in no file"
            raise UserError(f"{folder / INDEX}: {name:.100} is {where}, not in {listed.name}")

    def read(name: str, index: Index = ()) -> np.ndarray:
        entry = entries[name]
        if entry.kind not in FLOATS:
            raise UserError(
                f"{entry.file}: {name} is of dtype {entry.kind}, not a weight's but part of "
                f"quantised ones: {INSTEAD}"
            )
        return np.asarray(entry.data.view(FLOATS[entry.kind]).reshape(entry.shape)[index])

    return FileTensors(
        {name: entry.shape for name, entry in entries.items()},
        {name: entry.kind for name, entry in entries.items()},
        read,
    )


def check_name(name: str, file: pathlib.Path) -> None:
    """Refuses names of tensors that no line of text can hold."""
    if len(name) > 500 or not name.isprintable():
        raise UserError(f"{file}: {name!r:.60} is no name for a tensor")


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """model.safetensors, or the shards that model.safetensors.index.json lists.

    Raises:
      UserError: there are none, or both a whole file and other shards.
    """
    whole, shards = folder / WHOLE, sorted(set(_weight_map(folder).values()))
    if os.path.isfile(whole):
        # A list that outlived its shards says nothing.
        others = [file.name for file in shards if file != whole and os.path.isfile(file)]
        if others:
            raise UserError(
                f"{folder} has its weights twice: {WHOLE}, and shards that {INDEX} lists "
                f"({others[0]}); delete those that are not meant"
            )
        return [whole]
    for file in shards:
        if not os.path.isfile(file):
            raise UserError(f"{file!s:.300}, which {INDEX} lists, is not in that folder")
    if shards:
        return shards
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise UserError(
            f"{folder} has its weights only as {pickled[0]}, a pickle, which could run code when "
            "read; convert it to model.safetensors (save_pretrained in transformers does that)"
        )
    raise UserError(f"{whole} is missing")


def _weight_map(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of each tensor as model.safetensors.index.json has it; empty without one."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    titles = read_json(index).get("weight_map")
    if not isinstance(titles, dict) or not titles:
        raise UserError(f"{index} has no weight_map")
    for name, title in titles.items():
        check_name(name, index)
        if not isinstance(title, str):
            raise UserError(f"{index}: weight_map.{name:.100}={title!r:.60} must be a file's name")
        if title == ".." or (folder / title).parent != folder or not title.isprintable():
            raise UserError(f"{title!r:.100}, which {index} lists, is not in that folder")
    return {name: folder / title for name, title in titles.items()}


def _entries(file: pathlib.Path) -> dict[str, _Entry]:
    """The tensors of one file, once safetensors' own reader has found it whole."""
    try:
        with safe_open(file, framework="numpy"):
            pass
        data = np.asarray(np.memmap(file, np.uint8, mode="r"))
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes())
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        text = str(error).splitlines()[0]
        raise UserError(f"{file} is not a whole safetensors file: {text:.200}") from None
    entries = {}
    for name, info in header.items():
        if name != "__metadata__":
            check_name(name, file)
            first, last = (start + offset for offset in info["data_offsets"])
            entries[name] = _Entry(file, info["dtype"], tuple(info["shape"]), data[first:last])
    return entries


def write_tensors(
    folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], *, max_bytes: int
) -> None:
    """Writes tensors as model.safetensors, or as shards with their index if they are too many.

    Args:
      folder: exists.
      tensors: by name, in order; taken one after the other, so that they may be made on the way.
      max_bytes: of one file (a larger tensor has a file of its own).
    """
    shards: list[dict[str, int]] = []
    names: dict[str, int] = {}
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        part = folder / f"part-{len(shards)}.safetensors"
        save_file(held, part, metadata={"format": "pt"})
        shards.append({name: value.nbytes for name, value in held.items()})
        names.update(dict.fromkeys(held, len(shards)))
        held.clear()

    for name, value in tensors:
        if held and sum(x.nbytes for x in held.values()) + value.nbytes > max_bytes:
            flush()
        held[name] = np.ascontiguousarray(value)
    flush()
    if len(shards) == 1:
        (folder / "part-0.safetensors").replace(folder / WHOLE)
        return
    titles = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, title in enumerate(titles):
        (folder / f"part-{i}.safetensors").replace(folder / title)
    total = sum(sum(shard.values()) for shard in shards)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: titles[i - 1] for name, i in names.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
