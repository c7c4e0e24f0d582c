"""The compiled halves of scoring: options after a context, and whole texts.

Both take a model and every array of a batch, padded; see score.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.gating import RoutingEdit
from moe_jax.gating.edit import WITHOUT_TOKENS
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.compiled import per_structure
from moe_jax.models.rows import for_positions, has_positions


class TextsRead(NamedTuple):
    """A batch of texts: the last tokens' log-probabilities [b r], the routing [b s l k]."""

    logp: Float[Array, "b r"]
    expert: Int[Array, "b s l k"] | None
    weight: Float[Array, "b s l k"] | None
    vocabulary: Float[Array, "b r v"] | None


@per_structure()
def option_logp(
    model: CausalLM,
    ids_bs: Array,
    where_bs: Array,
    edit: RoutingEdit | None,
    on_bs: Array,
    ids_bor: Array,
    length_bo: Array,
    edit_options: RoutingEdit | None,
) -> Array:
    """Log-probabilities [b o] of options after contexts, each context read once."""
    b, o, r = ids_bor.shape
    out = model(
        ids_bs,
        where_bs,
        cache=model.empty_cache(b, ids_bs.shape[1] + r - 1),
        edit=for_positions(edit, on_bs),
        last_only=True,
    )
    said_bv = jax.nn.log_softmax(out.logits[:, -1])
    logp_bo = jnp.take_along_axis(said_bv, ids_bor[:, :, 0], axis=1)
    if r == 1:
        return logp_bo
    ids, read = (
        ids_bor.reshape(b * o, r),
        jnp.arange(r - 1)[None, None] < length_bo[..., None] - 1,
    )
    out = model(
        ids[:, :-1],
        read.reshape(b * o, r - 1),
        cache=jax.tree.map(lambda a: jnp.repeat(a, o, axis=0) if a.ndim else a, out.cache),
        edit=for_positions(_for_options(edit_options, o), read.reshape(b, -1)),
    )
    later = _of_tokens(jax.nn.log_softmax(out.logits), ids[:, 1:]).reshape(b, o, r - 1)
    return logp_bo + jnp.sum(jnp.where(read, later, 0), axis=-1)


@per_structure(static_argnames=("last", "full"))
def read_rows(
    model: CausalLM,
    ids_bs: Array,
    where_bs: Array,
    edit: RoutingEdit | None,
    on_bs: Array,
    last: int,
    full: bool,
) -> TextsRead:
    """Read whole rows; log-probabilities of their last `last` tokens, `full`: of all others too."""
    out = model(ids_bs, where_bs, edit=for_positions(edit, on_bs))
    start = ids_bs.shape[1] - last
    said_brv = jax.nn.log_softmax(out.logits[:, start - 1 : -1])
    r = out.routing
    return TextsRead(
        _of_tokens(said_brv, ids_bs[:, start:]),
        None if r is None else r.expert,
        None if r is None else r.weight,
        said_brv if full else None,
    )


def _for_options(edit: RoutingEdit | None, options: int) -> RoutingEdit | None:
    """The edit of a context's option as that of all its options, one after the other."""
    if edit is None or not has_positions(edit):
        return edit

    def repeated(name: str, a: Array) -> Array:
        if name in WITHOUT_TOKENS or a.shape[2] == 1:
            return a
        return jnp.concatenate([a] * options, axis=2)

    return RoutingEdit(**{name: repeated(name, a) for name, a in edit._asdict().items()})


def _of_tokens(said: Float[Array, "b s v"], ids: Int[Array, "b s"]) -> Float[Array, "b s"]:
    return jnp.take_along_axis(said, ids[..., None], axis=-1)[..., 0]
