"""One causal language model: dense (Llama) or with mixtures of experts (Mixtral, OLMoE, Qwen).

    output = model(ids_bs, where_bs)
    output.logits                   # [b s v] float32
    output.routing.expert           # [b s l k], l the layers with a mixture; None for dense models

What differs between architectures is a number or a flag of CausalConfig; nothing here looks at a
model's name.
"""

import functools
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_jax.gating import Routing, RoutingEdit
from moe_jax.layers import FeedForward, MoE
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.rotary import frequencies, rotate


class Cache(NamedTuple):
    """Keys and values of what has been read, with room for more. m slots, of which `used` are full.

    Attributes:
      keys: of each layer [b m h d], rotated.
      values: of each layer [b m h d].
      where: slots that hold a token, not padding [b m].
      used: how many slots are full, the same for all rows.
    """

    keys: tuple[Float[Array, "b m h d"], ...]
    values: tuple[Float[Array, "b m h d"], ...]
    where: Bool[Array, "b m"]
    used: Int[Array, ""]


class Output(NamedTuple):
    """What the model gives.

    Attributes:
      logits: of the next token [b s v] float32, or [b 1 v] of the last position alone.
      routing: of the layers with a mixture, in order: `expert` and `weight` [b s l k], `probs` and
        `logits` [b s l e]; None for a dense model.
      cache: with the new tokens in it; None if none was given.
      inputs: what the layers with a mixture read [b s l d], after their norm; None unless asked
        for, and for a dense model.
    """

    logits: Float[Array, "b s v"]
    routing: Routing | None
    cache: Cache | None
    inputs: Float[Array, "b s l d"] | None = None


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped key and value heads."""

    def __init__(self, config: CausalConfig, *, rngs: nnx.Rngs):
        """Make the parameters: matrices normal(0.02), biases 0, norms 1."""
        d, width = config.d_model, config.width_of_head
        dense = functools.partial(
            nnx.Linear,
            dtype=jnp.dtype(config.dtype),
            kernel_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        norm = functools.partial(nnx.RMSNorm, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)
        self.heads, self.kv_heads, self.width = config.num_heads, config.num_kv_heads, width
        self.window, self.clip, self.qk_norm = config.window, config.clip_qkv, config.qk_norm
        # Plain floats: constants of the program, not state.
        self.frequencies = tuple(frequencies(config.rope, width).tolist())
        self.q = dense(d, self.heads * width, use_bias=config.qkv_bias)
        self.k = dense(d, self.kv_heads * width, use_bias=config.qkv_bias)
        self.v = dense(d, self.kv_heads * width, use_bias=config.qkv_bias)
        self.out = dense(self.heads * width, d, use_bias=config.out_bias)
        sizes = {
            "none": None,
            "head": (width, width),
            "all": (self.heads * width, self.kv_heads * width),
        }
        both = sizes[config.qk_norm]
        self.q_norm = None if both is None else norm(both[0])
        self.k_norm = None if both is None else norm(both[1])

    def __call__(
        self,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        where: Bool[Array, "b m"],
        past: tuple[Float[Array, "b m h w"], Float[Array, "b m h w"]] | None,
        used: Int[Array, ""],
    ) -> tuple[Float[Array, "b s d"], tuple[Float[Array, "b m h w"], Float[Array, "b m h w"]]]:
        """Attend from the new positions to all that are full, and keep their keys and values.

        Args:
          x: states of the new positions.
          positions: their positions in the text, padding not counted.
          where: slots (m = s without a past) that hold a token.
          past: keys and values in slots, the new ones to be written from `used` on; or None.
          used: slots full before these; 0 without a past.

        Returns:
          [b s d], and the keys and values with the new ones.
        """
        q, k = self._normed(self.q(x), self.q_norm), self._normed(self.k(x), self.k_norm)
        v = self._clipped(self.v(x))
        b, s = positions.shape
        frequency = np.asarray(self.frequencies)
        q = rotate(q.reshape(b, s, self.heads, self.width), positions, frequency)
        k = rotate(k.reshape(b, s, self.kv_heads, self.width), positions, frequency)
        v = v.reshape(b, s, self.kv_heads, self.width)
        if past is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), used, axis=1)
                for old, new in zip(past, (k, v), strict=True)
            )
        slot, mine = jnp.arange(k.shape[1])[None], used + jnp.arange(s)[:, None]
        seen = slot <= mine
        if self.window is not None:
            seen = seen & (slot > mine - self.window)
        mixed = attend(q, k, v, seen[None] & where[:, None])
        return self.out(mixed.reshape(b, s, -1)), (k, v)

    def _clipped(self, x: Array) -> Array:
        return x if self.clip is None else jnp.clip(x, -self.clip, self.clip)

    def _normed(self, x: Float[Array, "b s c"], norm: nnx.RMSNorm | None) -> Float[Array, "b s c"]:
        """Norm, then clip: OLMoE's order."""
        if norm is None:
            return self._clipped(x)
        parts = x.reshape(*x.shape[:2], -1, self.width) if self.qk_norm == "head" else x
        return self._clipped(norm(parts).astype(x.dtype).reshape(x.shape))


def attend(
    q: Float[Array, "b s h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    mask: Bool[Array, "b s m"],
) -> Float[Array, "b s h d"]:
    """softmax(q k^T / sqrt(d)) v, the h query heads sharing g key heads in groups of neighbours.

    The softmax is float32. A position that sees nothing (padding) gets the mean of all values:
    finite, and without meaning.
    """
    b, s, h, d = q.shape
    q = q.reshape(b, s, k.shape[2], -1, d)
    scores = jnp.einsum("bsgrd,bmgd->bgrsm", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * d**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bgrsm,bmgd->bsgrd", weights, v).reshape(b, s, h, d)


class DecoderLayer(nnx.Module):
    """x = x + attention(norm(x)); x = x + ffn(norm(x)), ffn dense or a mixture of experts."""

    def __init__(self, config: CausalConfig, *, sparse: bool, rngs: nnx.Rngs):
        """Make the parameters; `sparse`: with a mixture."""
        norm = functools.partial(
            nnx.RMSNorm, config.d_model, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs
        )
        dtype, activation = jnp.dtype(config.dtype), config.activation
        self.attention_norm, self.ffn_norm = norm(), norm()
        self.attention = Attention(config, rngs=rngs)
        experts = config.experts
        if sparse and experts is not None:
            self.ffn: MoE | FeedForward = MoE(
                config.d_model,
                experts.d_expert,
                experts.gate,
                activation=activation,
                d_shared=experts.d_shared,
                shared_gate=experts.shared_gate,
                selection_bias=experts.selection_bias,
                dtype=dtype,
                options=experts.options,
                rngs=rngs,
            )
        else:
            self.ffn = FeedForward(
                config.d_model, config.d_ff, activation=activation, dtype=dtype, rngs=rngs
            )


class CausalLM(nnx.Module):
    """Embedding, decoder layers, norm, output layer.

    Parameters are float32 as made; a loader may hold them in another dtype. The gates' are always
    float32.
    """

    def __init__(self, config: CausalConfig, *, rngs: nnx.Rngs):
        """Make the parameters.

        Raises:
          UserError: the config is not valid.
        """
        config.validate()
        self.config = config
        normal = nnx.initializers.normal(0.02)
        self.token = nnx.Embed(config.vocab_size, config.d_model, embedding_init=normal, rngs=rngs)
        sparse = set(config.expert_layers)
        self.layers = nnx.List(
            DecoderLayer(config, sparse=i in sparse, rngs=rngs) for i in range(config.num_layers)
        )
        self.norm = nnx.RMSNorm(
            config.d_model, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs
        )
        self.out = (
            None
            if config.tie_embeddings
            else nnx.Linear(
                config.d_model, config.vocab_size, use_bias=False, kernel_init=normal, rngs=rngs
            )
        )

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache without a token.

        Args:
          rows: b.
          slots: m, the most tokens of a row, padding counted.
        """
        config = self.config
        shape = (rows, slots, config.num_kv_heads, config.width_of_head)
        dtype = jnp.dtype(config.dtype)

        def empty() -> tuple[Array, ...]:
            return tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers))

        return Cache(empty(), empty(), jnp.zeros((rows, slots), bool), jnp.int32(0))

    def __call__(
        self,
        ids: Int[Array, "b s"],
        where: Bool[Array, "b s"] | None = None,
        *,
        cache: Cache | None = None,
        edit: RoutingEdit | None = None,
        last_only: bool = False,
        mixture_inputs: bool = False,
    ) -> Output:
        """Read tokens, after those in the cache if one is given.

        Padding may stand before or after a text, never within it; it changes nothing that a token
        gets (to the rounding of another shape). With a cache pad before the text: all rows write
        to the same slots.

        Args:
          ids: token ids.
          where: True at tokens, False at padding; None: no padding.
          cache: of what came before; must have room for s more.
          edit: interventions on the gates, each leaf with a leading axis of the layers with a
            mixture: [l t ...] with t = b * s (or 1, the same for all tokens); `seed` is [l],
            `stand_in` [l e d].
          last_only: give the logits of the last position alone.
          mixture_inputs: give what the mixtures read.

        Returns:
          Logits, routing, cache, and the mixtures' inputs.

        Raises:
          ValueError: an edit for another number of layers, or for a dense model.
        """
        b, s = ids.shape
        where = jnp.ones((b, s), bool) if where is None else where
        self._check(edit)
        used, before, slots = jnp.int32(0), jnp.zeros(b, jnp.int32), where
        if cache is not None:
            used, before = cache.used, jnp.sum(cache.where, axis=1, dtype=jnp.int32)
            slots = jax.lax.dynamic_update_slice_in_dim(cache.where, where, used, axis=1)
        positions = jnp.maximum(before[:, None] + jnp.cumsum(where, axis=1, dtype=jnp.int32) - 1, 0)
        x = self.token(ids).astype(jnp.dtype(self.config.dtype))
        routings: list[Routing] = []
        inputs: list[Array] = []
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            past = None if cache is None else (cache.keys[i], cache.values[i])
            h = layer.attention_norm(x).astype(x.dtype)
            mixed, kept = layer.attention(h, positions, slots, past, used)
            x = x + mixed
            keys.append(kept[0])
            values.append(kept[1])
            h = layer.ffn_norm(x).astype(x.dtype)
            if isinstance(layer.ffn, FeedForward):
                x = x + layer.ffn(h)
                continue
            mine = None if edit is None else jax.tree.map(itemgetter(len(routings)), edit)
            y, routing = layer.ffn(h, edit=mine, where=where, segments=_rows(where))
            x = x + y
            routings.append(routing)
            if mixture_inputs:
                inputs.append(h)
        if last_only:
            x = x[:, -1:]
        logits = self._logits(self.norm(x))
        read = jnp.stack(inputs, axis=2) if inputs else None
        after = None if cache is None else Cache(tuple(keys), tuple(values), slots, used + s)
        return Output(logits, _stack(routings, b, s), after, read)

    def _logits(self, h: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        dtype = jnp.dtype(self.config.dtype)
        table = self.token.embedding[...].T if self.out is None else self.out.kernel[...]
        return jnp.matmul(h.astype(dtype), table.astype(dtype), preferred_element_type=jnp.float32)

    def _check(self, edit: RoutingEdit | None) -> None:
        if edit is None:
            return
        layers = len(self.config.expert_layers)
        if not layers:
            raise ValueError("edit given to a model without experts")
        if edit.tokens.ndim != 2 or edit.tokens.shape[0] != layers:
            raise ValueError(
                f"edit.tokens has shape {edit.tokens.shape}; every leaf must have a leading "
                f"axis of the {layers} layers with experts"
            )


def _rows(where: Bool[Array, "b s"]) -> Int[Array, "b s"]:
    """A capacity counts within each text."""
    return jnp.broadcast_to(jnp.arange(where.shape[0])[:, None], where.shape)


def _stack(routings: list[Routing], b: int, s: int) -> Routing | None:
    """Routings over t = b * s tokens of each layer as one, [b s l ...]."""
    if not routings:
        return None
    return jax.tree.map(lambda *a: jnp.stack([x.reshape(b, s, -1) for x in a], axis=2), *routings)
