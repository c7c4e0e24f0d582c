"""Text made by a Switch Transformer from a source, with the routing of every token that was read.

found = generate_switch(model, [[5, 7, 9], [3]], max_new_tokens=20)
found[0].ids                            # new tokens, the one that stopped it included
found[0].decoder_routing.expert         # [n l k]: config.start_id first, then ids[:-1]

The sources are read once, together; then the decoder reads one token of each at a time.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from moe_jax.errors import UserError
from moe_jax.gating import Routing, RoutingEdit
from moe_jax.models.generate import ReadRouting
from moe_jax.models.generate_checks import Prompt, check_edit
from moe_jax.models.switch import Cache, SwitchTransformer
from moe_jax.models.switch_config import SwitchConfig
from moe_jax.models.switch_layers import check_edit as check_layers

# Sources and caches grow by this many positions, so that few programs are compiled.
_STRIDE = 32


class SwitchGeneration(NamedTuple):
    """What one source led to.

    Attributes:
      ids: new tokens [n], the one that stopped it included; n >= 1.
      finish: "stop", or "length" where max_new_tokens came first.
      encoder_routing: of the source's tokens, without padding; None without a mixture.
      decoder_routing: of the n tokens that the decoder read, config.start_id and ids[:-1].
    """

    ids: Int[np.ndarray, " n"]
    finish: Literal["stop", "length"]
    encoder_routing: ReadRouting | None
    decoder_routing: ReadRouting | None

    @property
    def content(self) -> Int[np.ndarray, " m"]:
        """The new tokens without a stop id."""
        return self.ids[:-1] if self.finish == "stop" else self.ids


def generate_switch(
    model: SwitchTransformer,
    sources: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] | None = None,
    edit_encoder: RoutingEdit | None = None,
    edit_decoder: RoutingEdit | None = None,
) -> list[SwitchGeneration]:
    """Greedy texts from sources, each as if it were alone.

    Gates have no noise here, whatever mode the model is in. A capacity counts within a source;
    the decoder reads one token at a time, so it never drops one.

    Args:
      model: the model; it is not changed.
      sources: token ids of each, of any lengths. (T5's end with the stop id.)
      max_new_tokens: most new tokens of a text.
      stop_ids: a text is done at the first of these; None: those of the config.
      edit_encoder: interventions on the encoder's gates. Each leaf is [l 1 ...], the same for
        all, or [l b ...], one for each source; `seed` is [l].
      edit_decoder: the same for the decoder. `seed` grows by 1 with each token.

    Returns:
      For each source its new tokens, why they end, and the routing.

    Raises:
      UserError: ids that the model does not have, or a wrong setting; the message names it.
        Logits that are not numbers.
      ValueError: an edit of the wrong shape.
    """
    config = model.config
    stops = frozenset(config.stop_ids if stop_ids is None else stop_ids)
    rows = _checked(sources, config, max_new_tokens, stops)
    for name, edit, layers in (
        ("edit_encoder", edit_encoder, config.encoder_layers),
        ("edit_decoder", edit_decoder, config.decoder_layers),
    ):
        check_layers(edit, len(layers), name)
        check_edit(name, edit, len(rows))
    if not rows:
        return []
    leaves, treedef = jax.tree.flatten(model)
    read, step = _programs(treedef)
    ids_bs, where_bs = _padded(rows, config.pad_id)
    cache, encoder = read(leaves, ids_bs, where_bs, edit_encoder, _rounded(max_new_tokens))
    ids_b = np.full(len(rows), config.start_id, np.int32)
    new: list[list[int]] = [[] for _ in rows]
    live = np.ones(len(rows), bool)
    routings = []
    for number in range(max_new_tokens):
        out = step(leaves, cache, ids_b, edit_decoder, np.uint32(number))
        cache = out.cache
        routings.append(out.routing)
        ids_b, finite = jax.device_get((out.ids, out.finite))
        for row in np.flatnonzero(live):
            if not finite[row]:
                raise UserError(
                    f"the model's logits are not numbers after {number} new tokens of source "
                    f"{row}: are its weights whole?"
                )
            new[row].append(int(ids_b[row]))
            live[row] = new[row][-1] not in stops
        if not live.any():
            break
    return _generations(rows, new, live, jax.device_get(encoder), jax.device_get(routings))


class _Step(NamedTuple):
    """Tokens chosen [b], whether their logits are numbers [b], and the routing [b 1 l ...]."""

    ids: Array
    finite: Array
    routing: ReadRouting | None
    cache: Cache


@functools.lru_cache(maxsize=8)
def _programs(treedef: Any) -> tuple[Callable[..., Any], Callable[..., _Step]]:
    """(read a source, read one token) for models of one structure, compiled once per shape."""

    def rebuilt(leaves: list[Array]) -> SwitchTransformer:
        model: SwitchTransformer = jax.tree.unflatten(treedef, leaves)
        model.eval()
        return model

    @functools.partial(jax.jit, static_argnames="slots")
    def read(
        leaves: list[Array],
        ids_bs: Array,
        where_bs: Array,
        edit: RoutingEdit | None,
        slots: int,
    ) -> tuple[Cache, Any]:
        model = rebuilt(leaves)
        encoded = model.encode(ids_bs, where_bs, edit=_for_positions(edit, ids_bs.shape[1]))
        return model.start(encoded.states, where_bs, slots=slots), _kept(encoded.routing)

    @functools.partial(jax.jit, donate_argnames="cache")
    def step(
        leaves: list[Array], cache: Cache, ids_b: Array, edit: RoutingEdit | None, number: Array
    ) -> _Step:
        if edit is not None:
            edit = edit._replace(seed=edit.seed + jnp.asarray(number).astype(edit.seed.dtype))
        out = rebuilt(leaves).decode(ids_b[:, None], cache, edit=edit)
        logits = out.logits[:, 0]
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        finite = jnp.isfinite(jnp.max(logits, axis=-1))
        return _Step(chosen, finite, _kept(out.routing), out.cache)

    return read, step


def _kept(routing: Routing | None) -> Any:
    return None if routing is None else (routing.expert, routing.weight, routing.probs)


def _for_positions(edit: RoutingEdit | None, s: int) -> RoutingEdit | None:
    """[l b ...] -> [l b*s ...]: the edit of a source at each of its positions."""
    if edit is None:
        return None
    fields = edit._asdict().items()
    return RoutingEdit(
        **{n: a if a.ndim < 2 or a.shape[1] == 1 else jnp.repeat(a, s, axis=1) for n, a in fields}
    )


def _generations(
    rows: list[np.ndarray],
    new: list[list[int]],
    live: np.ndarray,
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
            np.asarray(new[row], np.int32),
            "length" if live[row] else "stop",
            mine(encoder, row, len(source)),
            mine(decoder, row, len(new[row])),
        )
        for row, source in enumerate(rows)
    ]


def _checked(
    sources: Sequence[Prompt], config: SwitchConfig, max_new_tokens: int, stops: Collection[int]
) -> list[np.ndarray]:
    """The sources as arrays, or a UserError that names what is wrong."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    last = config.vocab_size - 1
    for i in stops:
        if not 0 <= i <= last:
            raise UserError(f"stop_ids: {i} is not one of the ids 0 to {last}")
    rows = [np.asarray(source) for source in sources]
    for i, row in enumerate(rows):
        if row.ndim == 1 and not len(row):
            raise UserError(f"source {i} is empty; give it a token")
        if row.ndim != 1 or row.dtype.kind not in "iu":
            raise UserError(f"source {i} must be a sequence of token ids, whole numbers")
        wrong = row[(row < 0) | (row > last)]
        if len(wrong):
            raise UserError(f"source {i} has the id {wrong[0]}; the model has 0 to {last}")
    return rows


def _rounded(length: int) -> int:
    return -(-length // _STRIDE) * _STRIDE


def _padded(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [b s] with padding after the texts, where it takes no expert's room from them."""
    s = _rounded(max(len(row) for row in rows))
    ids_bs = np.full((len(rows), s), pad_id, np.int32)
    for i, row in enumerate(rows):
        ids_bs[i, : len(row)] = row
    lengths = np.asarray([len(row) for row in rows])
    return ids_bs, np.arange(s)[None] < lengths[:, None]
