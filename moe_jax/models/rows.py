"""Prompts of many lengths as rows of one array; edits of prompts as edits of its positions."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from moe_jax.gating import GateConfig, RoutingEdit
from moe_jax.gating.edit import WITHOUT_TOKENS

# Rows grow by this many positions, so that few programs are compiled.
STRIDE = 32

Edits = RoutingEdit | Sequence[RoutingEdit]
"""One edit for all prompts, or a list: one for each, with a row for each of its tokens.

One for all has leaves [l 1 ...], the same for all prompts, or [l b ...], a row for each prompt.
Those of a list have leaves [l 1 ...], the same for all tokens of the prompt, or [l t ...]. `seed`
is [l] and `stand_in` [l e #d], the same in all of a list.
"""


def identity_edit(config: GateConfig, num_layers: int) -> RoutingEdit:
    """The edit of a whole model that changes nothing: leaves [l 1 ...], `seed` [l].

    Args:
      config: the gate of its MoE layers.
      num_layers: how many of these it has.
    """
    edit = RoutingEdit.identity(config)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_layers, *a.shape)), edit)


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
    """-> [l b*s ...]: the edit of a row at those of its positions where `on` is True.

    Args:
      edit: each leaf [l 1 ...], the same for all rows, or [l b ...]; or all of them as
        `by_position` gives them. `seed` is [l], `stand_in` [l e #d].
      on: positions; what the edit's own `tokens` leave out stays out.
    """
    if edit is None:
        return None
    b, s = on.shape
    placed = has_positions(edit)

    def wide(name: str, a: Array) -> Array:
        if name in WITHOUT_TOKENS:
            return a
        if placed:
            full = jnp.broadcast_to(a, (a.shape[0], b, s, *a.shape[3:]))
            return full.reshape(a.shape[0], b * s, *a.shape[3:])
        return a if a.shape[1] == 1 else jnp.repeat(a, s, axis=1)

    leaves = {name: wide(name, jnp.asarray(a)) for name, a in edit._asdict().items()}
    tokens = jnp.asarray(edit.tokens)
    tokens_lbs = (tokens if placed else tokens[:, :, None]) & jnp.asarray(on)[None]
    return RoutingEdit(**{**leaves, "tokens": tokens_lbs.reshape(tokens.shape[0], b * s)})


def has_positions(edit: RoutingEdit) -> bool:
    """Is it of the form that `by_position` gives?"""
    return edit.tokens.ndim == 3


def by_position(
    edits: Sequence[RoutingEdit], lengths: Sequence[int], s: int, *, left: bool = True
) -> RoutingEdit:
    """Edits of single rows as one: leaves [l b s ...], or [l b 1 ...] where no edit has tokens.

    Args:
      edits: of each row, leaves [l 1 ...] or [l t ...]; `seed` [l] and `stand_in`
        [l e #d] the same in all.
      lengths: tokens t of each row; no edit acts beside them.
      s: positions of a row.
      left: padding stands on the left; else on the right.
    """

    def placed(a: np.ndarray, t: int) -> np.ndarray:
        full = np.zeros((a.shape[0], s, *a.shape[2:]), a.dtype)
        full[:, s - t if left else 0 : s if left else t] = a
        return full

    # device_put: jnp.asarray compiles a program for each shape.
    leaves: dict[str, Array] = {}
    for name in RoutingEdit._fields:
        given = [getattr(edit, name) for edit in edits]
        alike = all(a is given[0] for a in given)
        rows = [np.asarray(given[0])] * len(edits) if alike else [np.asarray(a) for a in given]
        if name in WITHOUT_TOKENS:
            leaves[name] = jax.device_put(rows[0])
        elif name != "tokens" and all(a.shape[1] == 1 for a in rows):
            leaves[name] = jax.device_put(np.stack(rows, axis=1))
        else:
            every = [placed(a, t) for a, t in zip(rows, lengths, strict=True)]
            leaves[name] = jax.device_put(np.stack(every, axis=1))
    return RoutingEdit(**leaves)


def at_position(edit: RoutingEdit | None, position: Int[Array, ""]) -> RoutingEdit | None:
    """[l b s ...] -> [l b ...]: what `by_position` has at a position; another edit as it is."""
    if edit is None or not has_positions(edit):
        return edit

    def at(name: str, a: Array) -> Array:
        if name in WITHOUT_TOKENS:
            return a
        index = position if a.shape[2] > 1 else 0
        return jax.lax.dynamic_index_in_dim(a, index, axis=2, keepdims=False)

    return RoutingEdit(**{name: at(name, a) for name, a in edit._asdict().items()})
