"""Tokenizers of GGUF files: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama").

The keys and their defaults are llama.cpp's. Where llama.cpp leaves out what the model's own
tokenizer does (NFC before Qwen's and OLMo's), the model's own is followed, so that a GGUF file and
the folder it was made from give the same tokens.
"""

import math
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from moe_jax.errors import UserError
from moe_jax.models.gguf_metadata import Metadata

_START = "tokenizer.ggml"
# Kinds of tokens in tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "▁"
# English endings; a word with the sign before it; {digits}; signs; line ends; spaces, of which the
# last belongs to the word that follows.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Cut(NamedTuple):
    """What is done to a text before the merges.

    Attributes:
      words: the pattern of words; None: that of GPT-2.
      digits: each digit is cut off first.
      nfc: characters are composed first.
      whole: a word that is a token stays whole, whatever the merges say.
      bos: llama.cpp sets the token before the text unless the file forbids it.
    """

    words: str | None = None
    digits: bool = False
    nfc: bool = False
    whole: bool = False
    bos: bool = False

    def pre_tokenizer(self) -> Any:
        """The cut and the bytes' letters."""
        first: list[Any] = []
        if self.digits:
            first.append(pre_tokenizers.Digits(individual_digits=True))
        if self.words is not None:
            first.append(pre_tokenizers.Split(Regex(self.words), behavior="isolated"))
        use_regex = self.words is None
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        return pre_tokenizers.Sequence([*first, letters]) if first else letters


_THREE_DIGITS = _WORDS.format(digits=r"\p{N}{1,3}")
_LLAMA3 = _Cut(_THREE_DIGITS, whole=True, bos=True)
# By tokenizer.ggml.pre.
_CUTS = {
    "gpt-2": _Cut(),
    "smollm": _Cut(digits=True),
    "olmo": _Cut(nfc=True),
    "dbrx": _Cut(_THREE_DIGITS),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _Cut(_WORDS.format(digits=r"\p{N}"), nfc=True),
}


def read_gguf_tokenizer(metadata: Metadata) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer that the metadata describe, and the tokens that end a text.

    Raises:
      UserError: it is of a kind that isn't covered, or can't be made.
    """
    file, kind = metadata.file, metadata.need(f"{_START}.model", str)
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{file}: {_START}.model={kind!r} is not covered, only 'gpt2' and 'llama'")
    tokens = metadata.need(f"{_START}.tokens", list)
    if not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{file}: no tokenizer can be made of {_START}.tokens, which are not texts")
    _check_twice(metadata, tokens)
    kinds = metadata.get(f"{_START}.token_type", list) or [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise UserError(f"{file}: {_START}.token_type has {len(kinds)} of {len(tokens)} tokens")
    if not all(isinstance(code, int) for code in kinds):
        raise UserError(f"{file}: {_START}.token_type has what is no whole number")
    pieces = kind == "llama"
    if pieces:
        tokenizer, bos = _sentence_pieces(metadata, tokens, kinds), True
    else:
        tokenizer, bos = _byte_level(metadata, tokens)
    for special, which in ((True, (_UNKNOWN, _CONTROL)), (False, (_USER_DEFINED,))):
        added = [token for token, code in zip(tokens, kinds, strict=True) if code in which]
        made = [AddedToken(token, special=special, normalized=False) for token in added]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(made)
    # llama.cpp's ids where a file with pieces names none.
    usual = {"bos": 1, "eos": 2} if pieces else {}
    ids = {name: metadata.get(f"{_START}.{name}_token_id", int) for name in ("bos", "eos", "eot")}
    ids = {name: usual.get(name) if found is None else found for name, found in ids.items()}
    _add_ends(tokenizer, metadata, tokens, ids, bos)
    stops = (ids[name] for name in ("eos", "eot"))
    return tokenizer, tuple(dict.fromkeys(i for i in stops if i is not None))


def _check_twice(metadata: Metadata, tokens: list[str]) -> None:
    """Refuses a text with two ids, of which only one could be told; without a text they may be."""
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token and ids.setdefault(token, i) != i:
            raise UserError(
                f"{metadata.file}: {_START}.tokens has {token!r:.60} twice, as ids {ids[token]} "
                f"and {i} (llama.cpp refuses that too); load the model's folder"
            )


def _byte_level(metadata: Metadata, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """GPT-2's kind, and whether a token goes before the text by default."""
    file, name = metadata.file, metadata.get(f"{_START}.pre", str)
    if name not in _CUTS:
        raise UserError(f"{file}: {_START}.pre={name!r} is not covered, only {', '.join(_CUTS)}")
    cut, merges = _CUTS[name], _merges(metadata)
    tokenizer = _make(metadata, tokens, merges, ignore_merges=cut.whole)
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.bos


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    merges = []
    for line in metadata.need(f"{_START}.merges", list):
        pair = str(line).split(" ")
        if len(pair) != 2:
            raise UserError(
                f"{metadata.file}: {_START}.merges has {line!r:.60}, which is not two tokens"
            )
        merges.append((pair[0], pair[1]))
    return merges


def _sentence_pieces(metadata: Metadata, tokens: list[str], kinds: list[int]) -> Tokenizer:
    """SentencePiece's BPE, as Llama 2 and Mixtral have it.

    A space is the character U+2581, and one is set before the text and after every special token
    (unless add_space_prefix is false), as llama.cpp and SentencePiece do. Characters without a
    token become their bytes' tokens.
    """
    unknown = metadata.get(f"{_START}.unknown_token_id", int) or 0
    if not 0 <= unknown < len(tokens):
        raise UserError(f"{metadata.file}: unknown_token_id={unknown} is no token")
    merges = _merges_from_scores(metadata, tokens, kinds)
    rest = {"unk_token": tokens[unknown], "fuse_unk": True, "byte_fallback": True}
    tokenizer = _make(metadata, tokens, merges, **rest)
    spaces = normalizers.Replace(" ", _SPACE)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(f"{_START}.add_space_prefix", int) in (None, True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = spaces
        tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_from_scores(
    metadata: Metadata, tokens: list[str], kinds: list[int]
) -> list[tuple[str, str]]:
    """Every pair of tokens that together are a normal token, by that one's score, best first.

    SentencePiece merges the neighbours whose token has the highest score; a list of merges in that
    order does the same. Of one token's pairs, those with a longer first part go first.
    """
    scores = metadata.need(f"{_START}.scores", list)
    if len(scores) != len(tokens):
        raise UserError(
            f"{metadata.file}: {_START}.scores has {len(scores)} of {len(tokens)} tokens"
        )
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise UserError(f"{metadata.file}: {_START}.scores has what is no number")
    normal = {
        token: score
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind == _NORMAL
    }
    long = [score for token, score in normal.items() if len(token) > 1]
    if len(long) > 1 and len(set(long)) == 1:
        raise UserError(
            f"{metadata.file}: {_START}.scores are all {long[0]}, which says nothing of the order "
            "of merges; load the model's folder"
        )
    found = [
        (score, cut, len(token) - cut, token)
        for token, score in normal.items()
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]
    found.sort(key=lambda pair: pair[:3], reverse=True)
    return [(token[:cut], token[cut:]) for _, cut, _, token in found]


def _make(
    metadata: Metadata, tokens: list[str], merges: list[tuple[str, str]], **options: Any
) -> Tokenizer:
    try:
        vocab = {token: i for i, token in enumerate(tokens)}
        return Tokenizer(models.BPE(vocab, merges, **options))
    except Exception as error:  # the library raises bare Exceptions
        text = f"{error}".splitlines()[0]
        raise UserError(
            f"{metadata.file}: no tokenizer can be made of {_START}.merges: {text}"
        ) from None


def _add_ends(
    tokenizer: Tokenizer,
    metadata: Metadata,
    tokens: list[str],
    ids: dict[str, int | None],
    bos: bool,
) -> None:
    """Tokens that go before and after every text, where the file or llama.cpp asks for them."""
    parts, known = ["$A"], []
    for name, usual in (("bos", bos), ("eos", False)):
        asked = metadata.get(f"{_START}.add_{name}_token", int)
        if not (usual if asked is None else asked):
            continue
        index = ids[name]
        if index is None:
            index = metadata.need(f"{_START}.{name}_token_id", int)
        if not 0 <= index < len(tokens):
            raise UserError(f"{metadata.file}: {name}_token_id={index} is no token")
        known.append((tokens[index], index))
        parts = [tokens[index], *parts] if name == "bos" else [*parts, tokens[index]]
    if known:
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=known)
