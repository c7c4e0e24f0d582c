"""The mean output of every expert, over the tokens that it works for: what `mean_ablate` puts in.

    means = expert_means(model, texts)
    edit = interventions.mean_ablate(gate, target, means.mean)

Letters: l layers with experts, e experts, k choices, d width; b rows of a batch, s padded length,
t = b * s.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.common.checks import whole
from moe_jax.errors import UserError
from moe_jax.gating import expert_counts
from moe_jax.layers import MoE
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.compiled import flat_model, per_structure
from moe_jax.models.generate_checks import Prompt, checked_ids
from moe_jax.models.rows import batches, padded


class ExpertMeans(NamedTuple):
    """Mean outputs, before the weight of the gate.

    Attributes:
      mean: mean_le = sum over the tokens that have expert e in layer l of Expert[l e](x) / their
        number; 0 where there is none.
      tokens: their number.
    """

    mean: Float[np.ndarray, "l e d"]
    tokens: Int[np.ndarray, "l e"]


def expert_means(
    model: CausalLM, texts: Sequence[Prompt], *, batch_size: int = 64, pad_id: int = 0
) -> ExpertMeans:
    """Read texts without an edit, and average what each expert gives to the tokens it works for.

    Every token of every text counts the same, whatever weight the gate gives the expert; a token
    that a capacity has dropped does not count. Sums are float32 within a batch, float64 over them.

    Args:
      model: the model; it is not changed.
      texts: token ids of each, at least one.
      batch_size: texts read together.
      pad_id: read, and ignored, before short texts.

    Raises:
      UserError: ids that the model does not have, an empty text or one too long for the context,
        batch_size < 1. Outputs that are not numbers.
      ValueError: a model without experts, no text.
    """
    config = model.config
    if config.experts is None or not config.expert_layers:
        raise ValueError("model has no layer with experts: there is no output to average")
    if not len(texts):
        raise ValueError("texts is empty: there is no token to average over")
    whole("", "batch_size", batch_size, 1)
    rows = [checked_ids(f"text {i}", x, config.vocab_size) for i, x in enumerate(texts)]
    for i, row in enumerate(rows):
        if len(row) > config.max_length:
            raise UserError(
                f"text {i} has {len(row)} tokens: more than the context of {config.max_length}"
            )
    run = _sums_and_counts.of(flat_model(model))
    shape = (len(config.expert_layers), config.experts.gate.num_experts)
    total, tokens = np.zeros((*shape, config.d_model), np.float64), np.zeros(shape, np.int64)
    for mine, line in batches([len(r) for r in rows], batch_size):
        ids_bs, where_bs = padded([rows[i] for i in line], pad_id)
        where_bs[mine:] = False
        sums, counts = jax.device_get(run(ids_bs, where_bs))
        total += sums
        tokens += counts
    if not np.isfinite(total).all():
        raise UserError("the experts' outputs are not numbers: are the model's weights whole?")
    mean = total / np.maximum(tokens, 1)[..., None]
    return ExpertMeans(mean.astype(np.float32), tokens)


@per_structure()
def _sums_and_counts(model: CausalLM, ids_bs: Array, where_bs: Array) -> tuple[Array, Array]:
    """Sums [l e d] of the experts' outputs over a batch, and their numbers of tokens [l e]."""
    out = model(ids_bs, where_bs, last_only=True, mixture_inputs=True)
    if out.inputs is None:
        raise ValueError("the model gave no inputs of its experts")
    t, found = ids_bs.size, []
    for i, moe in enumerate(m.ffn for m in model.layers if isinstance(m.ffn, MoE)):
        routing = jax.tree.map(lambda a, i=i: a[:, :, i].reshape(t, -1), out.routing)
        x = out.inputs[:, :, i].reshape(t, -1)
        found.append((_sums(moe, x, routing.expert), expert_counts(routing)))
    return jax.tree.map(lambda *a: jnp.stack(a), *found)


def _sums(moe: MoE, x: Float[Array, "t d"], expert: Int[Array, "t k"]) -> Float[Array, "e d"]:
    """The outputs of each expert, summed over its tokens; slot by slot, so that t * d are kept."""
    experts = moe.gate.config.num_experts

    def add(total_ed: Array, expert_t: Array) -> tuple[Array, None]:
        y_td = moe.expert_outputs(x, expert_t[:, None])[:, 0].astype(jnp.float32)
        own_te = jax.nn.one_hot(expert_t, experts, dtype=jnp.float32)
        # Products with 0 and 1: the same sum on every device in every run.
        more = jnp.matmul(own_te.T, y_td, precision=jax.lax.Precision.HIGHEST)
        return total_ed + more, None

    nothing = jnp.zeros((experts, x.shape[1]), jnp.float32)
    return jax.lax.scan(add, nothing, expert.T)[0]
