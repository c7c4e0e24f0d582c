"""Tensors in safetensors files: one file or shards, read by name and written."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (gives NumPy the bfloat16 that some files hold)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moe_jax.errors import UserError
from moe_jax.models.tokenizer import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensors(NamedTuple):
    """What a folder's files hold.

    Attributes:
      names: of all tensors.
      read: gives the tensor of a name.
    """

    names: tuple[str, ...]
    read: Callable[[str], np.ndarray]


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[Tensors]:
    """Opens a folder's safetensors; tensors are read from disk when they are asked for.

    Raises:
      UserError: files are missing, broken or pickles; one line that says which.
    """
    with contextlib.ExitStack() as stack:
        opened: dict[str, Any] = {}
        for file in weight_files(folder):
            try:
                handle = stack.enter_context(safe_open(file, framework="numpy"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} is not a whole safetensors file: {error}") from None
            opened |= dict.fromkeys(handle.keys(), handle)
        yield Tensors(tuple(opened), lambda name: opened[name].get_tensor(name))


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """model.safetensors, or the shards that model.safetensors.index.json lists."""
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UserError(f"{index} has no weight_map")
        files = [folder / str(name) for name in sorted(set(shards.values()))]
        for file in files:
            if file.parent != folder or not file.is_file():
                raise UserError(f"{file}, which {index.name} lists, is not in that folder")
        return files
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise UserError(
            f"{folder} has its weights only as {pickled[0]}, a pickle, which could run code when "
            "read; convert it to model.safetensors (save_pretrained in transformers does that)"
        )
    raise UserError(f"{whole} is missing")


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
