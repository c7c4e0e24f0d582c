"""The token-to-factor model: states -> gate -> factors -> reconstruction (docs/rationale.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_jax.gating import GateConfig, Routing, gate_logits, route
from moe_jax.layers import Gate
from moe_jax.rationale import smoothing
from moe_jax.rationale.config import ModelConfig

_EPS = 1e-6


class Statistic(nnx.Variable):
    """A number measured on the training texts before step 0; no optimizer touches it."""


class RationaleOutput(NamedTuple):
    """What the model makes of a batch of texts.

    Attributes:
      probs: [b s e] pi, the probability of each factor for each token; rows sum to 1, padding 0.
      assignment: the gate's decision over the flattened tokens, [b*s ...]; padding has no factor.
      factors: [b e f] the factor embeddings z~_k.
      predicted: [b d] e_hat, the reconstructed sentence embedding.
      states: [b s d] h, the token states as the gate saw them; padding 0.
      decoded: [b s d] h_hat, or None without a decoder.
    """

    probs: Float[Array, "b s e"]
    assignment: Routing
    factors: Float[Array, "b e f"]
    predicted: Float[Array, "b d"]
    states: Float[Array, "b s h"]
    decoded: Float[Array, "b s h"] | None


class RationaleModel(nnx.Module):
    r"""The token-to-factor model on given token states (docs/rationale.md).

        h_i      = (x_i - mean) / ||x_i - mean||           (`centre`; else h_i = x_i)
        pi_i     = softmax(smooth(W_g h / temperature + L[word]))_i
        z_k      = sum_i a_ik h_i, normalised as configured; a = pi, or its k largest rescaled
        z~_k     = f_k(z_k)
        e_hat    = mean_e + sum_k V_k z~_k
        h_hat_i  = g(sum_k a_ik z~_k)

    L[word] is the gate's weight of the token's own word: W_g on (state, one-hot word) in place of
    the state alone. mean and mean_e are `Statistic`s, measured by `RationaleTask.prepare` and
    saved in checkpoints: 0 until then.

    Args:
      config: its shape.
      d_model: width of h.
      d_target: width of the sentence embedding e(x).
      vocab_size: rows of L; not used with `config.words` 0.
      rngs: `params` stream.
    """

    def __init__(
        self, config: ModelConfig, d_model: int, d_target: int, vocab_size: int, *, rngs: nnx.Rngs
    ):
        e, f = config.num_factors, config.factor_dim or d_model
        self.normalise, self.smoothing, self.width = (
            config.normalise,
            config.smoothing,
            config.width,
        )
        self.centre, self.temperature = config.centre, config.temperature
        sparse = 0 < config.k < e
        self.gate = Gate(
            d_model,
            GateConfig(num_experts=e, k=config.k if sparse else e, renormalise=sparse),
            rngs=rngs,
        )
        self.transform = (
            None if config.transform == "none" else Transform(config, d_model, f, rngs=rngs)
        )
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))
        self.v_efd = nnx.Param(init(rngs.params(), (e, f, d_target), jnp.float32))
        self.decoder = (
            None if config.decoder == "none" else Decoder(config.decoder, f, d_model, rngs=rngs)
        )
        self.stay_logit = (
            nnx.Param(jnp.log(config.stay / (1 - config.stay)).astype(jnp.float32))
            if config.smoothing == "markov"
            else None
        )
        self.words_ve = nnx.Param(jnp.zeros((vocab_size, e), jnp.float32)) if config.words else None
        self.state_mean_d = Statistic(jnp.zeros(d_model, jnp.float32))
        self.target_mean_d = Statistic(jnp.zeros(d_target, jnp.float32))

    def __call__(
        self,
        states: Float[Array, "b s d"],
        where: Bool[Array, "b s"],
        ids: Int[Array, "b s"] | None = None,
    ) -> RationaleOutput:
        """Assign tokens to factors and reconstruct the sentence embedding.

        Args:
          states: contextual token states x [b s d]; what padding holds makes no difference.
          where: real tokens [b s], first in each row.
          ids: the tokens' words [b s]; needed with `config.words` above 0.

        Raises:
          ValueError: the model weighs words, and got no ids.
        """
        b, s, _ = states.shape
        h = self.standardised(states, where)
        routing = self._route(h, where, ids)
        probs = jnp.where(where[..., None], routing.probs.reshape(b, s, -1), 0)
        share = self._share(routing, probs)
        z = self._factors(share, h, where)
        predicted = self._predicted(z)
        decoded = None
        if self.decoder is not None:
            decoded = self.decoder(jnp.einsum("bse,bef->bsf", share, z))
        return RationaleOutput(probs, routing, z, predicted, h, decoded)

    def reconstruct(self, out: RationaleOutput, keep: Bool[Array, "b s"]) -> Float[Array, "b d"]:
        """e_hat from some of the tokens, with the gate's decision unchanged.

        Args:
          out: of the whole texts.
          keep: the tokens whose states go into the factors.
        """
        share = self._share(out.assignment, out.probs) * keep[..., None]
        real = jnp.any(out.probs > 0, axis=-1)
        return self._predicted(self._factors(share, out.states, keep & real))

    def standardised(
        self, states: Float[Array, "b s d"], where: Bool[Array, "b s"]
    ) -> Float[Array, "b s h"]:
        """h: minus the training mean, at unit length (as configured); padding 0."""
        x = jnp.where(where[..., None], states.astype(jnp.float32), 0)
        if self.centre:
            x = unit(x - self.state_mean_d[...][None, None])
        return jnp.where(where[..., None], x, 0)

    def _route(
        self,
        h: Float[Array, "b s d"],
        where: Bool[Array, "b s"],
        ids: Int[Array, "b s"] | None,
    ) -> Routing:
        b, s, d = h.shape
        logits = gate_logits(h.reshape(b * s, d), self.gate.w_de[...]) / self.temperature
        logits = logits.reshape(b, s, -1)
        if self.words_ve is not None:
            if ids is None:
                raise ValueError("ids=None, but this model weighs words: pass the token ids [b s]")
            logits = logits + self.words_ve[...][jnp.where(where, ids, 0)]
        if self.smoothing == "gaussian":
            logits = smoothing.gaussian(logits, where, self.width)
        elif self.stay_logit is not None:
            logits = smoothing.markov(logits, where, jax.nn.sigmoid(self.stay_logit[...]))
        return route(
            logits.reshape(b * s, -1),
            self.gate.config,
            where=where.reshape(-1),
            deterministic=True,
        )

    def _share(self, routing: Routing, probs: Float[Array, "b s e"]) -> Float[Array, "b s e"]:
        """a: pi itself, or the gate's k weights laid out over the factors."""
        experts = probs.shape[-1]
        if self.gate.config.k == experts:
            return probs
        one_hot = jax.nn.one_hot(routing.expert, experts, dtype=jnp.float32)
        return jnp.einsum("tk,tke->te", routing.weight, one_hot).reshape(probs.shape)

    def _predicted(self, z: Float[Array, "b e f"]) -> Float[Array, "b d"]:
        return self.target_mean_d[...][None] + jnp.einsum("bef,efd->bd", z, self.v_efd[...])

    def _factors(
        self, share: Float[Array, "b s e"], h: Float[Array, "b s d"], where: Bool[Array, "b s"]
    ) -> Float[Array, "b e f"]:
        z = self._aggregated(share, h, where)
        return z if self.transform is None else self.transform(z)

    def _aggregated(
        self, share: Float[Array, "b s e"], h: Float[Array, "b s d"], where: Bool[Array, "b s"]
    ) -> Float[Array, "b e d"]:
        z = jnp.einsum("bse,bsd->bed", share, h)
        if self.normalise == "mean":
            return z / (jnp.sum(share, axis=1)[..., None] + _EPS)
        if self.normalise == "length":
            return z / jnp.maximum(jnp.sum(where, axis=1), 1)[:, None, None]
        return unit(z) if self.normalise == "unit" else z


class Transform(nnx.Module):
    """f_k: its own weights for each factor. Linear: z A_k. MLP: gelu(z A_k + a_k) B_k + b_k."""

    def __init__(self, config: ModelConfig, d: int, f: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=(0,))
        e = config.num_factors
        self.a_edf = nnx.Param(init(rngs.params(), (e, d, f), jnp.float32))
        mlp = config.transform == "mlp"
        self.a_ef = nnx.Param(jnp.zeros((e, f), jnp.float32)) if mlp else None
        self.b_eff = nnx.Param(init(rngs.params(), (e, f, f), jnp.float32)) if mlp else None
        self.b_ef = nnx.Param(jnp.zeros((e, f), jnp.float32)) if mlp else None

    def __call__(self, z: Float[Array, "b e d"]) -> Float[Array, "b e f"]:
        """Transform every factor's vector with that factor's weights."""
        x = jnp.einsum("bed,edf->bef", z, self.a_edf[...])
        if self.a_ef is None or self.b_eff is None or self.b_ef is None:
            return x
        x = jax.nn.gelu(x + self.a_ef[...][None])
        return jnp.einsum("bef,efg->beg", x, self.b_eff[...]) + self.b_ef[...][None]


class Decoder(nnx.Module):
    """g: one for all factors. Linear: y C + c. MLP: gelu(y B + b) C + c."""

    def __init__(self, kind: str, f: int, d: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(f, f, rngs=rngs) if kind == "mlp" else None
        self.out = nnx.Linear(f, d, rngs=rngs)

    def __call__(self, mixed: Float[Array, "b s f"]) -> Float[Array, "b s d"]:
        """Restore token states from each token's mixture of factor vectors."""
        if self.hidden is not None:
            mixed = jax.nn.gelu(self.hidden(mixed))
        return self.out(mixed)


def unit(x: Float[Array, "*shape d"]) -> Float[Array, "*shape d"]:
    """Vectors of length 1; those near 0 stay near 0, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS**2)
