"""Loads Switch Transformers from Hugging Face folders, and saves them as such.

Nothing is downloaded, nothing is unpickled, and neither torch nor transformers is imported.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from moe_jax.common.files import local_path, new_folder
from moe_jax.errors import UserError
from moe_jax.models import switch_weights
from moe_jax.models.quantised import dequantised
from moe_jax.models.switch import SwitchTransformer
from moe_jax.models.switch_config import (
    SwitchConfig,
    read_switch_config,
    write_ids,
    write_switch_config,
)
from moe_jax.models.tensor_files import open_tensors, write_tensors
from moe_jax.models.tokenizer import check_size, has_tokenizer, read_json, read_tokenizer


class PretrainedSwitch(NamedTuple):
    """A Switch Transformer with its tokenizer.

    Attributes:
      model: the model, in eval mode.
      tokenizer: a `tokenizers.Tokenizer` that neither truncates nor pads; None if the folder has
        no file of one.
      config: the model's shape.
      name: what it was loaded as.
    """

    model: SwitchTransformer
    tokenizer: Tokenizer | None
    config: SwitchConfig
    name: str


def load_switch(
    folder: str | pathlib.Path, *, dtype: str | None = None, param_dtype: str | None = None
) -> PretrainedSwitch:
    """Loads a Switch Transformer and its tokenizer from local files.

    Args:
      folder: with config.json, *.safetensors (one file or shards with their index) and, if there
        is one, tokenizer.json.
      dtype: what the layers compute in; None: float32 on CPU, bfloat16 elsewhere.
      param_dtype: what the parameters are held in (gates' are float32 always); None: as `dtype`.

    Raises:
      UserError: a file is missing, broken or not of a covered kind; one line that says which.
    """
    name, folder = str(folder), local_path(folder, "model")
    if not folder.is_dir():
        raise UserError(
            f"model {name!r} is not a folder with config.json and *.safetensors (tokenizer.json)"
        )
    extra = folder / "generation_config.json"
    raw = read_json(folder / "config.json")
    config = read_switch_config(
        raw,
        str(folder / "config.json"),
        generation=read_json(extra) if extra.is_file() else None,
    )
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config.dtype = dtype
    config.validate()
    tokenizer = None
    if has_tokenizer(folder):
        tokenizer = read_tokenizer(folder)
        check_size(tokenizer, config.vocab_size, str(folder))
    found = dequantised(open_tensors(folder), raw, str(folder))
    model = switch_weights.build(
        config,
        found.shapes,
        found.read,
        str(folder),
        param_dtype=jnp.dtype(param_dtype or dtype),
    )
    model.eval()
    return PretrainedSwitch(model, tokenizer, config, name)


def save_switch(
    model: SwitchTransformer,
    folder: str | pathlib.Path,
    *,
    tokenizer: Tokenizer | None = None,
    max_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model as a Hugging Face folder that `load_switch` and transformers read.

    Args:
      model: its gate must be Switch's.
      folder: new or empty; it is there whole or not at all.
      tokenizer: written as tokenizer.json.
      max_bytes: of one file of weights; more become shards.

    Raises:
      UserError: the folder holds something or can't be written, or transformers has no such model.
    """
    folder = local_path(folder, "folder")
    files = {
        "config.json": write_switch_config(model.config),
        "generation_config.json": write_ids(model.config),
    }
    with new_folder(folder) as part:
        write_tensors(part, switch_weights.tensors(model), max_bytes=max_bytes)
        for name, value in files.items():
            (part / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(str(part / "tokenizer.json"))
