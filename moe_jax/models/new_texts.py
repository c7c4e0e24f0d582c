"""Texts as they are generated: tokens of each row, and where they stop."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.models.generate_checks import Decode
from moe_jax.models.pieces import hidden_tokens, text_after


class NewText(NamedTuple):
    """One row.

    Attributes:
      ids: new tokens [n].
      logprob: of each [n].
      finish: "stop", or "length" where it never stopped.
      stopped_by: the stop id or stop text; None with "length".
    """

    ids: Int[np.ndarray, " n"]
    logprob: Float[np.ndarray, " n"]
    finish: Literal["stop", "length"]
    stopped_by: int | str | None


class NewTexts:
    """New tokens of each row as they come, and which rows are not done.

    Args:
      name: what a row is, for errors.
      rows: how many.
      stop_ids: a row is done at the first of these.
      stop_texts: a row is done at the token that completes one of these.
      decode: gives the text of a row's new tokens. The `decode` of a `tokenizers.Tokenizer` shows
        here the special tokens that a stop text holds, and the space that a text begins with.
      before: tokens of each row that come before the new ones; None: none.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        stop_ids: frozenset[int],
        stop_texts: tuple[str, ...],
        decode: Decode | None,
        before: Sequence[Int[np.ndarray, " _"]] | None = None,
    ):
        self.name, self.stop_ids, self.stop_texts = name, stop_ids, stop_texts
        self.text = None if decode is None else _text_of(decode, stop_texts, before)
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.logprob: list[list[float]] = [[] for _ in range(rows)]
        self.stopped_by: list[int | str | None] = [None] * rows
        self.live = np.ones(rows, bool)

    def add(self, ids: np.ndarray, logprob: np.ndarray) -> np.ndarray:
        """Take one token a row; returns them with -1 in rows that had stopped."""
        shown = np.where(self.live, ids, -1)
        for row in np.flatnonzero(self.live).tolist():
            if not np.isfinite(logprob[row]):
                raise UserError(
                    f"the model's logits are not numbers after {len(self.ids[row])} new tokens of "
                    f"{self.name} {row}: are its weights whole?"
                )
            self.ids[row].append(int(ids[row]))
            self.logprob[row].append(float(logprob[row]))
            self.stopped_by[row] = self._stop(row)
            self.live[row] = self.stopped_by[row] is None
        return shown

    def row(self, row: int) -> NewText:
        """What one row has now."""
        by = self.stopped_by[row]
        return NewText(
            np.asarray(self.ids[row], np.int32),
            np.asarray(self.logprob[row], np.float32),
            "length" if by is None else "stop",
            by,
        )

    def _stop(self, row: int) -> int | str | None:
        ids = self.ids[row]
        if ids[-1] in self.stop_ids:
            return ids[-1]
        if self.stop_texts and self.text is not None:
            text = self.text(row, ids)
            return next((t for t in self.stop_texts if t in text), None)
        return None


def _text_of(
    decode: Decode, stop_texts: Sequence[str], before: Sequence[Int[np.ndarray, " _"]] | None
) -> Callable[[int, list[int]], str]:
    """The text of a row's new tokens, in which stop texts are looked for."""
    tokenizer = getattr(decode, "__self__", None)
    if not isinstance(tokenizer, Tokenizer):
        return lambda row, ids: decode(ids)
    hidden = hidden_tokens(tokenizer, stop_texts)
    rows = None if before is None else [row[-16:].tolist() for row in before]
    return lambda row, ids: text_after(tokenizer, () if rows is None else rows[row], ids, hidden)
