"""Which tokens of a prompt to count: S(x) of seed 001, such as those of the answer alone.

Every function gives a mask [t]. Positions and lengths count the prompt's own tokens from its first:
padding, on either side, is left out of the count; special tokens are in it. Letters: t tokens.
"""

import dataclasses
import difflib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from moe_jax.errors import UserError

KINDS = ("all", "after", "after-first", "generated", "last", "span", "chars")
_NUMBERS = {"last": 1, "span": 2, "chars": 2}
_FORMS = "all, after:TEXT, after-first:TEXT, generated, last:M, span:FROM:TO or chars:FROM:TO"


class PromptTokens(NamedTuple):
    """One prompt as the tokenizer gave it, what was generated included.

    Attributes:
      ids: token ids.
      text: the whole text, None where nothing needs it.
      offsets: start and end of each token in `text`, in characters; start = end for a token that
        stands for no text. None where nothing needs them.
      prompt_length: tokens before the first generated one, padding left out; None: nothing was
        generated.
      present: False for padding; None: no padding.
    """

    ids: Int[np.ndarray, " t"]
    text: str | None = None
    offsets: Int[np.ndarray, "t 2"] | None = None
    prompt_length: int | None = None
    present: Bool[np.ndarray, " t"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSubset:
    """A rule that picks tokens of any prompt; `parse` reads it from a flag, `str` writes it.

    ==================  ============================================================================
    all                 every token but padding and special ones
    after:TEXT          those after the last place where TEXT stands (`after_delimiter`)
    after-first:TEXT    those after the first such place
    generated           those that the model wrote
    last:M              the last M of "all"
    span:FROM:TO        positions FROM, ..., TO-1
    chars:FROM:TO       tokens that hold one of the characters FROM, ..., TO-1 of the text
    ==================  ============================================================================

    Attributes:
      kind: one of KINDS.
      delimiter: TEXT; for the other kinds "".
      numbers: (M,) or (FROM, TO); for the other kinds ().
    """

    kind: str = "all"
    delimiter: str = ""
    numbers: tuple[int, ...] = ()

    @classmethod
    def parse(cls, flag: str) -> "TokenSubset":
        """The rule that a flag's text stands for.

        Raises:
          UserError: not one of the forms above; names the nearest kind.
        """
        kind, colon, rest = flag.partition(":")
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"tokens={flag!r}: {kind!r} is unknown{hint}: use {_FORMS}")
        if kind in ("after", "after-first"):
            if not rest:
                raise UserError(f"tokens={flag!r} names no text to look for: use {kind}:TEXT")
            return cls(kind=kind, delimiter=rest)
        if kind not in _NUMBERS:
            if colon:
                raise UserError(f"tokens={flag!r}: {kind!r} takes nothing after it")
            return cls(kind=kind)
        form = "last:M, M at least 1" if kind == "last" else f"{kind}:FROM:TO, 0 <= FROM < TO"
        parts = rest.split(":")
        if len(parts) != _NUMBERS[kind] or not all(p.isascii() and p.isdigit() for p in parts):
            raise UserError(f"tokens={flag!r} must be {form}")
        numbers = tuple(int(p) for p in parts)
        if (numbers[0] < 1) if kind == "last" else (numbers[0] >= numbers[1]):
            raise UserError(f"tokens={flag!r} must be {form}")
        return cls(kind=kind, numbers=numbers)

    def __str__(self) -> str:
        """The flag's text: `TokenSubset.parse(str(subset)) == subset`."""
        tail = [self.delimiter] if self.delimiter else [str(n) for n in self.numbers]
        return ":".join([self.kind, *tail])

    def mask(
        self, prompt: PromptTokens, *, special: Collection[int] = (), number: int = 0
    ) -> Bool[np.ndarray, " t"]:
        """The prompt's tokens that this rule picks, without padding and special ones.

        Args:
          prompt: the tokens.
          special: ids never to count (beginning and end of text, padding, roles of a chat).
          number: of the prompt in its data set, for messages.

        Returns:
          [t], True at least once.

        Raises:
          UserError: the rule picks no token of this prompt, or what it looks for isn't there.
          ValueError: the prompt lacks what the rule needs (text and offsets, prompt_length).
        """
        real = real_tokens(prompt.ids, special=special, present=prompt.present)
        if self.kind in ("after", "after-first"):
            text, offsets = _text(prompt, self.kind)
            which = "first" if self.kind == "after-first" else "last"
            picked = after_delimiter(text, offsets, self.delimiter, which=which, number=number)
        elif self.kind == "generated":
            if prompt.prompt_length is None:
                raise ValueError("tokens of kind 'generated' need prompt_length")
            picked = generated_tokens(
                len(prompt.ids), prompt.prompt_length, present=prompt.present, number=number
            )
        elif self.kind == "last":
            return last_tokens(real, self.numbers[0], number=number)
        elif self.kind == "span":
            start, end = self.numbers
            picked = token_span(len(real), start, end, present=prompt.present, number=number)
        elif self.kind == "chars":
            picked = char_span(_text(prompt, self.kind)[1], *self.numbers, number=number)
        else:
            picked = real
        if not np.any(picked & real):
            raise UserError(
                f"prompt {number}: tokens={str(self)!r} picks no token but padding or special ones"
            )
        return picked & real


def check_reading(subset: TokenSubset, *, generate_tokens: int, batch_size: int) -> None:
    """Can tokens be read and counted so? A UserError names the first setting that can't be."""
    if generate_tokens < 0 or batch_size < 1:
        least = "generate must be at least 0" if generate_tokens < 0 else "batch_size at least 1"
        raise UserError(f"generate={generate_tokens}, batch_size={batch_size}: {least}")
    if subset.kind == "generated" and generate_tokens < 2:
        raise UserError(
            f"tokens='generated' needs generate of at least 2, not {generate_tokens}: the last new "
            "token is never read"
        )


def real_tokens(
    ids: Int[np.ndarray, " t"],
    *,
    special: Collection[int] = (),
    present: Bool[np.ndarray, " t"] | None = None,
) -> Bool[np.ndarray, " t"]:
    """Every token but padding (`present` False) and the ids in `special`."""
    real = ~np.isin(ids, np.fromiter(special, np.int64, len(special)))
    return real if present is None else real & present


def after_delimiter(
    text: str,
    offsets: Int[np.ndarray, "t 2"],
    delimiter: str,
    *,
    which: str = "last",
    number: int = 0,
) -> Bool[np.ndarray, " t"]:
    """The tokens that start at or after the end of the delimiter, wherever tokens are cut.

    A token that holds the delimiter's end together with what follows belongs to the delimiter.

    Args:
      text: the prompt.
      offsets: start and end of each token in it, in characters; start = end: never counted.
      delimiter: such as "Answer:"; case counts.
      which: "last" or "first", the place to take where the text has several.
      number: of the prompt, for messages.

    Raises:
      UserError: the delimiter isn't in the text, or no token follows it.
      ValueError: an empty delimiter, an unknown `which`.
    """
    if which not in ("last", "first"):
        raise ValueError(f"which={which!r} must be 'last' or 'first'")
    if not delimiter:
        raise ValueError("delimiter is empty")
    place = text.rfind(delimiter) if which == "last" else text.find(delimiter)
    if place < 0:
        other = " (it is with other capitals)" if delimiter.lower() in text.lower() else ""
        raise UserError(f"prompt {number}: the text has no {delimiter!r}{other}")
    picked = (offsets[:, 0] >= place + len(delimiter)) & (offsets[:, 1] > offsets[:, 0])
    if not picked.any():
        raise UserError(f"prompt {number}: no token follows the {which} {delimiter!r}")
    return picked


def generated_tokens(
    num_tokens: int,
    prompt_length: int,
    *,
    present: Bool[np.ndarray, " t"] | None = None,
    number: int = 0,
) -> Bool[np.ndarray, " t"]:
    """The tokens from position `prompt_length` on.

    Args:
      num_tokens: t.
      prompt_length: tokens of the prompt, padding left out.
      present: False for padding; None: no padding.
      number: of the prompt, for messages.

    Raises:
      UserError: there is no token beyond the prompt.
      ValueError: a negative length.
    """
    if prompt_length < 0:
        raise ValueError(f"prompt_length={prompt_length} must be at least 0")
    position, total = _positions(num_tokens, present)
    if prompt_length >= total:
        raise UserError(
            f"prompt {number}: no token was generated: the prompt has {prompt_length} tokens, with "
            f"what follows {total}"
        )
    return position >= prompt_length


def last_tokens(real: Bool[np.ndarray, " t"], m: int, *, number: int = 0) -> Bool[np.ndarray, " t"]:
    """The last m of the real tokens.

    Raises:
      UserError: there are fewer than m.
      ValueError: m is below 1.
    """
    if m < 1:
        raise ValueError(f"m={m} must be at least 1")
    places = np.flatnonzero(real)
    if len(places) < m:
        raise UserError(f"prompt {number}: the last {m} tokens are wanted, it has {len(places)}")
    picked = np.zeros_like(real)
    picked[places[-m:]] = True
    return picked


def token_span(
    num_tokens: int,
    start: int,
    end: int,
    *,
    present: Bool[np.ndarray, " t"] | None = None,
    number: int = 0,
) -> Bool[np.ndarray, " t"]:
    """Positions start, ..., end-1.

    Raises:
      UserError: the span ends beyond the prompt.
      ValueError: not 0 <= start < end.
    """
    _check_span(start, end)
    position, total = _positions(num_tokens, present)
    if end > total:
        raise UserError(f"prompt {number}: tokens {start}..{end - 1} are wanted, it has {total}")
    return (position >= start) & (position < end)


def char_span(
    offsets: Int[np.ndarray, "t 2"], start: int, end: int, *, number: int = 0
) -> Bool[np.ndarray, " t"]:
    """The tokens that hold at least one of the characters start, ..., end-1.

    Raises:
      UserError: no token does.
      ValueError: not 0 <= start < end.
    """
    _check_span(start, end)
    picked = (offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 1] > offsets[:, 0])
    if not picked.any():
        raise UserError(f"prompt {number}: no token holds a character of {start}..{end - 1}")
    return picked


def _positions(
    num_tokens: int, present: Bool[np.ndarray, " t"] | None
) -> tuple[Int[np.ndarray, " t"], int]:
    """Position of each token among those present (-1 for padding), and how many these are."""
    if present is None:
        return np.arange(num_tokens), num_tokens
    return np.where(present, np.cumsum(present) - 1, -1), int(present.sum())


def _text(prompt: PromptTokens, kind: str) -> tuple[str, Int[np.ndarray, "t 2"]]:
    if prompt.text is None or prompt.offsets is None:
        raise ValueError(f"tokens of kind {kind!r} need the prompt's text and offsets")
    return prompt.text, prompt.offsets


def _check_span(start: int, end: int) -> None:
    if not 0 <= start < end:
        raise ValueError(f"start={start}, end={end}: must be 0 <= start < end")
