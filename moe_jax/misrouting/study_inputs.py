"""What Stage 2 works on: models, experts, the prompts to test on and recorded routes, loaded.

Letters: t tokens, l layers with experts, k choices of a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from moe_jax.common.files import local_path
from moe_jax.common.progress import counting
from moe_jax.misrouting import selection
from moe_jax.misrouting.chat_prompts import read_asked, reads_chats
from moe_jax.misrouting.probing import filler_id
from moe_jax.misrouting.profile_data import ModelShape
from moe_jax.misrouting.prompts import Prompt
from moe_jax.misrouting.recorded_readings import read_recorded
from moe_jax.misrouting.scoped import gate_of
from moe_jax.misrouting.selection import Chosen
from moe_jax.misrouting.study_config import MisrouteConfig
from moe_jax.misrouting.study_runs import Planted
from moe_jax.models import causal_pretrained
from moe_jax.models.causal_pretrained import PretrainedLM


class Loaded(NamedTuple):
    """All that a study works on.

    Attributes:
      lm: the model.
      prompts: those to test on, as the model is asked them.
      chosen: the experts, and which prompts of the file these are.
      planted: models of known truth, if there are any.
      recorded: routes of the prompts by another engine, if there are any.
    """

    lm: PretrainedLM
    prompts: list[Prompt]
    chosen: Chosen
    planted: Planted | None
    recorded: list[Int[np.ndarray, "_ l k"]] | None


def load(config: MisrouteConfig) -> Loaded:
    """Read and check everything that the flags name; progress goes to stderr.

    Raises:
      UserError: a file, a model, an expert or a prompt that can't be used.
    """
    prompts = read_asked(config)
    lm = _model(config, "model")
    chosen = _chosen(config, lm, prompts)
    tested = [prompts[i] for i in chosen.numbers]
    selection.check_prompts(lm, tested, chosen.numbers, config)
    filler_id(lm, config)
    planted = None
    if config.planted_uses:
        planted = Planted(
            ignores=_model(config, "planted_ignores"), uses=_model(config, "planted_uses")
        )
    return Loaded(lm, tested, chosen, planted, _routes(config, lm, len(prompts), chosen.numbers))


def _model(config: MisrouteConfig, name: str) -> PretrainedLM:
    """The model that the field `name` names."""
    lm = causal_pretrained.load_lm(getattr(config, name))
    selection.check_model(lm, name)
    return reads_chats(lm) if config.chat else lm


def _chosen(config: MisrouteConfig, lm: PretrainedLM, prompts: Sequence[Prompt]) -> Chosen:
    if config.profile:
        return selection.from_profile(
            local_path(config.profile, "--profile"),
            lm.config,
            len(prompts),
            chat=config.chat,
            system=config.system,
        )
    return selection.by_hand(
        selection.parse_experts(config.experts, lm.config),
        lm,
        prompts,
        batch_size=config.batch_size,
        on_progress=counting("usage: reading", "prompts"),
    )


def _routes(
    config: MisrouteConfig, lm: PretrainedLM, prompts: int, numbers: Sequence[int]
) -> list[Int[np.ndarray, "_ l k"]] | None:
    """Recorded routes of the prompts to test on, from a file with those of all."""
    if not config.routes:
        return None
    gate = gate_of(lm)
    shape = ModelShape(lm.name, lm.config.expert_layers, gate.num_experts, gate.k)
    found = read_recorded(config.routes, shape, prompts, num_layers=lm.config.num_layers)
    return [found[i] for i in numbers]
