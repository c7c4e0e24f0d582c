"""Which Hugging Face architectures are covered, and how their config.json is read."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from moe_jax.errors import UserError
from moe_jax.models.bert import EncoderConfig
from moe_jax.models.weights import BERT_NAMES, DISTILBERT_NAMES, Names

# Their names of activations -> ours.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Family(NamedTuple):
    """One `model_type`: how its config.json is read and how its tensors are named."""

    read: Callable[[Mapping[str, Any]], EncoderConfig]
    names: Names


def activation(name: Any) -> str:
    """Our name of an activation.

    Raises:
      UserError: it isn't covered.
    """
    if name not in _ACTIVATIONS:
        raise UserError(
            f"config.json: activation {name!r} is not covered; one of {', '.join(_ACTIVATIONS)} is"
        )
    return _ACTIVATIONS[name]


def _bert(raw: Mapping[str, Any], *, padded_positions: bool = False) -> EncoderConfig:
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"config.json: position_embedding_type={raw['position_embedding_type']!r} is not "
            "covered, only 'absolute'"
        )
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise UserError("config.json: a decoder (is_decoder, add_cross_attention) is not covered")
    pad_id = raw.get("pad_token_id")
    if pad_id is None:
        pad_id = 1 if padded_positions else 0
    return EncoderConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=raw["num_attention_heads"],
        d_ff=raw["intermediate_size"],
        num_positions=raw["max_position_embeddings"],
        position_offset=pad_id + 1 if padded_positions else 0,
        num_token_types=raw["type_vocab_size"],
        activation=activation(raw.get("hidden_act", "gelu")),
        norm_eps=raw.get("layer_norm_eps", 1e-12),
        pad_id=pad_id,
    )


def _roberta(raw: Mapping[str, Any]) -> EncoderConfig:
    # Their positions count from padding_idx + 1.
    return _bert(raw, padded_positions=True)


def _distilbert(raw: Mapping[str, Any]) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["dim"],
        num_layers=raw["n_layers"],
        num_heads=raw["n_heads"],
        d_ff=raw["hidden_dim"],
        num_positions=raw["max_position_embeddings"],
        num_token_types=0,
        activation=activation(raw.get("activation", "gelu")),
        # Not a field of theirs.
        norm_eps=1e-12,
        pad_id=raw.get("pad_token_id") or 0,
    )


FAMILIES: dict[str, Family] = {
    "bert": Family(_bert, BERT_NAMES),
    "distilbert": Family(_distilbert, DISTILBERT_NAMES),
    "roberta": Family(_roberta, BERT_NAMES),
    "xlm-roberta": Family(_roberta, BERT_NAMES),
}


@contextlib.contextmanager
def fields_of(where: str) -> Iterator[None]:
    """Around the reading of a config.json: what is wrong with it becomes one line that names it.

    Raises:
      UserError: a field is missing, of the wrong type, or refused.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{where} lacks the field {error}") from None
    except TypeError as error:
        raise UserError(f"{where} has a field of the wrong type: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_config(raw: Mapping[str, Any], where: str) -> tuple[EncoderConfig, Names]:
    """Reads the contents of a config.json.

    Args:
      raw: the JSON object.
      where: the file, for messages.

    Returns:
      The validated config (dtype "float32") and the names of the weights.

    Raises:
      UserError: the architecture or one of its options isn't covered, or a field is missing.
    """
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise UserError(
            f"{where}: model_type={raw.get('model_type')!r} is not covered; covered are "
            f"{', '.join(FAMILIES)} (MiniLM and CodeBERT files are of these types)"
        )
    with fields_of(where):
        config = family.read(raw)
        config.validate()
    return config, family.names
