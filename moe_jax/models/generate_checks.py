"""What `generate` is given, checked before anything is read."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from jaxtyping import Bool, Int

from moe_jax.common.checks import whole
from moe_jax.errors import UserError
from moe_jax.gating import RoutingEdit
from moe_jax.gating.edit import WITHOUT_TOKENS
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.rows import Edits

Prompt = Sequence[int] | Int[np.ndarray, " _"]
# Token ids -> text, of the new tokens of one prompt.
Decode = Callable[[Sequence[int]], str]


def check_settings(
    vocab_size: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
    stop_texts: Sequence[str],
    decode: Decode | None,
    pad_id: int,
) -> None:
    """Raises a UserError that names the first wrong setting; a ValueError for a missing decode."""
    whole("", "max_new_tokens", max_new_tokens, 1)
    for name, ids in (("stop_ids", stop_ids), ("pad_id", (pad_id,))):
        for i in ids:
            if not 0 <= i < vocab_size:
                raise UserError(f"{name}: {i} is not one of the ids 0 to {vocab_size - 1}")
    if isinstance(stop_texts, str):
        raise UserError(f"stop_texts={stop_texts!r} is one string; a list would be right")
    if "" in stop_texts:
        raise UserError("stop_texts has an empty text, which would stop everything")
    if stop_texts and decode is None:
        raise ValueError("stop_texts need decode, the function from ids to text")


def checked_prompts(
    prompts: Sequence[Prompt], config: CausalConfig, max_new_tokens: int
) -> list[np.ndarray]:
    """The prompts as arrays, or a UserError that names the first that the model can't read."""
    rows = []
    for i, prompt in enumerate(prompts):
        row = checked_ids(f"prompt {i}", prompt, config.vocab_size)
        rows.append(row)
        if len(row) + max_new_tokens > config.max_length:
            raise UserError(
                f"prompt {i} has {len(row)} tokens and max_new_tokens={max_new_tokens}: more than "
                f"the context of {config.max_length}"
            )
    return rows


def checked_ids(name: str, ids: Prompt, vocab_size: int) -> Int[np.ndarray, " _"]:
    """Token ids, at least one, as an array; or a UserError that begins with `name`."""
    row = np.asarray(ids)
    if row.ndim == 1 and not len(row):
        raise UserError(f"{name} is empty; give it a token to start from")
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise UserError(f"{name} must be a sequence of token ids, whole numbers")
    if not 0 <= row.min() <= row.max() < vocab_size:
        wrong = row[(row < 0) | (row >= vocab_size)][0]
        raise UserError(f"{name} has the id {wrong}; the model has 0 to {vocab_size - 1}")
    return row


def checked_masks(
    name: str, masks: Sequence[Bool[np.ndarray, " _"]] | None, lengths: Sequence[int]
) -> list[Bool[np.ndarray, " _"]]:
    """A mask of the tokens of each prompt, all True for None; or a ValueError."""
    if masks is None:
        return [np.ones(n, bool) for n in lengths]
    if len(masks) != len(lengths):
        raise ValueError(f"{name} has {len(masks)} masks for {len(lengths)} prompts")
    found = [np.asarray(m) for m in masks]
    for i, (mask, length) in enumerate(zip(found, lengths, strict=True)):
        if mask.shape != (length,) or mask.dtype != bool:
            raise ValueError(
                f"{name}[{i}] is {mask.dtype} {mask.shape}; prompt {i} has {length} tokens: it "
                f"must be bool ({length},)"
            )
    return found


def check_edit(
    name: str, edit: Edits | None, rows: int, lengths: Sequence[int] | None = None
) -> None:
    """Raises a ValueError unless the leaves are as `Edits` says.

    Args:
      name: of the argument.
      edit: one for all, or where there are lengths a list.
      rows: prompts.
      lengths: tokens of each that an edit of a list may have a row for.
    """
    if edit is None:
        return
    if isinstance(edit, RoutingEdit):
        _check_leaves(name, edit, rows, f"the {rows} prompts")
        return
    if lengths is None or len(edit) != rows:
        raise ValueError(f"{name} is a list of {len(edit)} edits for {rows} prompts")
    for i, (one, length) in enumerate(zip(edit, lengths, strict=True)):
        _check_leaves(f"{name}[{i}]", one, length, f"the {length} tokens")
        for field in WITHOUT_TOKENS:
            mine, first = getattr(one, field), getattr(edit[0], field)
            # Lists mostly share one array, of millions of numbers in a large model.
            if mine is not first and not np.array_equal(mine, first):
                raise ValueError(f"{name}[{i}].{field} differs from {name}[0]'s: all share one")


def _check_leaves(name: str, edit: RoutingEdit, size: int, what: str) -> None:
    for field, a in edit._asdict().items():
        if field not in WITHOUT_TOKENS and a.shape[1] not in (1, size):
            raise ValueError(
                f"{name}.{field} has shape {a.shape}; its second axis must be 1 or {what}"
            )
