"""Prompts of many lengths as rows of one array; edits of prompts as edits of its positions."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from moe_jax.gating import RoutingEdit
from moe_jax.routing_edit import WITHOUT_TOKENS

# Rows grow by this many positions, so that few programs are compiled.
STRIDE = 32


def rounded(length: int, stride: int = STRIDE) -> int:
    """The next multiple of `stride`, or `length` itself."""
    return -(-length // stride) * stride


def padded(
    rows: Sequence[Int[np.ndarray, " _"]], pad_id: int
) -> tuple[Int[np.ndarray, "b s"], Bool[np.ndarray, "b s"]]:
    """Ids [b s] with padding on the left, s `rounded`, and where they are tokens."""
    s = rounded(max(len(r) for r in rows))
    ids_bs = np.full((len(rows), s), pad_id, np.int32)
    for i, row in enumerate(rows):
        ids_bs[i, s - len(row) :] = row
    return ids_bs, padded_masks([np.ones(len(r), bool) for r in rows], s)


def padded_masks(masks: Sequence[Bool[np.ndarray, " _"]], s: int) -> Bool[np.ndarray, "b s"]:
    """Masks of the tokens of each row as [b s], False on the padding on their left."""
    on_bs = np.zeros((len(masks), s), bool)
    for i, mask in enumerate(masks):
        on_bs[i, s - len(mask) :] = mask
    return on_bs


def batches(
    lengths: Sequence[int], batch_size: int
) -> Iterator[tuple[int, Int[np.ndarray, " rows"]]]:
    """(m, indices of batch_size rows), of like lengths; those after the first m are padding."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        line = order[start : start + batch_size]
        yield len(line), np.pad(line, (0, batch_size - len(line)), mode="edge")


def for_positions(
    edit: RoutingEdit | None, on: Bool[Array | np.ndarray, "b s"]
) -> RoutingEdit | None:
    """[l b ...] -> [l b*s ...]: the edit of a row at those of its positions where `on` is True.

    Args:
      edit: each leaf [l 1 ...], the same for all rows, or [l b ...]; `seed` is [l], `stand_in`
        [l e #d].
      on: positions; what the edit's own `tokens` leave out stays out.
    """
    if edit is None:
        return None
    s = on.shape[1]
    leaves = {
        name: a if name in WITHOUT_TOKENS or a.shape[1] == 1 else jnp.repeat(a, s, axis=1)
        for name, a in edit._asdict().items()
    }
    tokens_lbs = jnp.asarray(edit.tokens)[:, :, None] & jnp.asarray(on)[None]
    return RoutingEdit(**{**leaves, "tokens": tokens_lbs.reshape(tokens_lbs.shape[0], -1)})
