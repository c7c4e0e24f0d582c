"""Enc(x): token states of texts, each token seen in overlapping local windows.

A token state of a whole text mixes the subjects of that text; windows that are encoded alone
look only at their own words. Here the encoder is frozen and its states are computed once;
`windows.window_states` does the same inside a model that trains its encoder along.
"""

import functools
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_jax.common.files import local_path
from moe_jax.errors import UserError
from moe_jax.models.encode import Tokenised
from moe_jax.models.pretrained import PretrainedEncoder
from moe_jax.models.tokenizer import special_ids
from moe_jax.rationale.config import ContextConfig
from moe_jax.rationale.windows import layer_index, pooled, spans

Progress = Callable[[int, int], None]
_ROWS = (16, 64, 256)
"""Windows that go through the encoder at once: the last number, or one that holds them all. Few
different ones, so that few programs are compiled."""
_VERSION = 1  # of what is computed here: part of the name of cached states


class Contextual(NamedTuple):
    """Texts as the model takes them; a text of many tokens may be several entries (pieces).

    Attributes:
      states: per piece, [s d] float16 contextual token states.
      targets: [b d] float32 sentence embedding e(x) of each piece, of length 1.
    """

    states: list[Float[np.ndarray, "s d"]]
    targets: Float[np.ndarray, "b d"]


def pieces(tokens: Tokenised, max_tokens: int) -> tuple[Tokenised, Int[np.ndarray, " b"]]:
    """Texts of more than `max_tokens` tokens cut into nearly equal pieces, and whose they are.

    Returns:
      The pieces in order, offsets still those in the whole text; the text's index of each piece.
      A text without tokens is one piece without tokens.
    """
    ids, offsets, owner = [], [], []
    for text, (i, o) in enumerate(zip(tokens.ids, tokens.offsets, strict=True)):
        parts = max(1, -(-len(i) // max_tokens))
        ids += np.array_split(i, parts)
        offsets += np.array_split(o, parts)
        owner += [text] * parts
    return Tokenised(ids, offsets), np.asarray(owner, np.int64)


def contextualise(
    pretrained: PretrainedEncoder,
    tokens: Tokenised,
    config: ContextConfig,
    *,
    progress: Progress | None = None,
) -> Contextual:
    """States and sentence embeddings of tokenised texts (or pieces), computed or from the cache.

    x_i = mean over widths of the mean over the windows w that hold i of u_w, with u_w the mean
    of the states in w (special tokens included), at unit length (pool="window"), or of the state
    of i in w (pool="token"). The target e(x) is the mean state of the last layer over the
    whole text at unit length (Sentence-BERT, Reimers and Gurevych 2019).

    Args:
      pretrained: encoder and tokenizer.
      tokens: without special tokens; none longer than the encoder's positions allow.
      config: where to look.
      progress: called with (windows done, windows in all).

    Raises:
      UserError: a window is longer than the encoder's positions; a layer that isn't there; a
        cache folder that can't be used.
    """
    layer = layer_index(config.layer, pretrained.config.num_layers)
    _check_length(pretrained, tokens, config)
    file = None
    if config.cache is not None:
        name = f"states-{_fingerprint(pretrained, tokens, config)}.npz"
        file = local_path(config.cache, "context.cache") / name
        found = _read(file, [len(i) for i in tokens.ids])
        if found is not None:
            return found
    plans = [
        (width, [spans(len(i), width, config.stride) for i in tokens.ids])
        for width in config.windows
    ]
    total = sum(len(s) for _, plan in plans for s in plan) + len(tokens.ids)
    count = _Counter(total, progress)
    d_model = pretrained.config.d_model
    states = [np.zeros((len(i), d_model), np.float32) for i in tokens.ids]
    for _, plan in plans:
        _add_states(pretrained, tokens.ids, plan, layer, config.pool, states, count)
    whole = [np.array([[0, len(i)]]) for i in tokens.ids]
    targets = np.zeros((len(tokens.ids), d_model), np.float32)
    last = pretrained.config.num_layers
    for text, _, _, mean_d, _ in _encoded(pretrained, tokens.ids, whole, last, count):
        targets[text] = mean_d
    result = Contextual([(x / len(plans)).astype(np.float16) for x in states], targets)
    if file is not None:
        _write(file, result)
    return result


def _add_states(
    pretrained: PretrainedEncoder,
    ids: Sequence[np.ndarray],
    plan: Sequence[np.ndarray],
    layer: int,
    pool: str,
    states: list[np.ndarray],
    count: "_Counter",
) -> None:
    """Add to each token's state its mean over one plan of windows."""
    held = [np.zeros((len(i), 1), np.float32) for i in ids]
    sums = [np.zeros_like(x) for x in states]
    for text, start, stop, mean_d, states_sd in _encoded(pretrained, ids, plan, layer, count):
        sums[text][start:stop] += mean_d if pool == "window" else states_sd
        held[text][start:stop] += 1
    for state, total, number in zip(states, sums, held, strict=True):
        state += total / np.maximum(number, 1)


def _encoded(
    pretrained: PretrainedEncoder,
    ids: Sequence[np.ndarray],
    plan: Sequence[np.ndarray],
    layer: int,
    count: "_Counter",
) -> Any:
    """Yield (text, start, stop, mean state at unit length, states) of every window of a plan."""
    prefix, suffix = special_ids(pretrained.tokenizer)
    windows = [(t, int(a), int(b)) for t, text in enumerate(plan) for a, b in text]
    windows.sort(key=lambda w: w[1] - w[2])
    graphdef, state = nnx.split(pretrained.model)
    extra = len(prefix) + len(suffix)
    most = next(rows for rows in _ROWS if len(windows) <= rows or rows == _ROWS[-1])
    first = 0
    while first < len(windows):
        length = _bucket(windows[first][2] - windows[first][1] + extra, pretrained)
        rows = max(1, min(most, 8192 // length))
        batch = windows[first : first + rows]
        first += rows
        ids_bs = np.full((rows, length), pretrained.config.pad_id, np.int32)
        where_bs = np.zeros((rows, length), bool)
        for row, (text, start, stop) in enumerate(batch):
            full = np.concatenate([prefix, ids[text][start:stop], suffix])
            ids_bs[row, : len(full)] = full
            where_bs[row, : len(full)] = True
        means, states = jax.device_get(_encode(graphdef, state, ids_bs, where_bs, layer))
        for row, (text, start, stop) in enumerate(batch):
            inner = states[row, len(prefix) : len(prefix) + stop - start]
            yield text, start, stop, means[row], inner
        count.add(len(batch))


@functools.partial(jax.jit, static_argnames=("graphdef", "layer"))
def _encode(
    graphdef: Any, state: Any, ids_bs: Array, where_bs: Array, layer: int
) -> tuple[Array, Array]:
    return pooled(nnx.merge(graphdef, state), ids_bs, where_bs, layer)


class _Counter:
    def __init__(self, total: int, progress: Progress | None):
        self.done, self.total, self.progress = 0, total, progress

    def add(self, number: int) -> None:
        self.done += number
        if self.progress is not None:
            self.progress(self.done, self.total)


def _bucket(length: int, pretrained: PretrainedEncoder) -> int:
    """Row length: few different ones, so that few programs are compiled."""
    step = 2 if length <= 34 else 16
    return min(-(-length // step) * step, pretrained.config.max_length)


def _check_length(pretrained: PretrainedEncoder, tokens: Tokenised, config: ContextConfig) -> None:
    prefix, suffix = special_ids(pretrained.tokenizer)
    room = pretrained.config.max_length - len(prefix) - len(suffix)
    longest = max([len(i) for i in tokens.ids], default=0)
    if max(longest, *config.windows) > room:
        raise UserError(
            f"context.max_tokens={config.max_tokens} (or a width in context.windows="
            f"{config.windows}) is more than the {room} tokens that the encoder takes"
        )


def _fingerprint(pretrained: PretrainedEncoder, tokens: Tokenised, config: ContextConfig) -> str:
    """A name for the states that changes with whatever they depend on."""
    digest = hashlib.sha256(
        repr((_VERSION, config.layer, config.windows, config.stride, config.pool)).encode()
    )
    for leaf in jax.tree.leaves(nnx.state(pretrained.model)):
        # A few numbers of every parameter tell one encoder from another.
        digest.update(np.asarray(leaf).reshape(-1)[:64].tobytes())
    for ids in tokens.ids:
        digest.update(np.int64(len(ids)).tobytes() + np.asarray(ids, np.int32).tobytes())
    return digest.hexdigest()[:24]


def _read(file: Path, lengths: list[int]) -> Contextual | None:
    """What a cache file holds; None if there is none or it is damaged."""
    try:
        # Opened here, because np.load leaves a file that is no zip open.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            states, targets = data["states"], data["targets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(states) != sum(lengths) or len(targets) != len(lengths):
        return None
    return Contextual(np.split(states, np.cumsum(lengths)[:-1]), targets)


def _write(file: Path, result: Contextual) -> None:
    """Into a hidden file that then takes the name: never half a cache."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".states-", suffix=".npz", dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, states=np.concatenate(result.states), targets=result.targets)
            os.replace(draft, file)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"context.cache: {file.parent} can't be written: {error}") from error
