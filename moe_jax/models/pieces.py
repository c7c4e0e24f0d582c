"""Pieces of texts: the tokens of one inside a text, and the text of tokens inside a text.

A piece alone is another thing. SentencePiece's tokenizers set a space before every text that they
encode, and take one off every text that they decode; others join a piece with what stands before
it. And `decode` leaves special tokens out, so that a text that holds one is never found in what it
gives.
"""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.models.tokenizer import encode_text

# Texts that a piece may stand after.
_BEFORE = ("a", "0", ".", "\n", "=", " ")
# Among so many tokens there is one with a text.
_LOOK_BACK = 16


def piece_ids(tokenizer: Tokenizer, piece: str, name: str, *, before: str = "") -> list[int]:
    """The tokens of a piece inside a text.

    Args:
      tokenizer: the model's.
      piece: a part of a text.
      name: what it is, for errors.
      before: what stands before it; "": something that leaves the piece's tokens to themselves.

    Returns:
      Those that come after the tokens of `before`. Where the tokenizer joins both, those that come
      after another text; where it joins all, those of the piece alone.

    Raises:
      UserError: the tokenizer can't take the piece.
    """
    alone = encode_text(tokenizer, piece, name, add_special_tokens=False).ids
    for context in (before, *_BEFORE) if before else _BEFORE:
        start, whole = (_ids(tokenizer, text) for text in (context, context + piece))
        if start and whole[: len(start)] == start and len(whole) > len(start):
            return whole[len(start) :]
    return list(alone)


def text_after(
    tokenizer: Tokenizer,
    before: Sequence[int],
    new: Sequence[int],
    hidden: Collection[int],
) -> str:
    """The text of new tokens as it stands after those before, with a space that it begins with.

    Args:
      tokenizer: the model's.
      before: tokens that were read.
      new: tokens that follow.
      hidden: tokens without text, see `hidden_tokens`.
    """
    # One token tells a tokenizer that it is inside a text.
    last = [i for i in before[-_LOOK_BACK:] if i not in hidden][-1:]
    rest = [i for i in new if i not in hidden]
    start = tokenizer.decode(last, skip_special_tokens=False)
    whole = tokenizer.decode([*last, *rest], skip_special_tokens=False)
    if whole.startswith(start):
        return str(whole[len(start) :])
    return str(tokenizer.decode(rest, skip_special_tokens=False))


def hidden_tokens(tokenizer: Tokenizer, show: Collection[str] = ()) -> frozenset[int]:
    """Special tokens, but those that stand in one of the texts.

    Args:
      tokenizer: the model's.
      show: texts that are looked for in what the model writes.
    """
    return frozenset(
        index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and not any(token.content in text for text in show)
    )


def check_shown(tokenizer: Tokenizer, piece: str, name: str, *, before: str = "") -> None:
    """Can the piece be found in the text of tokens?

    Args:
      tokenizer: the model's.
      piece: to be looked for.
      name: what it is, for errors.
      before: a text that it may come after.

    Raises:
      UserError: the piece's tokens have another text, as where a tokenizer has no capitals, or not
        these characters.
    """
    ids = piece_ids(tokenizer, piece, name, before=before)
    found = text_after(
        tokenizer, _ids(tokenizer, before or "a"), ids, hidden_tokens(tokenizer, [piece])
    )
    if piece not in found:
        raise UserError(
            f"{name}={piece!r} is {found!r} in the text of this model's tokens, where it is looked "
            "for: it would never be found"
        )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Without special tokens around it; none where the tokenizer can't take the text."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception:  # the library raises bare Exceptions
        return []
