"""The layers of a Switch Transformer's encoder and decoder, and what walks through them."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from moe_jax.gating import Routing, RoutingEdit
from moe_jax.layers import FeedForward, MoE
from moe_jax.models.switch_config import SwitchConfig
from moe_jax.models.t5_attention import Attention, PositionBias

# (layer's index from 0, the layer, states [b s d]) -> states after its attention.
Attend = Callable[[int, Any, Array], Array]


class Layer(nnx.Module):
    """x = x + self-attention(norm(x)); x = x + ffn(norm(x)).

    Norms are RMS norms without a mean; ffn is act(x W_in) W_out, or a mixture of such experts.
    """

    def __init__(self, config: SwitchConfig, *, sparse: bool, rngs: nnx.Rngs):
        """Make the parameters; `sparse`: with a mixture."""
        dtype = jnp.dtype(config.dtype)
        d = config.d_model
        self.self_norm, self.ffn_norm = norm_of(config, rngs=rngs), norm_of(config, rngs=rngs)
        self.self_attention = attention_of(config, rngs=rngs)
        if sparse:
            self.ffn: MoE | FeedForward = MoE(
                d,
                config.d_ff,
                config.gate,
                glu=False,
                activation=config.activation,
                router_bias=config.router_bias,
                dtype=dtype,
                options=config.options,
                rngs=rngs,
            )
        else:
            self.ffn = FeedForward(
                d, config.d_ff, glu=False, activation=config.activation, dtype=dtype, rngs=rngs
            )


class DecoderLayer(Layer):
    """The same with x = x + cross-attention(norm(x)) to the source after the self-attention."""

    def __init__(self, config: SwitchConfig, *, sparse: bool, rngs: nnx.Rngs):
        """Make the parameters; `sparse`: with a mixture."""
        super().__init__(config, sparse=sparse, rngs=rngs)
        self.cross_norm = norm_of(config, rngs=rngs)
        self.cross_attention = attention_of(config, rngs=rngs)


class Stack(nnx.Module):
    """Layers, the bias of relative positions that all of them share, and the norm at the end."""

    def __init__(self, config: SwitchConfig, *, decoder: bool, rngs: nnx.Rngs):
        """Make the parameters of the encoder or the decoder."""
        layers = config.num_decoder_layers if decoder else config.num_layers
        sparse = config.decoder_layers if decoder else config.encoder_layers
        self.position = PositionBias(
            config.num_heads,
            both_sides=not decoder,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
            std=config.d_model**-0.5,
            rngs=rngs,
        )
        kind = DecoderLayer if decoder else Layer
        self.layers = nnx.List(kind(config, sparse=i in sparse, rngs=rngs) for i in range(layers))
        self.norm = norm_of(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        attend: Attend,
        *,
        edit: RoutingEdit | None,
        key: PRNGKeyArray | None,
        name: str,
    ) -> tuple[Float[Array, "b s d"], Routing | None]:
        """Walk through the layers.

        A capacity counts within each row, in order of position, and padding counts: as in
        transformers. So padding after a text takes nothing from it; padding before it may.

        Args:
          x: embedded tokens.
          attend: does the attentions of a layer, residual connections included.
          edit: on the gates, with a leading axis of the layers that have one.
          key: of the gates' noise; each layer's is folded in.
          name: of `edit`, for messages.

        Returns:
          Normed states in the dtype of x, and the routing [b s l ...] (None without a mixture).
        """
        b, s = x.shape[:2]
        check_edit(edit, sum(isinstance(layer.ffn, MoE) for layer in self.layers), name)
        rows = jnp.broadcast_to(jnp.arange(b)[:, None], (b, s))
        routings: list[Routing] = []
        for i, layer in enumerate(self.layers):
            x = attend(i, layer, x)
            h = layer.ffn_norm(x).astype(x.dtype)
            if isinstance(layer.ffn, FeedForward):
                x = x + layer.ffn(h)
                continue
            mine = None if edit is None else jax.tree.map(itemgetter(len(routings)), edit)
            noise = None if key is None else jax.random.fold_in(key, i)
            y, routing = layer.ffn(h, edit=mine, key=noise, segments=rows)
            x = x + y
            routings.append(routing)
        x = self.norm(x).astype(x.dtype)
        if not routings:
            return x, None
        stack = [jax.tree.map(lambda a: a.reshape(b, s, -1), r) for r in routings]
        return x, jax.tree.map(lambda *a: jnp.stack(a, axis=2), *stack)


def attention_of(config: SwitchConfig, *, rngs: nnx.Rngs) -> Attention:
    """An attention between states."""
    return Attention(
        config.d_model,
        config.num_heads,
        config.head_dim,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def norm_of(config: SwitchConfig, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """An RMS norm of the states, in float32."""
    return nnx.RMSNorm(config.d_model, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)


def check_edit(edit: RoutingEdit | None, layers: int, name: str) -> None:
    """Checks the leading axis of an edit.

    Raises:
      ValueError: it is not that of the layers with a mixture.
    """
    if edit is None:
        return
    if not layers:
        raise ValueError(f"{name} given, but that stack has no layer with experts")
    if edit.tokens.ndim != 2 or edit.tokens.shape[0] != layers:
        raise ValueError(
            f"{name}.tokens has shape {edit.tokens.shape}; every leaf must have a leading axis of "
            f"the {layers} layers with experts"
        )
