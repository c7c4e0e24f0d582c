"""Tokens of a tokenizer that other files than tokenizer.json know: markers of chats, ends of texts.

They are read as transformers 5 reads them. tokenizer_config.json lists tokens by their ids
(added_tokens_decoder) and names some of them (eos_token). Where it lists none, the files of before
transformers 4.34 count: special_tokens_map.json (names) and added_tokens.json (ids).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from moe_jax.errors import UserError

CONFIG, NAMES, IDS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# In the order in which they get ids.
_NAMED = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class AddedTokens(NamedTuple):
    """What the files beside tokenizer.json say.

    Attributes:
      named: by name, as "eos_token".
      listed: by id.
      more: special ones that have neither name nor id.
      where: the file that lists the ids.
    """

    named: dict[str, AddedToken]
    listed: dict[int, AddedToken]
    more: list[AddedToken]
    where: str


def read_added_tokens(
    config: Mapping[str, Any], names: Mapping[str, Any], ids: Mapping[str, Any], folder: str
) -> AddedTokens:
    """Put together what the three files say, empty where there is no such file.

    Args:
      config: tokenizer_config.json.
      names: special_tokens_map.json.
      ids: added_tokens.json.
      folder: theirs, for errors.

    Raises:
      UserError: a field that isn't of its kind.
    """
    old = "added_tokens_decoder" not in config
    values = dict(config)
    if old:
        values |= names
    file = f"{folder}/{CONFIG}"
    more = (
        config.get("extra_special_tokens")
        or config.get("additional_special_tokens")
        or (values.get("extra_special_tokens") or values.get("additional_special_tokens") or [])
    )
    named = {
        name: made
        for name, value in _in_order(values)
        for made in [_token(value, f"{file}: {name}", name in _NAMED)]
        if made is not None
    }
    if isinstance(more, dict):
        named |= {
            str(name): made
            for name, value in more.items()
            for made in [_token(value, f"{file}: extra_special_tokens", True)]
            if made is not None
        }
        more = []
    if not isinstance(more, list):
        raise UserError(f"{file}: extra_special_tokens={more!r} must be a list of tokens")
    tokens = [_token(value, f"{file}: extra_special_tokens", True) for value in more]
    rest = [token for token in tokens if token is not None]
    if old:
        special = {token.content for token in (*named.values(), *rest)}
        return AddedTokens(
            named, _by_text(ids, special, f"{folder}/{IDS}"), rest, f"{folder}/{IDS}"
        )
    return AddedTokens(named, _by_id(config["added_tokens_decoder"], file), rest, file)


def add_tokens(tokenizer: Tokenizer, added: AddedTokens, folder: str) -> None:
    """Give the tokenizer of tokenizer.json what it doesn't know, with the ids that are listed.

    Of a token that both know the flags are those of the list.

    Raises:
      UserError: the two files give a token different ids, or an id different tokens.
    """
    check_ids(tokenizer, added)
    names = {token.content for token in added.named.values()}
    known = {t.content: _flags(t) for t in tokenizer.get_added_tokens_decoder().values()}
    listed = {token.content for token in added.listed.values()}
    new = [
        token
        for _, token in sorted(added.listed.items())
        if known.get(token.content) != _flags(token)
    ]
    for token in (*added.named.values(), *added.more):
        if token.content not in known and token.content not in listed:
            new.append(token)
    for token in new:
        token.special = token.special or token.content in names
    tokenizer.add_tokens(new)
    for index, token in sorted(added.listed.items()):
        found = tokenizer.token_to_id(token.content)
        if found != index:
            raise UserError(
                f"{added.where} gives the token {token.content!r} the id {index}; after those of "
                f"{folder}/tokenizer.json it would be {found}: one of the two is another model's"
            )


def check_ids(tokenizer: Tokenizer, added: AddedTokens) -> None:
    """Does the tokenizer have the ids that are listed, for those of the tokens that it knows?

    Raises:
      UserError: it gives a token another id, or an id another token.
    """
    for index, token in sorted(added.listed.items()):
        mine, theirs = tokenizer.token_to_id(token.content), tokenizer.id_to_token(index)
        if mine not in (None, index):
            raise UserError(
                f"{added.where} gives the token {token.content!r} the id {index}, the "
                f"tokenizer's vocabulary {mine}: one of the two is another model's"
            )
        if mine is None and theirs is not None:
            raise UserError(
                f"{added.where} has the token {token.content!r} under the id {index}, which is "
                f"{theirs!r} in the tokenizer's vocabulary: one of the two is another model's"
            )


def _in_order(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Fields that name tokens, those that every tokenizer has first."""
    own = [name for name in values if name.endswith("_token") and name not in _NAMED]
    return [(name, values[name]) for name in (*_NAMED, *own) if name in values]


def _by_id(values: Any, file: str) -> dict[int, AddedToken]:
    """added_tokens_decoder: {"258": {"content": "<|im_start|>", "special": true}}."""
    where = f"{file}: added_tokens_decoder"
    if not isinstance(values, dict):
        raise UserError(f"{where} must be an object of tokens by their ids")
    found = {}
    for index, value in values.items():
        token = _token(value, f"{where}[{index!r}]", True) if isinstance(value, dict) else None
        if token is None or not index.isascii() or not index.isdigit():
            raise UserError(f"{where}[{index!r}]={value!r} must be a token's content and flags")
        found[int(index)] = token
    return found


def _by_text(values: Mapping[str, Any], special: set[str], file: str) -> dict[int, AddedToken]:
    """added_tokens.json: {"<|im_start|>": 258}; special are those that are named."""
    found: dict[int, AddedToken] = {}
    for content, index in values.items():
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise UserError(f"{file}: {content!r} has the id {index!r}, must be a whole number")
        if index in found:
            raise UserError(
                f"{file}: {found[index].content!r} and {content!r} have the same id {index}"
            )
        mine = content in special
        found[index] = AddedToken(content, special=mine, normalized=not mine)
    return found


def _token(value: Any, where: str, known: bool) -> AddedToken | None:
    """A text, or an object with content and flags; None for none, and for another program's."""
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False) if value else None
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in _FLAGS if name in value}
        wrong = next((name for name, flag in flags.items() if not isinstance(flag, bool)), None)
        if wrong is not None:
            raise UserError(f"{where}: {wrong}={flags[wrong]!r} must be true or false")
        return AddedToken(value["content"], **flags)
    if value is None or not known:
        return None
    raise UserError(f"{where}={value!r} must be a token's text, or an object with its content")


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, name) for name in _FLAGS)
