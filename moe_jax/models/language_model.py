"""Loads a language model of either kind: decoder-only, or encoder-decoder."""

import pathlib

from moe_jax.models.causal_pretrained import PretrainedLM, load_lm
from moe_jax.models.switch_config import MODEL_TYPE
from moe_jax.models.switch_pretrained import PretrainedSwitch, load_switch
from moe_jax.models.tokenizer import read_json


def load_language_model(path: str | pathlib.Path) -> PretrainedLM | PretrainedSwitch:
    """Loads with `load_switch` where config.json says a Switch Transformer, else with `load_lm`.

    Args:
      path: what `load_lm` or `load_switch` takes.

    Raises:
      UserError: as they do.
    """
    file = pathlib.Path(path) / "config.json"
    if file.is_file() and read_json(file).get("model_type") == MODEL_TYPE:
        return load_switch(path)
    return load_lm(path)
