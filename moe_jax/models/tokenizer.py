"""Reads a model folder's tokenizer.

tokenizer.json is read with the `tokenizers` library alone, so that it starts fast; tokenizers in
other files through transformers.
"""

import json
import pathlib
from typing import Any

from tokenizers import Encoding, Tokenizer, normalizers

from moe_jax.common.files import half_pair, read_object
from moe_jax.errors import UserError
from moe_jax.models import added_tokens, hub_tokenizer
from moe_jax.models.added_tokens import AddedTokens

# Fields of tokenizer_config.json -> of the normalizer.
_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_UNSET = ("strip_accents", None)


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file of a model's folder holds.

    Raises:
      UserError: there is no such file, or it doesn't hold a JSON object.
    """
    return read_object(file, missing=f"{file} is missing; a Hugging Face model folder has one")


def read_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """Reads tokenizer.json, or what transformers' AutoTokenizer makes of other files.

    Special tokens that only other files know (tokenizer_config.json, added_tokens.json,
    special_tokens_map.json) are added as transformers adds them.

    Args:
      folder: the model's folder.

    Returns:
      A tokenizer that neither truncates nor pads, whatever its file says.

    Raises:
      UserError: no file of a tokenizer is there, or one can't be read; two files disagree; a
        tokenizer without tokenizer.json, and transformers isn't installed.
    """
    file = folder / "tokenizer.json"
    added = read_added(folder)
    if file.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{file} can't be read as a tokenizer: {error}") from None
        _check_own(tokenizer, file)
        added_tokens.add_tokens(tokenizer, added, str(folder))
        _set_options(tokenizer, folder)
    else:
        tokenizer = hub_tokenizer.read(folder)
        added_tokens.check_ids(tokenizer, added)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def has_tokenizer(folder: pathlib.Path) -> bool:
    """Is there a file of a tokenizer?"""
    return (folder / "tokenizer.json").is_file() or bool(hub_tokenizer.files(folder))


def read_added(folder: pathlib.Path) -> AddedTokens:
    """The tokens that files beside tokenizer.json list and name.

    Raises:
      UserError: a file can't be read.
    """
    names = (added_tokens.CONFIG, added_tokens.NAMES, added_tokens.IDS)
    config, named, ids = (
        read_json(folder / name) if (folder / name).is_file() else {} for name in names
    )
    return added_tokens.read_added_tokens(config, named, ids, str(folder))


def encode_text(
    tokenizer: Tokenizer, text: str, name: str, *, add_special_tokens: bool = True
) -> Encoding:
    """The tokens of a text that a user gave.

    A vocabulary without a token for the unknown can't take every text, and no tokenizer takes half
    of a surrogate pair; the library doesn't say where.

    Args:
      tokenizer: the model's.
      text: the text.
      name: what the text is, for the error.
      add_special_tokens: those that the tokenizer sets around a text too.

    Raises:
      UserError: the tokenizer can't take it: the first character that it can't take alone.
    """
    check_text(text, name)
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except Exception as error:  # the library raises bare Exceptions
        if len(text) == 1:
            raise UserError(f"{name}: the model's tokenizer has no token for {text!r}") from None
        for place, character in enumerate(text, start=1):
            # Fails at the first character that it can't take, and says where that stands.
            encode_text(tokenizer, character, f"{name}, character {place}")
        raise UserError(f"{name}: the model's tokenizer can't take it: {error}") from None


def check_text(text: str, name: str) -> None:
    """Is it whole? Python's texts can hold half of a pair of UTF-16, which stands for nothing.

    Raises:
      UserError: it holds one (says which, and where).
    """
    if (place := half_pair(text)) is not None:
        raise UserError(
            f"{name}, character {place + 1}: {text[place]!r} is half of a surrogate pair, not a "
            "character"
        )


def check_size(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Refuses a tokenizer that makes ids that the model has no embedding for.

    Args:
      tokenizer: of the model.
      vocab_size: rows of the embedding table.
      where: the folder or file, for the error.

    Raises:
      UserError: it does; names its last token.
    """
    ids = tokenizer.get_vocab()
    token = max(ids, key=lambda text: ids[text], default=None)
    if token is not None and ids[token] >= vocab_size:
        raise UserError(
            f"{where}: the tokenizer has ids up to {ids[token]} ({token!r:.60}), vocab_size is "
            f"{vocab_size}: it is another model's, or has tokens added that the model has no "
            "embedding for; leave those out of its files"
        )


def special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer sets before and after a text."""
    encoded = tokenizer.encode("a")
    inner = [i for i, special in enumerate(encoded.special_tokens_mask) if not special]
    if not inner:
        raise UserError("the tokenizer gives no token for the text 'a'")
    return encoded.ids[: inner[0]], encoded.ids[inner[-1] + 1 :]


def _check_own(tokenizer: Tokenizer, file: pathlib.Path) -> None:
    """The library gives an added token another id where the vocabulary doesn't leave it its own."""
    for one in json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []:
        found = tokenizer.token_to_id(one["content"])
        if found != one["id"]:
            raise UserError(
                f"{file}: added_tokens has {one['content']!r} under the id {one['id']}, after the "
                f"vocabulary it is {found}: the file is damaged"
            )


def _set_options(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """What tokenizer_config.json says of the cut goes before tokenizer.json, as in transformers."""
    file = folder / added_tokens.CONFIG
    values = read_json(file) if file.is_file() else {}
    tokenizer.encode_special_tokens = values.get("split_special_tokens") is True
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return
    for option, field in _BERT_OPTIONS.items():
        if option in values:
            if not isinstance(values[option], bool) and (option, values[option]) != _UNSET:
                raise UserError(f"{file}: {option}={values[option]!r} must be true or false")
            setattr(normalizer, field, values[option])
    tokenizer.normalizer = normalizer
