"""Reads a model folder's tokenizer with the `tokenizers` library alone, so that it starts fast."""

import json
import pathlib
from typing import Any

from tokenizers import (
    Encoding,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from moe_jax.errors import UserError
from moe_jax.models.config_fields import same, shown


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    A byte order mark before it is skipped; a key that is there twice must have equal values.

    Raises:
      UserError: there is no such file, or it doesn't hold a JSON object.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a Hugging Face model folder has one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{file} can't be read as JSON: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} should hold a JSON object, not a {type(value).__name__}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and not same(found[key], value):
            raise ValueError(f"the key {shown(key)} is there twice, with different values")
        found[key] = value
    return found


def read_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """Reads tokenizer.json, or builds the tokenizer from vocab.txt or vocab.json + merges.txt.

    Args:
      folder: the model's folder.

    Returns:
      A tokenizer that neither truncates nor pads, whatever its file says.

    Raises:
      UserError: none of these files is there, or one can't be read.
    """
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        elif (file := folder / "vocab.txt").is_file():
            tokenizer = _wordpiece(folder)
        elif (file := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = _byte_level(folder)
        else:
            raise UserError(
                f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt nor "
                "vocab.json with merges.txt"
            )
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{file} can't be read as a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_text(
    tokenizer: Tokenizer, text: str, name: str, *, add_special_tokens: bool = True
) -> Encoding:
    """The tokens of a text that a user gave.

    A vocabulary without a token for the unknown can't take every text, and the library doesn't say
    where.

    Args:
      tokenizer: the model's.
      text: the text.
      name: what the text is, for the error.
      add_special_tokens: those that the tokenizer sets around a text too.

    Raises:
      UserError: the tokenizer can't take it: the first character that it can't take alone.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except Exception as error:  # the library raises bare Exceptions
        if len(text) == 1:
            raise UserError(f"{name}: the model's tokenizer has no token for {text!r}") from None
        for place, character in enumerate(text, start=1):
            # Fails at the first character that it can't take, and says where that stands.
            encode_text(tokenizer, character, f"{name}, character {place}")
        raise UserError(f"{name}: the model's tokenizer can't take it: {error}") from None


def special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer sets before and after a text."""
    encoded = tokenizer.encode("a")
    inner = [i for i, special in enumerate(encoded.special_tokens_mask) if not special]
    if not inner:
        raise UserError("the tokenizer gives no token for the text 'a'")
    return encoded.ids[: inner[0]], encoded.ids[inner[-1] + 1 :]


def _options(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def _wordpiece(folder: pathlib.Path) -> Tokenizer:
    """BERT's tokenizer from its vocabulary, one token a line."""
    options = _options(folder)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocab = {line.rstrip("\r"): index for index, line in enumerate(lines) if line}
    special = {name: f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),
        lowercase=options.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in special.values() if token in vocab])
    tokenizer.post_processor = processors.BertProcessing(
        (special["sep"], vocab[special["sep"]]), (special["cls"], vocab[special["cls"]])
    )
    return tokenizer


def _byte_level(folder: pathlib.Path) -> Tokenizer:
    """RoBERTa's tokenizer from its vocabulary and merges."""
    space = _options(folder).get("add_prefix_space", False)
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    vocab = tokenizer.get_vocab()
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    tokenizer.add_special_tokens([token for token in special if token in vocab])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]),
        ("<s>", vocab["<s>"]),
        trim_offsets=True,
        add_prefix_space=space,
    )
    return tokenizer
