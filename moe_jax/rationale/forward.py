"""The model on batches of texts: with its encoder or on its frozen states, many texts at a time."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from moe_jax.data.batches import pad_stack
from moe_jax.errors import UserError
from moe_jax.models.bert import Encoder
from moe_jax.models.pretrained import PretrainedEncoder
from moe_jax.models.tokenizer import special_ids
from moe_jax.rationale.config import RationaleConfig
from moe_jax.rationale.model import RationaleModel, RationaleOutput
from moe_jax.rationale.windows import window_states

ROWS = 64  # texts at once outside training


class TrainedAlong(nnx.Module):
    """The rationale model with its encoder: `context.train_encoder`."""

    def __init__(self, encoder: Encoder, model: RationaleModel):
        self.encoder, self.model = encoder, model


def inner(model: nnx.Module) -> RationaleModel:
    """The rationale model itself, whether its encoder is trained along or not.

    Raises:
      UserError: it is neither.
    """
    found = model.model if isinstance(model, TrainedAlong) else model
    if not isinstance(found, RationaleModel):
        raise UserError(f"model is a {type(model).__name__}, not one that RationaleTask.init makes")
    return found


class Forward:
    """How a config's model is applied.

    Args:
      config: validated.
      pretrained: the encoder and tokenizer that it names.
    """

    def __init__(self, config: RationaleConfig, pretrained: PretrainedEncoder):
        self._context, self._pad_id = config.context, pretrained.config.pad_id
        self._prefix, self._suffix = map(tuple, special_ids(pretrained.tokenizer))

    def __call__(self, model: nnx.Module, batch: Mapping[str, Any]) -> RationaleOutput:
        """The model's output for a padded batch: ids [b s], where [b s] and, if the encoder is
        frozen, states [b s d]. Traceable.
        """
        where, ids = jnp.asarray(batch["where"]), jnp.asarray(batch["ids"])
        if not isinstance(model, TrainedAlong):
            return inner(model)(jnp.asarray(batch["states"], jnp.float32), where, ids)
        states = window_states(
            model.encoder,
            ids,
            where,
            prefix=self._prefix,
            suffix=self._suffix,
            pad_id=self._pad_id,
            config=self._context,
        )
        return model.model(states, where, ids)

    def probabilities(
        self, model: nnx.Module, ids: Sequence[np.ndarray], states: Sequence[np.ndarray] | None
    ) -> list[np.ndarray]:
        """Pi [s e] of each text."""
        return [p for p, _, _ in self._texts(model, ids, states)]

    def states(
        self, model: nnx.Module, ids: Sequence[np.ndarray], states: Sequence[np.ndarray] | None
    ) -> list[np.ndarray]:
        """H [s d] of each text: its states as the gate sees them."""
        return [h for _, h, _ in self._texts(model, ids, states)]

    def predicted(
        self,
        model: nnx.Module,
        ids: Sequence[np.ndarray],
        states: Sequence[np.ndarray] | None,
        keep: Sequence[np.ndarray],
    ) -> np.ndarray:
        """e_hat [b d] from those tokens of each text that `keep` marks."""
        return np.stack([e for _, _, e in self._texts(model, ids, states, keep)])

    def _texts(
        self,
        model: nnx.Module,
        ids: Sequence[np.ndarray],
        states: Sequence[np.ndarray] | None,
        keep: Sequence[np.ndarray] | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """pi, h and e_hat of each text, ROWS texts at a time, padded to a multiple of 32."""
        graphdef, state = nnx.split(model)
        found = []
        for first in range(0, len(ids), ROWS):
            rows = slice(first, first + ROWS)
            here = ids[rows]
            length = -(-max(1, max(len(i) for i in here)) // 32) * 32
            batch: dict[str, Any] = {}
            batch["ids"], batch["where"] = pad_stack(_filled(here), length)
            if states is not None:
                batch["states"] = pad_stack(_filled(states[rows]), length)[0]
            if keep is not None:
                batch["keep"] = pad_stack(_filled(keep[rows]), length)[0]
            probs, h, e = jax.device_get(self._compiled(graphdef, state, batch))
            found += [(probs[r, : len(i)], h[r, : len(i)], e[r]) for r, i in enumerate(here)]
        return found

    @functools.cached_property
    def _compiled(self) -> Any:
        def run(graphdef: Any, state: Any, batch: Any) -> tuple[Array, Array, Array]:
            model = nnx.merge(graphdef, state)
            out = self(model, batch)
            predicted = out.predicted
            if "keep" in batch:
                predicted = inner(model).reconstruct(out, batch["keep"])
            return out.probs, out.states, predicted

        return jax.jit(run, static_argnums=0)


def _filled(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As many arrays as a batch has rows: the last ones empty."""
    return [*values, *[values[0][:0]] * (ROWS - len(values))]
