"""Texts in, states or sentence embeddings out: tokenised, batched, and nothing truncated."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.models.pretrained import Pretrained
from moe_jax.models.tokenizer import special_ids

# (done, total) in tokens; called after every batch.
Progress = Callable[[int, int], None]

# Positions (padding included) that go through the encoder at once.
BATCH_TOKENS = 2048


class Tokenised(NamedTuple):
    """Tokens of several texts, without special tokens.

    Attributes:
      ids: per text, [s] token ids.
      offsets: per text, [s 2] first and past-the-end character of each token.
    """

    ids: list[Int[np.ndarray, " s"]]
    offsets: list[Int[np.ndarray, "s 2"]]


class _Row(NamedTuple):
    """One row of a batch: tokens [start, stop) of a text, without special tokens."""

    text: int
    start: int
    stop: int


def tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenised:
    """Splits texts into tokens, keeping where in the text each one stands.

    Args:
      tokenizer: as `load` gives it.
      texts: any texts; an empty one has no tokens.

    Returns:
      Ids and character offsets. A character that needs several tokens has the same offsets in
      each of them.

    Raises:
      UserError: `texts` is one string, or holds something that isn't a string.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string; a list of strings would be right")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts[{index}] is a {type(text).__name__}, not a string")
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return Tokenised(
        [np.asarray(e.ids, np.int32) for e in encoded],
        [np.asarray(e.offsets, np.int32).reshape(-1, 2) for e in encoded],
    )


def windows(num_tokens: int, capacity: int) -> list[tuple[int, int]]:
    """Spans [start, stop) of at most `capacity` tokens that cover a text, half overlapping.

    A text that fits is one span (an empty one too). Of a longer one, the spans are all
    `capacity` long; each starts `capacity // 2` after the one before, the last ends at the end.
    """
    if num_tokens <= capacity:
        return [(0, num_tokens)]
    step = max(1, capacity // 2)
    starts = [*range(0, num_tokens - capacity, step), num_tokens - capacity]
    return [(start, start + capacity) for start in starts]


def token_states(
    pretrained: Pretrained,
    pieces: Tokenised,
    layer: int | Sequence[int] = -1,
    *,
    progress: Progress | None = None,
) -> list[Float[np.ndarray, "s d"]]:
    """The encoder's states of every token, each text in its own context.

    Special tokens are added for the encoder and their states left out. A text longer than the
    encoder's positions goes through in half-overlapping windows; each token's state is taken
    from the window in whose middle it stands most nearly, so nothing is truncated.

    Args:
      pretrained: encoder and tokenizer.
      pieces: tokens without special ones, as `tokenise` gives them.
      layer: which states: 0 is the embeddings, num_layers (or -1) the last layer's; several
        are averaged.
      progress: called with (tokens done, tokens in all) after every batch.

    Returns:
      Per text, [s d] float32, in the order of `pieces`; [0 d] for an empty one.

    Raises:
      UserError: `layer` names a layer that the encoder doesn't have.
    """
    layers = _layers(layer, pretrained.config.num_layers)
    rows = _rows(pretrained, pieces.ids)
    prefix, _ = special_ids(pretrained.tokenizer)
    d_model = pretrained.config.d_model
    out = [np.zeros((len(ids), d_model), np.float32) for ids in pieces.ids]
    best = [np.full(len(ids), np.inf) for ids in pieces.ids]
    for row, states_sd in _run(pretrained, pieces.ids, rows, layers, False, progress):
        inner_sd = states_sd[len(prefix) : len(prefix) + row.stop - row.start]
        place = np.arange(row.start, row.stop)
        distance = np.abs(place - (row.start + row.stop - 1) / 2)
        # Where two windows are equally central the earlier one wins, whatever the order here.
        distance = distance + 1e-9 * row.start
        nearer = place[distance < best[row.text][row.start : row.stop]]
        out[row.text][nearer] = inner_sd[nearer - row.start]
        best[row.text][nearer] = distance[nearer - row.start]
    return out


def sentence_embeddings(
    pretrained: Pretrained, texts: Sequence[str], *, progress: Progress | None = None
) -> Float[np.ndarray, "b d"]:
    """One unit vector for each text, as Sentence-BERT makes it.

    v = mean of the last layer's states over all tokens, special ones included; v / ||v||.
    Sentence-BERT (Reimers and Gurevych 2019) cuts texts off at its max_seq_length; here a text
    longer than the encoder's positions is read in half-overlapping windows, and v is the mean
    of the windows' means.

    Args:
      pretrained: encoder and tokenizer.
      texts: texts; an empty one is embedded by its special tokens.
      progress: called with (tokens done, tokens in all) after every batch.

    Returns:
      [b d] float32, rows of length 1.

    Raises:
      UserError: `texts` is not a list of strings.
    """
    ids = tokenise(pretrained.tokenizer, texts).ids
    rows = _rows(pretrained, ids)
    sums = np.zeros((len(ids), pretrained.config.d_model), np.float64)
    last = (pretrained.config.num_layers,)
    for row, mean_d in _run(pretrained, ids, rows, last, True, progress):
        sums[row.text] += mean_d
    norms = np.linalg.norm(sums, axis=-1, keepdims=True)
    return (sums / np.maximum(norms, 1e-12)).astype(np.float32)


def _layers(layer: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    chosen = (layer,) if isinstance(layer, int) else tuple(layer)
    if not chosen:
        raise UserError("layer=() names no layer")
    for index in chosen:
        if not -num_layers - 1 <= index <= num_layers:
            raise UserError(
                f"layer={index} is outside the encoder's 0 (embeddings) to {num_layers}"
            )
    return tuple(index % (num_layers + 1) for index in chosen)


def _rows(pretrained: Pretrained, ids: Sequence[np.ndarray]) -> list[_Row]:
    prefix, suffix = special_ids(pretrained.tokenizer)
    capacity = pretrained.config.max_length - len(prefix) - len(suffix)
    return [
        _Row(text, start, stop)
        for text, piece in enumerate(ids)
        for start, stop in windows(len(piece), capacity)
    ]


def _bucket(length: int, max_length: int) -> int:
    """Row length for a text: few of them, each at most a quarter longer than the text."""
    step = max(16, 2 ** max(0, (length - 1).bit_length() - 3))
    return min(-(-length // step) * step, max_length)


def _run(
    pretrained: Pretrained,
    ids: Sequence[np.ndarray],
    rows: Sequence[_Row],
    layers: tuple[int, ...],
    pooled: bool,
    progress: Progress | None,
) -> Iterator[tuple[_Row, np.ndarray]]:
    """Runs rows through the encoder, longest first; yields each row's states (or their mean)."""
    prefix, suffix = special_ids(pretrained.tokenizer)
    extra = len(prefix) + len(suffix)
    max_length = pretrained.config.max_length
    graphdef, state = nnx.split(pretrained.model)
    total, done = sum(row.stop - row.start for row in rows), 0
    order = sorted(rows, key=lambda row: row.start - row.stop)
    while order:
        s = _bucket(order[0].stop - order[0].start + extra, max_length)
        b = max(1, BATCH_TOKENS // s)
        batch, order = order[:b], order[b:]
        ids_bs = np.full((b, s), pretrained.config.pad_id, np.int32)
        where_bs = np.zeros((b, s), bool)
        for i, row in enumerate(batch):
            full = [*prefix, *ids[row.text][row.start : row.stop], *suffix]
            ids_bs[i, : len(full)] = full
            where_bs[i, : len(full)] = True
        states = np.asarray(_encode(graphdef, state, ids_bs, where_bs, layers, pooled))
        for i, row in enumerate(batch):
            yield row, states[i]
            done += row.stop - row.start
        if progress is not None:
            progress(done, total)


@functools.partial(jax.jit, static_argnames=("graphdef", "layers", "pooled"))
def _encode(
    graphdef: Any,
    state: Any,
    ids_bs: Int[Array, "b s"],
    where_bs: Bool[Array, "b s"],
    layers: tuple[int, ...],
    pooled: bool,
) -> Float[Array, "b s d"] | Float[Array, "b d"]:
    """Mean of the chosen layers' states; pooled: also the mean over each row's tokens."""
    model = nnx.merge(graphdef, state)
    states = model.hidden_states(ids_bs, where_bs)
    chosen = [states[index] for index in layers]
    states_bsd = sum(chosen[1:], chosen[0]) / len(chosen)
    if not pooled:
        return states_bsd
    where_bs1 = where_bs[..., None]
    count_b1 = jnp.maximum(where_bs1.sum(axis=1), 1)
    return jnp.where(where_bs1, states_bsd, 0).sum(axis=1) / count_b1
