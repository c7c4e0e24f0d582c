"""Texts in, states or sentence embeddings out: tokenised, batched, and nothing truncated."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from moe_jax.errors import UserError
from moe_jax.models.packing import Layout, Span, layouts, windows
from moe_jax.models.pretrained import PretrainedEncoder
from moe_jax.models.tokenizer import encode_text, special_ids

# (done, total) in tokens, those in two windows counted twice; called after every batch.
Progress = Callable[[int, int], None]

# Positions (padding included) that go through the encoder at once: on a CPU enough for its GEMMs
# to run at full speed, on an accelerator enough to hide the time it takes to start them.
_BATCH_POSITIONS = {"cpu": 1024}
_BATCH_POSITIONS_ELSEWHERE = 16384


class Tokenised(NamedTuple):
    """Tokens of several texts, without special tokens.

    Attributes:
      ids: per text, [s] token ids.
      offsets: per text, [s 2] first and past-the-end character of each token.
    """

    ids: list[Int[np.ndarray, " s"]]
    offsets: list[Int[np.ndarray, "s 2"]]


def tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenised:
    """Splits texts into tokens, keeping where in the text each one stands.

    Args:
      tokenizer: as `load` gives it.
      texts: any texts; an empty one has no tokens.

    Returns:
      Ids and character offsets. A character that needs several tokens has the same offsets in
      each of them.

    Raises:
      UserError: `texts` is one string, or the tokenizer can't take one (which, and what in it).
    """
    if isinstance(texts, str):
        raise UserError("texts is one string; a list of strings would be right")
    try:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    except Exception:  # the library raises bare Exceptions, and doesn't say at which text
        encoded = [
            encode_text(tokenizer, text, f"text {i}", add_special_tokens=False)
            for i, text in enumerate(texts)
        ]
    return Tokenised(
        [np.asarray(e.ids, np.int32) for e in encoded],
        [np.asarray(e.offsets, np.int32).reshape(-1, 2) for e in encoded],
    )


def token_states(
    pretrained: PretrainedEncoder,
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
    before = len(special_ids(pretrained.tokenizer)[0])
    d_model = pretrained.config.d_model
    out = [np.zeros((len(ids), d_model), np.float32) for ids in pieces.ids]
    best = [np.full(len(ids), np.inf) for ids in pieces.ids]
    for (text, start, stop), states_sd in _run(pretrained, pieces.ids, layers, progress):
        place = np.arange(start, stop)
        # Of two windows with a token equally near the middle the earlier wins, in any order.
        distance = np.abs(place - (start + stop - 1) / 2) + 1e-9 * start
        nearer = place[distance < best[text][start:stop]]
        out[text][nearer] = states_sd[nearer - start + before]
        best[text][nearer] = distance[nearer - start]
    return out


def sentence_embeddings(
    pretrained: PretrainedEncoder, texts: Sequence[str], *, progress: Progress | None = None
) -> Float[np.ndarray, "b d"]:
    """One unit vector for each text, as Sentence-BERT makes it.

    v = mean of the last layer's states over all tokens, special ones included; v / ||v||.
    Sentence-BERT (Reimers and Gurevych 2019) cuts texts off at its max_seq_length; here a text
    longer than the encoder's positions is read in half-overlapping windows, and v is the mean
    of the windows' means. The pooling is this mean, whatever pooling a folder's own
    sentence-transformers files ask for.

    Args:
      pretrained: encoder and tokenizer.
      texts: texts; an empty one is embedded by its special tokens.
      progress: called with (tokens done, tokens in all) after every batch.

    Returns:
      [b d] float32, rows of length 1.

    Raises:
      UserError: `texts` is one string.
    """
    ids = tokenise(pretrained.tokenizer, texts).ids
    sums = np.zeros((len(ids), pretrained.config.d_model), np.float64)
    for span, states_sd in _run(pretrained, ids, (pretrained.config.num_layers,), progress):
        sums[span.text] += states_sd.mean(axis=0, dtype=np.float64)
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


def _run(
    pretrained: PretrainedEncoder,
    ids: Sequence[np.ndarray],
    layers: tuple[int, ...],
    progress: Progress | None,
) -> Iterator[tuple[Span, np.ndarray]]:
    """Encodes texts; yields every span with its states, special tokens included, in any order."""
    prefix, suffix = special_ids(pretrained.tokenizer)
    config = pretrained.config
    extra = len(prefix) + len(suffix)
    spans, full = [], []
    for text, piece in enumerate(ids):
        if piece.size and not 0 <= piece.min() <= piece.max() < config.vocab_size:
            raise UserError(f"text {text} has token ids outside 0 to {config.vocab_size - 1}")
        for start, stop in windows(len(piece), config.max_length - extra):
            spans.append(Span(text, start, stop))
            full.append(np.concatenate((prefix, piece[start:stop], suffix)))
    graphdef, state = nnx.split(pretrained.model)
    total, done = sum(span.stop - span.start for span in spans), 0
    for layout in layouts([len(f) for f in full], config.max_length, config.d_model):
        for batch in _batches(layout, full, config.pad_id):
            states_bsd = np.asarray(
                _encode(graphdef, state, batch.ids_bs, batch.segments_bs, layers)
            )
            for index, row, at in batch.places:
                yield spans[index], states_bsd[row, at : at + len(full[index])]
                done += spans[index].stop - spans[index].start
            if progress is not None:
                progress(done, total)


class _Batch(NamedTuple):
    """Rows ready for the encoder; places: (item, row, first position) of each item in them."""

    ids_bs: np.ndarray
    segments_bs: np.ndarray
    places: list[tuple[int, int, int]]


def _batches(layout: Layout, full: Sequence[np.ndarray], pad_id: int) -> Iterator[_Batch]:
    """Lays the items' ids out in rows; segment 0 is padding, 1 the first item of a row."""
    b = _rows_per_batch(len(layout.rows), layout.row_length)
    for first in range(0, len(layout.rows), b):
        ids_bs = np.full((b, layout.row_length), pad_id, np.int32)
        segments_bs = np.zeros_like(ids_bs)
        places = []
        for row, items in enumerate(layout.rows[first : first + b]):
            at = 0
            for segment, index in enumerate(items, start=1):
                end = at + len(full[index])
                ids_bs[row, at:end] = full[index]
                segments_bs[row, at:end] = segment
                places.append((index, row, at))
                at = end
        yield _Batch(ids_bs, segments_bs, places)


def _rows_per_batch(num_rows: int, row_length: int) -> int:
    """Rows in every batch: as many as are worth it, or the power of two that holds them all.

    A last batch that is partly empty costs less than compiling a program for its own size.
    """
    positions = _BATCH_POSITIONS.get(jax.default_backend(), _BATCH_POSITIONS_ELSEWHERE)
    return min(max(1, positions // row_length), 1 << (num_rows - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("graphdef", "layers"))
def _encode(
    graphdef: Any,
    state: Any,
    ids_bs: Int[Array, "b s"],
    segments_bs: Int[Array, "b s"],
    layers: tuple[int, ...],
) -> Float[Array, "b s d"]:
    """Mean of the chosen layers' states. Segment 0 is padding."""
    model = nnx.merge(graphdef, state)
    states = model.hidden_states(ids_bs, segments_bs > 0, segments_bs=segments_bs)
    chosen = [states[index] for index in layers]
    return sum(chosen[1:], chosen[0]) / len(chosen)
