"""Which Hugging Face architectures are covered, and how their config.json is read.

A field that config.json leaves out has the default of the family's class in transformers, but for
the sizes of a model, which must be there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moe_jax.common.files import shown
from moe_jax.errors import UserError
from moe_jax.models.bert import EncoderConfig
from moe_jax.models.config_fields import Fields, fields_of
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
# DistilBERT's fields, and the names that transformers takes for them.
_ALSO = {
    "dim": ("dim", "hidden_size"),
    "n_heads": ("n_heads", "num_attention_heads"),
    "n_layers": ("n_layers", "num_hidden_layers"),
}
# More of these would only make a wrong number slow to refuse.
MOST_LAYERS, MOST_EXPERTS, MOST_WIDTH = 10_000, 100_000, 2**20


class Family(NamedTuple):
    """One `model_type`: how its config.json is read and how its tensors are named."""

    read: Callable[[Fields], EncoderConfig]
    names: Names


def activation(fields: Fields, name: str, *, default: str) -> str:
    """Our name of the activation that a field names.

    Raises:
      UserError: it isn't covered.
    """
    theirs = fields.text(name, default=default)
    if theirs not in _ACTIVATIONS:
        raise fields.wrong((name,), f"is not covered; one of {', '.join(_ACTIVATIONS)} is")
    return _ACTIVATIONS[theirs]


def check_layers_alike(fields: Fields) -> None:
    """Refuses a model whose layers have configs of their own.

    Raises:
      UserError: per_layer_config has something.
    """
    if fields.raw.get("per_layer_config"):
        raise fields.wrong(("per_layer_config",), "is not covered: the layers must be alike")


def _bert(fields: Fields) -> EncoderConfig:
    return _bert_like(fields, fields.token_id("pad_token_id", _vocab_size(fields)) or 0)


def _roberta(fields: Fields) -> EncoderConfig:
    # Their positions count from padding_idx + 1, so there must be one.
    pad_id = 1
    if "pad_token_id" in fields.raw:
        pad_id = fields.whole("pad_token_id", least=0)
        fields.token_id("pad_token_id", _vocab_size(fields))
    return _bert_like(fields, pad_id, position_offset=pad_id + 1)


def _heads(fields: Fields, name: str, width: str) -> int:
    heads, d_model = (fields.whole(*_ALSO.get(n, (n,))) for n in (name, width))
    if d_model % heads:
        raise fields.wrong(_ALSO.get(name, (name,)), f"must divide {width}={d_model}")
    return heads


def _vocab_size(fields: Fields) -> int:
    return fields.whole("vocab_size")


def _bert_like(fields: Fields, pad_id: int, *, position_offset: int = 0) -> EncoderConfig:
    if fields.text("position_embedding_type", default="absolute") != "absolute":
        raise fields.wrong(("position_embedding_type",), "is not covered, only 'absolute'")
    for name in ("is_decoder", "add_cross_attention"):
        if fields.flag(name, default=False):
            raise fields.wrong((name,), "is not covered: no decoder is")
    return EncoderConfig(
        vocab_size=_vocab_size(fields),
        d_model=fields.whole("hidden_size"),
        num_layers=fields.whole("num_hidden_layers", most=MOST_LAYERS),
        num_heads=_heads(fields, "num_attention_heads", "hidden_size"),
        d_ff=fields.whole("intermediate_size"),
        num_positions=fields.whole("max_position_embeddings", least=position_offset + 1),
        position_offset=position_offset,
        num_token_types=fields.whole("type_vocab_size"),
        activation=activation(fields, "hidden_act", default="gelu"),
        norm_eps=fields.number("layer_norm_eps", default=1e-12),
        pad_id=pad_id,
    )


def _distilbert(fields: Fields) -> EncoderConfig:
    vocab_size = _vocab_size(fields)
    return EncoderConfig(
        vocab_size=vocab_size,
        d_model=fields.whole(*_ALSO["dim"]),
        num_layers=fields.whole(*_ALSO["n_layers"], most=MOST_LAYERS),
        num_heads=_heads(fields, "n_heads", "dim"),
        d_ff=fields.whole("hidden_dim"),
        num_positions=fields.whole("max_position_embeddings"),
        num_token_types=0,
        activation=activation(fields, "activation", default="gelu"),
        # Not a field of theirs.
        norm_eps=1e-12,
        pad_id=fields.token_id("pad_token_id", vocab_size) or 0,
    )


FAMILIES: dict[str, Family] = {
    "bert": Family(_bert, BERT_NAMES),
    "distilbert": Family(_distilbert, DISTILBERT_NAMES),
    "roberta": Family(_roberta, BERT_NAMES),
    "xlm-roberta": Family(_roberta, BERT_NAMES),
}


def family_name(raw: Mapping[str, Any]) -> str:
    """The `model_type` of a config.json, "" if that is no string."""
    kind = raw.get("model_type")
    return kind if isinstance(kind, str) else ""


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
    family = FAMILIES.get(family_name(raw))
    if family is None:
        raise UserError(
            f"{where}: model_type={shown(raw.get('model_type'))} is not covered; covered are "
            f"{', '.join(FAMILIES)} (MiniLM and CodeBERT files are of these types)"
        )
    fields = Fields(raw, where)
    check_layers_alike(fields)
    config = family.read(fields)
    with fields_of(where):
        config.validate()
    return config, family.names
