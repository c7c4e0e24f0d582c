"""Text made by a Switch Transformer from a source, with the routing of every token that was read.

found = generate_switch(model, [[5, 7, 9], [3]], max_new_tokens=20)
found[0].ids                            # new tokens, the one that stopped it included
found[0].decoder_routing.expert         # [n l k]: config.start_id first, then ids[:-1]

The sources are read once, together; then the decoder reads one token of each at a time.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.gating import Routing, RoutingEdit
from moe_jax.models.compiled import flat_model, per_structure
from moe_jax.models.generate import OnToken, ReadRouting
from moe_jax.models.generate_checks import (
    Decode,
    Prompt,
    check_edit,
    check_settings,
    checked_ids,
)
from moe_jax.models.new_texts import NewTexts
from moe_jax.models.rows import for_positions, rounded
from moe_jax.models.switch import Cache, SwitchTransformer
from moe_jax.models.switch_layers import check_edit as check_layers


class SwitchGeneration(NamedTuple):
    """What one source led to.

    Attributes:
      ids: new tokens [n], the one that stopped it included; n >= 1.
      logprob: of each under the model's softmax [n].
      finish: "stop", or "length" where max_new_tokens came first.
      stopped_by: the stop id or stop text; None with "length".
      encoder_routing: of the source's tokens, without padding; None without a mixture.
      decoder_routing: of the n tokens that the decoder read, config.start_id and ids[:-1].
    """

    ids: Int[np.ndarray, " n"]
    logprob: Float[np.ndarray, " n"]
    finish: Literal["stop", "length"]
    stopped_by: int | str | None
    encoder_routing: ReadRouting | None
    decoder_routing: ReadRouting | None

    @property
    def content(self) -> Int[np.ndarray, " m"]:
        """The new tokens without a stop id; a stop text stays."""
        return self.ids[:-1] if isinstance(self.stopped_by, int) else self.ids


def generate_switch(
    model: SwitchTransformer,
    sources: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] | None = None,
    stop_texts: Sequence[str] = (),
    decode: Decode | None = None,
    edit_encoder: RoutingEdit | None = None,
    edit_decoder: RoutingEdit | None = None,
    on_token: OnToken | None = None,
) -> list[SwitchGeneration]:
    """Greedy texts from sources, each as if it were alone.

    Gates have no noise here, whatever mode the model is in. A capacity counts within a source;
    the decoder reads one token at a time, so it never drops one.

    Args:
      model: the model; it is not changed.
      sources: token ids of each, of any lengths. (T5's end with the stop id.)
      max_new_tokens: most new tokens of a text.
      stop_ids: a text is done at the first of these; None: those of the config.
      stop_texts: a text is done at the first token that completes one of these; see `generate`.
      decode: gives the text of new tokens; needed for stop_texts; see `generate`.
      edit_encoder: interventions on the encoder's gates. Each leaf is [l 1 ...], the same for
        all, or [l b ...], one for each source; `seed` is [l].
      edit_decoder: the same for the decoder. `seed` grows by 1 with each token.
      on_token: called after each step, as by `generate`.

    Returns:
      For each source its new tokens, why they end, and the routing.

    Raises:
      UserError: ids that the model does not have, or a wrong setting; the message names it.
        Logits that are not numbers.
      ValueError: an edit of the wrong shape, stop_texts without decode.
    """
    config = model.config
    stops = frozenset(config.stop_ids if stop_ids is None else stop_ids)
    check_settings(config.vocab_size, max_new_tokens, stops, stop_texts, decode, config.pad_id)
    rows = [checked_ids(f"source {i}", s, config.vocab_size) for i, s in enumerate(sources)]
    for name, edit, layers in (
        ("edit_encoder", edit_encoder, config.encoder_layers),
        ("edit_decoder", edit_decoder, config.decoder_layers),
    ):
        check_layers(edit, len(layers), name)
        check_edit(name, edit, len(rows))
    if not rows:
        return []
    flat = flat_model(model)
    read, step = _read.of(flat), _decode.of(flat)
    ids_bs, where_bs = _padded(rows, config.pad_id)
    cache, encoder = read(ids_bs, where_bs, edit_encoder, rounded(max_new_tokens))
    ids_b = np.full(len(rows), config.start_id, np.int32)
    texts = NewTexts("source", len(rows), stops, tuple(stop_texts), decode)
    routings = []
    for number in range(max_new_tokens):
        out = step(cache, ids_b, edit_decoder, np.uint32(number))
        cache = out.cache
        routings.append(out.routing)
        ids_b, logprob = jax.device_get((out.ids, out.logprob))
        shown = texts.add(ids_b, logprob)
        if on_token is not None:
            on_token(number, shown)
        if not texts.live.any():
            break
    return _generations(rows, texts, jax.device_get(encoder), jax.device_get(routings))


class _Step(NamedTuple):
    """Tokens chosen [b], their log-probabilities [b], and the routing [b 1 l ...]."""

    ids: Array
    logprob: Array
    routing: ReadRouting | None
    cache: Cache


@per_structure(static_argnames="slots")
def _read(
    model: SwitchTransformer,
    ids_bs: Array,
    where_bs: Array,
    edit: RoutingEdit | None,
    slots: int,
) -> tuple[Cache, Any]:
    """Read the sources: the decoder's cache, and the encoder's routing."""
    encoded = model.encode(ids_bs, where_bs, edit=for_positions(edit, where_bs))
    return model.start(encoded.states, where_bs, slots=slots), _kept(encoded.routing)


@per_structure(donate_argnames="cache")
def _decode(
    model: SwitchTransformer, cache: Cache, ids_b: Array, edit: RoutingEdit | None, number: Array
) -> _Step:
    """Read one token of each text, and choose the next."""
    if edit is not None:
        edit = edit._replace(seed=edit.seed + jnp.asarray(number).astype(edit.seed.dtype))
    out = model.decode(ids_b[:, None], cache, edit=edit)
    logits = out.logits[:, 0]
    chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logprob = jnp.max(jax.nn.log_softmax(logits), axis=-1)
    return _Step(chosen, logprob, _kept(out.routing), out.cache)


def _kept(routing: Routing | None) -> Any:
    return None if routing is None else (routing.expert, routing.weight, routing.probs)


def _generations(
    rows: list[np.ndarray],
    texts: NewTexts,
    encoder: tuple[np.ndarray, ...] | None,
    steps: list[tuple[np.ndarray, ...] | None],
) -> list[SwitchGeneration]:
    """Cut what belongs to each source."""
    decoder = None
    if steps[0] is not None:
        decoder = jax.tree.map(lambda *a: np.concatenate(a, axis=1), *steps)

    def mine(routing: tuple[np.ndarray, ...] | None, row: int, count: int) -> ReadRouting | None:
        return None if routing is None else ReadRouting(*(a[row, :count] for a in routing))

    return [
        SwitchGeneration(
            *texts.row(row),
            mine(encoder, row, len(source)),
            mine(decoder, row, len(texts.ids[row])),
        )
        for row, source in enumerate(rows)
    ]


def _padded(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [b s] with padding after the texts, where it takes no expert's room from them."""
    s = rounded(max(len(row) for row in rows))
    ids_bs = np.full((len(rows), s), pad_id, np.int32)
    for i, row in enumerate(rows):
        ids_bs[i, : len(row)] = row
    lengths = np.asarray([len(row) for row in rows])
    return ids_bs, np.arange(s)[None] < lengths[:, None]
