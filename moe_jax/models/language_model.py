"""Loads a language model of either kind: decoder-only, or encoder-decoder."""

import pathlib

from moe_jax.common.files import local_path, shown
from moe_jax.errors import UserError
from moe_jax.models.causal_families import CAUSAL_FAMILIES
from moe_jax.models.causal_pretrained import PretrainedLM, load_lm
from moe_jax.models.switch_config import MODEL_TYPE
from moe_jax.models.switch_pretrained import PretrainedSwitch, load_switch
from moe_jax.models.tokenizer import read_json


def load_language_model(path: str | pathlib.Path) -> PretrainedLM | PretrainedSwitch:
    """Loads with `load_switch` where config.json says a Switch Transformer, else with `load_lm`.

    Args:
      path: what `load_lm` or `load_switch` takes.

    Raises:
      UserError: an architecture that neither covers; as they do.
    """
    file = local_path(path, "model") / "config.json"
    if not file.is_file():
        return load_lm(path)
    kind = read_json(file).get("model_type")
    if kind == MODEL_TYPE:
        return load_switch(path)
    if not isinstance(kind, str) or kind not in CAUSAL_FAMILIES:
        raise UserError(
            f"{file}: model_type={shown(kind)} is not covered; covered are "
            f"{', '.join((*CAUSAL_FAMILIES, MODEL_TYPE))}"
        )
    return load_lm(path)
