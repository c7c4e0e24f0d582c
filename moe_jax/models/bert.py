"""Bidirectional Transformer encoders of the BERT family, in one module.

BERT, MiniLM, DistilBERT, RoBERTa, CodeBERT and XLM-RoBERTa are the same network; what differs
is a number or two in EncoderConfig (where positions start, how many token types there are, the
activation, epsilon). Nothing here looks at a model's name.

Source: Devlin et al. 2018 (BERT), Sanh et al. 2019 (DistilBERT), Liu et al. 2019 (RoBERTa).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_jax.common.checks import number, one_of, setting, whole, wrong

# The exact gelu is the one BERT was trained with; the tanh form differs by up to 5e-4.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(kw_only=True)
class EncoderConfig:
    """The numbers that tell the members of the BERT family apart.

    Attributes:
      vocab_size: rows of the token embedding table.
      d_model: width of the states.
      num_layers: Transformer layers.
      num_heads: attention heads; divides d_model.
      d_ff: width of the feed-forward layers.
      num_positions: rows of the position table, those before position_offset included.
      position_offset: table row of a text's first token: 0 for BERT, the padding id + 1 for
        RoBERTa (whose tables keep unused rows for padding).
      num_token_types: rows of the token type table; 0 for a model that has none (DistilBERT).
      activation: "gelu" (exact), "gelu_tanh", "relu" or "silu".
      norm_eps: epsilon of every layer norm.
      pad_id: id that fills masked positions; it has no effect on the others' states.
      dtype: what the layers compute in; the parameters stay float32, layer norms and softmax too.
    """

    vocab_size: int = 30522
    d_model: int = 384
    num_layers: int = 6
    num_heads: int = 12
    d_ff: int = 1536
    num_positions: int = 512
    position_offset: int = 0
    num_token_types: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_id: int = 0
    dtype: str = "float32"

    @property
    def max_length(self) -> int:
        """The most tokens (special ones included) that one row can hold."""
        return self.num_positions - self.position_offset

    def validate(self, path: str = "") -> None:
        """Checks every field.

        Raises:
          UserError: a field is out of range; the message names it.
        """
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff"):
            whole(path, name, getattr(self, name), 1)
        for name in ("num_positions", "position_offset", "num_token_types", "pad_id"):
            whole(path, name, getattr(self, name), 0)
        if self.d_model % self.num_heads:
            width = setting(path, "d_model", self.d_model)
            raise wrong(path, "num_heads", self.num_heads, f"divide {width}")
        if self.max_length < 1:
            offset = setting(path, "position_offset", self.position_offset)
            must = f"leave a row after {offset}"
            raise wrong(path, "num_positions", self.num_positions, must)
        number(path, "norm_eps", self.norm_eps, above=0)
        one_of(path, "activation", self.activation, ACTIVATIONS)
        one_of(path, "dtype", self.dtype, ("float32", "bfloat16", "float16"))


def _norm(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The two-pass variance: E[x^2] - E[x]^2 would lose the digits that parity needs.
    return nnx.LayerNorm(
        config.d_model, epsilon=config.norm_eps, use_fast_variance=False, rngs=rngs
    )


class EncoderLayer(nnx.Module):
    """One post-norm layer: x = norm(x + attention(x)); x = norm(x + ffn(x))."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        dense = functools.partial(
            nnx.Linear,
            dtype=jnp.dtype(config.dtype),
            kernel_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.num_heads = config.num_heads
        self.activation = config.activation
        # One GEMM makes queries, keys and values; columns in that order.
        self.qkv = dense(config.d_model, 3 * config.d_model)
        self.attention_out = dense(config.d_model, config.d_model)
        self.attention_norm = _norm(config, rngs)
        self.ffn_in = dense(config.d_model, config.d_ff)
        self.ffn_out = dense(config.d_ff, config.d_model)
        self.ffn_norm = _norm(config, rngs)

    def __call__(
        self, x_td: Float[Array, "t d"], mask_bqk: Bool[Array, "b s s"] | Bool[Array, "b 1 s"]
    ) -> Float[Array, "t d"]:
        """Maps the states of b rows of s positions, t = b * s.

        Args:
          x_td: states, rows flattened so that the GEMMs are large and two-dimensional.
          mask_bqk: True where position q may attend to position k of the same row.

        Returns:
          [t d] new states.
        """
        b, s = mask_bqk.shape[0], mask_bqk.shape[2]
        qkv = self.qkv(x_td).reshape(b, s, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        mixed_bshd = attention(qkv[0], qkv[1], qkv[2], mask_bqk).transpose(0, 2, 1, 3)
        x_td = self.attention_norm(x_td + self.attention_out(mixed_bshd.reshape(x_td.shape)))
        hidden_tf = ACTIVATIONS[self.activation](self.ffn_in(x_td))
        return self.ffn_norm(x_td + self.ffn_out(hidden_tf))


def attention(
    query_bhsd: Float[Array, "b h s d"],
    key_bhsd: Float[Array, "b h s d"],
    value_bhsd: Float[Array, "b h s d"],
    mask_bqk: Bool[Array, "b s s"] | Bool[Array, "b 1 s"],
) -> Float[Array, "b h s d"]:
    """softmax(q k^T / sqrt(d)) v for each head, over the positions that the mask allows.

    The softmax runs in float32 and is divided by its sum after the product with the values,
    which are narrower than the weights. A position that may attend to nothing gets the mean of
    all values (finite, and without meaning).
    """
    scale = query_bhsd.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bhqd,bhkd->bhqk", query_bhsd * scale, key_bhsd, preferred_element_type=jnp.float32
    )
    logits = jnp.where(mask_bqk[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    sums = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value_bhsd.dtype), value_bhsd)
    return (mixed / sums).astype(value_bhsd.dtype)


class Encoder(nnx.Module):
    """A BERT-family encoder without pooler or heads. No dropout: it gives the test-time states.

    Args:
      config: its shape; validated here.
      rngs: `params` stream for the initial weights (normal, 0.02).
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        config.validate()
        table = functools.partial(
            nnx.Embed,
            features=config.d_model,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.position_offset = config.position_offset
        self.max_length = config.max_length
        self.token = table(config.vocab_size)
        self.position = table(config.num_positions)
        self.token_type = table(config.num_token_types) if config.num_token_types else None
        self.norm = _norm(config, rngs)
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.num_layers)])

    def __call__(
        self,
        ids_bs: Int[Array, "b s"],
        where_bs: Bool[Array, "b s"],
        token_types_bs: Int[Array, "b s"] | None = None,
        *,
        segments_bs: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """States after the last layer.

        Args:
          ids_bs: token ids, special tokens included.
          where_bs: True at tokens, False at padding.
          token_types_bs: type of each token (BERT's sentence A or B); None means 0 everywhere.
          segments_bs: for rows that hold several texts, the number of each position's text.
            A token then attends only to its own text, and positions count from that text's
            first token: each text gets the states that it gets alone. None means one text a row.

        Returns:
          [b s d] float32 states; at padding they are finite and mean nothing.

        Raises:
          ValueError: more positions than the encoder has, or token types it does not have.
        """
        return self.hidden_states(ids_bs, where_bs, token_types_bs, segments_bs=segments_bs)[-1]

    def hidden_states(
        self,
        ids_bs: Int[Array, "b s"],
        where_bs: Bool[Array, "b s"],
        token_types_bs: Int[Array, "b s"] | None = None,
        *,
        segments_bs: Int[Array, "b s"] | None = None,
    ) -> tuple[Float[Array, "b s d"], ...]:
        """Embeddings and the states after every layer: num_layers + 1 arrays [b s d], float32.

        Arguments and errors are those of `__call__`. Under jit, layers that nothing reads cost
        nothing.
        """
        b, s = ids_bs.shape
        if s > self.max_length:
            raise ValueError(f"{s} positions are more than the encoder's {self.max_length}")
        positions_bs = jnp.arange(s)[None]
        mask_bqk = where_bs[:, None, :]
        if segments_bs is not None:
            positions_bs = positions_bs - _starts(segments_bs)
            mask_bqk = mask_bqk & (segments_bs[:, :, None] == segments_bs[:, None, :])
        x_bsd = self.token(ids_bs) + self.position(self.position_offset + positions_bs)
        if self.token_type is not None:
            types = jnp.zeros_like(ids_bs) if token_types_bs is None else token_types_bs
            x_bsd = x_bsd + self.token_type(types)
        elif token_types_bs is not None:
            raise ValueError("token_types_bs was given to an encoder without token types")
        states = [self.norm(x_bsd).reshape(b * s, -1)]
        for layer in self.layers:
            states.append(layer(states[-1], mask_bqk))
        return tuple(x.reshape(b, s, -1) for x in states)


def _starts(segments_bs: Int[Array, "b s"]) -> Int[Array, "b s"]:
    """Position in the row at which each position's text starts."""
    index_bs = jnp.broadcast_to(jnp.arange(segments_bs.shape[1])[None], segments_bs.shape)
    first_bs = jnp.pad(segments_bs[:, 1:] != segments_bs[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(first_bs, index_bs, 0), axis=1)
