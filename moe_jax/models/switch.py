"""Switch Transformer: T5's encoder and decoder with mixtures of experts, and their routing.

    output = model(input_ids_bs, where_bs, decoder_ids_bt)
    output.logits                       # [b t v] float32
    output.encoder_routing.expert       # [b s l 1], l the encoder's layers with a mixture
    output.decoder_routing.expert       # [b t l 1]; num_experts marks a token that was dropped

What is computed is what transformers computes as of 5.23 (5.0 to 5.17 ignored the capacity):

* the weight of an expert is its probability, not renormalised;
* a token that finds its expert full has no expert in this layer, only the residual connection;
* a capacity counts within a sequence, padding included (`router_ignore_padding_tokens` of a
  config.json is not read there, nor here): padding after a text takes nothing from it, padding
  before it may. Padding has experts of its own; mask it before counting usage;
* with a cache each piece that is read is counted by itself: one token at a time is never dropped,
  where the same tokens read at once may be.

Sources: Fedus et al. 2021 (Switch Transformers), Raffel et al. 2020 (T5).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from moe_jax.gating import Routing, RoutingEdit
from moe_jax.models.switch_config import SwitchConfig
from moe_jax.models.switch_layers import DecoderLayer, Layer, Stack


class Encoded(NamedTuple):
    """What the encoder gives.

    Attributes:
      states: [b s d].
      routing: [b s l ...]; None without a mixture.
    """

    states: Float[Array, "b s d"]
    routing: Routing | None


class Cache(NamedTuple):
    """What the decoder keeps: m slots for its own tokens, s positions of the source.

    Attributes:
      keys: of each layer's self-attention [b m h w].
      values: the same.
      source_keys: of each layer's cross-attention [b s h w].
      source_values: the same.
      where: slots that hold a token, not padding [b m].
      source_where: the source's tokens [b s].
      used: how many slots are full, the same for all rows.
    """

    keys: tuple[Float[Array, "b m h w"], ...]
    values: tuple[Float[Array, "b m h w"], ...]
    source_keys: tuple[Float[Array, "b s h w"], ...]
    source_values: tuple[Float[Array, "b s h w"], ...]
    where: Bool[Array, "b m"]
    source_where: Bool[Array, "b s"]
    used: Int[Array, ""]


class Decoded(NamedTuple):
    """What the decoder gives.

    Attributes:
      logits: of the next token [b t v] float32.
      routing: [b t l ...]; None without a mixture.
      cache: with the new tokens in it.
    """

    logits: Float[Array, "b t v"]
    routing: Routing | None
    cache: Cache


class Output(NamedTuple):
    """What the model gives.

    Attributes:
      logits: of the next token [b t v] float32.
      encoder_routing: `expert` and `weight` [b s l k], `probs` and `logits` [b s l e]; None where
        the encoder has no mixture.
      decoder_routing: the same of the decoder, t for s.
    """

    logits: Float[Array, "b t v"]
    encoder_routing: Routing | None
    decoder_routing: Routing | None


class SwitchTransformer(nnx.Module):
    """Embedding, encoder, decoder, output layer.

    Parameters are float32 as made; a loader may hold them in another dtype. The gates' are always
    float32. Where the gate has jitter, call `eval()` or give a key.
    """

    def __init__(self, config: SwitchConfig, *, rngs: nnx.Rngs):
        """Make the parameters.

        Raises:
          UserError: the config is not valid.
        """
        config.validate()
        self.config = config
        v, d = config.vocab_size, config.d_model

        def table() -> nnx.Embed:
            return nnx.Embed(v, d, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)

        self.token = table()
        self.decoder_token = None if config.tie_embeddings else table()
        self.encoder = Stack(config, decoder=False, rngs=rngs)
        self.decoder = Stack(config, decoder=True, rngs=rngs)
        small = nnx.initializers.normal(d**-0.5)
        self.out = (
            None
            if config.tie_embeddings
            else nnx.Linear(d, v, use_bias=False, kernel_init=small, rngs=rngs)
        )

    def __call__(
        self,
        input_ids: Int[Array, "b s"],
        where: Bool[Array, "b s"] | None,
        decoder_ids: Int[Array, "b t"],
        decoder_where: Bool[Array, "b t"] | None = None,
        *,
        edit_encoder: RoutingEdit | None = None,
        edit_decoder: RoutingEdit | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Output:
        """Read a source and a target whose first token is `config.start_id`.

        Args:
          input_ids: the source's token ids.
          where: True at its tokens, False at padding; None: no padding.
          decoder_ids: the target's token ids.
          decoder_where: as `where`.
          edit_encoder: interventions on the encoder's gates, each leaf with a leading axis of its
            layers with a mixture: [l n ...] with n = b * s (or 1, the same for all tokens).
          edit_decoder: the same for the decoder, n = b * t.
          key: of the gates' noise.

        Returns:
          Logits, and the routing of both stacks.

        Raises:
          ValueError: an edit for another number of layers, or jitter without a key.
        """
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        encoded = self.encode(input_ids, where, edit=edit_encoder, key=keys[0])
        cache = self.start(encoded.states, where, slots=decoder_ids.shape[1])
        decoded = self.decode(decoder_ids, cache, decoder_where, edit=edit_decoder, key=keys[1])
        return Output(decoded.logits, encoded.routing, decoded.routing)

    def encode(
        self,
        ids: Int[Array, "b s"],
        where: Bool[Array, "b s"] | None = None,
        *,
        edit: RoutingEdit | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Encoded:
        """Read the source; arguments as in a call of the model."""
        where = jnp.ones(ids.shape, bool) if where is None else where
        s = ids.shape[1]
        bias = self.encoder.position(jnp.arange(s), s)

        def attend(_: int, layer: Layer, x: Array) -> Array:
            h = layer.self_norm(x).astype(x.dtype)
            keys, values = layer.self_attention.keys_values(h)
            return x + layer.self_attention(h, keys, values, where[:, None], bias)

        x = self.token(ids).astype(jnp.dtype(self.config.dtype))
        return Encoded(*self.encoder(x, attend, edit=edit, key=key, name="edit_encoder"))

    def start(
        self,
        states: Float[Array, "b s d"],
        where: Bool[Array, "b s"] | None = None,
        *,
        slots: int,
    ) -> Cache:
        """A cache that holds the source and no token of the target.

        Args:
          states: the encoder's.
          where: the source's tokens; None: no padding.
          slots: m, the most tokens of a target, padding counted.
        """
        b, s = states.shape[:2]
        layers: list[Any] = list(self.decoder.layers)
        shape = (b, slots, self.config.num_heads, self.config.head_dim)
        empty = tuple(jnp.zeros(shape, states.dtype) for _ in layers)
        source = [layer.cross_attention.keys_values(states) for layer in layers]
        return Cache(
            keys=empty,
            values=tuple(jnp.zeros_like(a) for a in empty),
            source_keys=tuple(k for k, _ in source),
            source_values=tuple(v for _, v in source),
            where=jnp.zeros((b, slots), bool),
            source_where=jnp.ones((b, s), bool) if where is None else where,
            used=jnp.int32(0),
        )

    def decode(
        self,
        ids: Int[Array, "b t"],
        cache: Cache,
        where: Bool[Array, "b t"] | None = None,
        *,
        edit: RoutingEdit | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Decoded:
        """Read tokens of the target after those in the cache, which must have room for them."""
        where = jnp.ones(ids.shape, bool) if where is None else where
        used, m = cache.used, cache.where.shape[1]
        full = jax.lax.dynamic_update_slice_in_dim(cache.where, where, used, axis=1)
        mine = used + jnp.arange(ids.shape[1])
        seen = (jnp.arange(m)[None] <= mine[:, None])[None] & full[:, None]
        bias = self.decoder.position(mine, m)
        keys, values = [], []

        def attend(i: int, layer: DecoderLayer, x: Array) -> Array:
            h = layer.self_norm(x).astype(x.dtype)
            k, v = layer.self_attention.keys_values(h)
            keys.append(jax.lax.dynamic_update_slice_in_dim(cache.keys[i], k, used, axis=1))
            values.append(jax.lax.dynamic_update_slice_in_dim(cache.values[i], v, used, axis=1))
            x = x + layer.self_attention(h, keys[-1], values[-1], seen, bias)
            h = layer.cross_norm(x).astype(x.dtype)
            source = (cache.source_keys[i], cache.source_values[i])
            return x + layer.cross_attention(h, *source, cache.source_where[:, None])

        table = self.token if self.decoder_token is None else self.decoder_token
        x = table(ids).astype(jnp.dtype(self.config.dtype))
        x, routing = self.decoder(x, attend, edit=edit, key=key, name="edit_decoder")
        after = cache._replace(
            keys=tuple(keys), values=tuple(values), where=full, used=used + ids.shape[1]
        )
        return Decoded(self._logits(x), routing, after)

    def _logits(self, h: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        if self.out is None:
            h, table = h * self.config.d_model**-0.5, self.token.embedding[...].T
        else:
            table = self.out.kernel[...]
        return jnp.matmul(h, table.astype(h.dtype), preferred_element_type=jnp.float32)
