"""The numbers of a Switch Transformer, and how they are read from a config.json and written."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from moe_kernels import ACTIVATIONS

from moe_jax.common.checks import (
    flag,
    joined,
    nested,
    number,
    one_of,
    setting,
    several,
    whole,
    wrong,
)
from moe_jax.common.files import shown
from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.layers import ExpertOptions
from moe_jax.models.causal_config import check_causal
from moe_jax.models.config_fields import Fields, fields_of
from moe_jax.models.families import MOST_EXPERTS, MOST_LAYERS, activation, check_layers_alike

ARCHITECTURE, MODEL_TYPE = "SwitchTransformersForConditionalGeneration", "switch_transformers"
DTYPES = ("float32", "bfloat16", "float16")


def _top1() -> GateConfig:
    return GateConfig(num_experts=8, k=1, capacity=64, jitter=0.01)


@dataclasses.dataclass(kw_only=True)
class SwitchConfig:
    """A T5 encoder and decoder, some of whose feed-forward layers are mixtures of experts.

    Layer i of a stack has a mixture where i % step == 1, or everywhere with step 1, or nowhere
    with step 0. (So it is in the released checkpoints, and step = num_layers, which transformers
    takes for "no sparse layers", gives layer 1 a mixture.)

    Attributes:
      vocab_size: rows of the embedding table.
      d_model: width of the states.
      num_layers: encoder layers.
      num_decoder_layers: decoder layers.
      num_heads: heads of every attention.
      head_dim: width of a head; num_heads * head_dim need not be d_model.
      d_ff: hidden width of the dense layers and of each expert.
      gate: how experts are chosen; Switch: k=1, softmax, a capacity for each sequence.
      router_bias: a bias on the router's logits.
      encoder_step: see above.
      decoder_step: see above.
      activation: between the two matrices of a feed-forward layer.
      norm_eps: epsilon of every RMS norm.
      num_buckets: rows of the table of relative positions.
      max_distance: positions at least this far apart share a bucket.
      tie_embeddings: encoder, decoder and output layer share one table, and the decoder's output
        is multiplied by d_model ** -0.5. Otherwise all three have their own.
      start_id: the decoder's first token.
      pad_id: what stands in padding.
      stop_ids: tokens that end a text.
      dtype: what the layers compute in. Norms, softmax, router and logits are float32.
      options: how the experts are computed: backend, recomputation, exchange between devices.
    """

    vocab_size: int = 256
    d_model: int = 128
    num_layers: int = 4
    num_decoder_layers: int = 4
    num_heads: int = 4
    head_dim: int = 32
    d_ff: int = 256
    gate: GateConfig = dataclasses.field(default_factory=_top1)
    router_bias: bool = False
    encoder_step: int = 2
    decoder_step: int = 2
    activation: str = "relu"
    norm_eps: float = 1e-6
    num_buckets: int = 32
    max_distance: int = 128
    tie_embeddings: bool = True
    start_id: int = 0
    pad_id: int = 0
    stop_ids: tuple[int, ...] = (1,)
    dtype: str = "float32"
    options: ExpertOptions = dataclasses.field(default_factory=ExpertOptions)

    @property
    def encoder_layers(self) -> tuple[int, ...]:
        """The encoder's layers with a mixture, in order."""
        return _sparse(self.num_layers, self.encoder_step)

    @property
    def decoder_layers(self) -> tuple[int, ...]:
        """The decoder's layers with a mixture, in order."""
        return _sparse(self.num_decoder_layers, self.decoder_step)

    def validate(self, path: str = "") -> None:
        """Check every field, alone and together.

        Raises:
          UserError: one is wrong; the message names it.
        """
        for name, least in _LEAST.items():
            whole(path, name, getattr(self, name), least)
        if self.max_distance <= self.num_buckets // 2:
            buckets = setting(path, "num_buckets", self.num_buckets)
            raise wrong(path, "max_distance", self.max_distance, f"be more than half of {buckets}")
        one_of(path, "activation", self.activation, ACTIVATIONS)
        one_of(path, "dtype", self.dtype, DTYPES)
        flag(path, "router_bias", self.router_bias)
        flag(path, "tie_embeddings", self.tie_embeddings)
        number(path, "norm_eps", self.norm_eps, above=0)
        several(path, "stop_ids", self.stop_ids)
        ids = {"start_id": self.start_id, "pad_id": self.pad_id}
        ids |= {f"stop_ids[{i}]": value for i, value in enumerate(self.stop_ids)}
        for name, value in ids.items():
            whole(path, name, value, 0, self.vocab_size - 1, why="the ids of the vocabulary")
        nested(path, "gate", self.gate, GateConfig)
        nested(path, "options", self.options, ExpertOptions)
        check_causal(joined(path, "gate"), self.gate)


_LEAST = dict.fromkeys(("vocab_size", "d_model", "num_layers", "num_decoder_layers"), 1)
_LEAST |= {"num_heads": 1, "head_dim": 1, "d_ff": 1, "encoder_step": 0, "decoder_step": 0}
_LEAST |= {"num_buckets": 4, "max_distance": 1}


def _sparse(layers: int, step: int) -> tuple[int, ...]:
    if step == 0:
        return ()
    return tuple(i for i in range(layers) if step == 1 or i % step == 1)


def read_switch_config(
    raw: Mapping[str, Any], where: str, *, generation: Mapping[str, Any] | None = None
) -> SwitchConfig:
    """Reads the contents of a config.json.

    A field that is left out has the default of the class in transformers, but for the sizes of the
    model, which must be there, and decoder_start_token_id, which is pad_token_id then.

    Args:
      raw: the JSON object.
      where: the file, for messages.
      generation: the contents of generation_config.json beside it, whose token ids go first.

    Returns:
      The validated config (dtype "float32").

    Raises:
      UserError: the architecture or one of its options isn't covered, or a field is missing or
        wrong.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"{where}: model_type={shown(raw.get('model_type'))} is not covered here, only "
            f"{MODEL_TYPE!r}"
        )
    fields = Fields(raw, where)
    check_layers_alike(fields)
    beside = str(pathlib.Path(where).with_name("generation_config.json"))
    config = _read(fields, Fields(generation or {}, beside))
    with fields_of(where):
        config.validate()
    return config


def _read(fields: Fields, generation: Fields) -> SwitchConfig:
    if fields.text("router_dtype", default="float32") != "float32":
        raise fields.wrong(("router_dtype",), "is not covered, only 'float32'")
    # The second names are those that transformers takes for the first.
    layers = fields.whole("num_layers", "num_hidden_layers", most=MOST_LAYERS)
    decoder_layers = layers
    if fields.value("num_decoder_layers") is not None:
        decoder_layers = fields.whole("num_decoder_layers", most=MOST_LAYERS)
    vocab_size = fields.whole("vocab_size")
    buckets = fields.whole("relative_attention_num_buckets", least=4, default=32)
    pad_id = _id(fields, generation, "pad_token_id", 0, vocab_size)
    return SwitchConfig(
        vocab_size=vocab_size,
        d_model=fields.whole("d_model", "hidden_size"),
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        num_heads=fields.whole("num_heads", "num_attention_heads"),
        head_dim=fields.whole("d_kv"),
        d_ff=fields.whole("d_ff"),
        gate=GateConfig(
            num_experts=fields.whole("num_experts", most=MOST_EXPERTS),
            k=1,
            capacity=fields.whole("expert_capacity"),
            jitter=_jitter(fields),
        ),
        router_bias=fields.flag("router_bias", default=False),
        encoder_step=_step(fields, "encoder", layers),
        decoder_step=_step(fields, "decoder", decoder_layers),
        activation=_activation(fields),
        norm_eps=fields.number("layer_norm_epsilon", default=1e-6),
        num_buckets=buckets,
        max_distance=_max_distance(fields, buckets),
        tie_embeddings=fields.flag("tie_word_embeddings", default=True),
        start_id=_id(fields, generation, "decoder_start_token_id", pad_id, vocab_size),
        pad_id=pad_id,
        stop_ids=_stop_ids(fields, generation, vocab_size),
    )


def _max_distance(fields: Fields, buckets: int) -> int:
    name = "relative_attention_max_distance"
    distance = fields.whole(name, default=128)
    # Half the buckets are of one distance each.
    if distance <= buckets // 2:
        must = f"must be more than half of relative_attention_num_buckets={buckets}"
        raise fields.misfit(name, distance, must)
    return distance


def _jitter(fields: Fields) -> float:
    jitter = fields.number("router_jitter_noise", default=0.01, zero=True)
    if jitter >= 1:
        raise fields.wrong(("router_jitter_noise",), "must be less than 1")
    return jitter


def _activation(fields: Fields) -> str:
    """That of dense_act_fn; older files say it again as feed_forward_proj, and is_gated_act."""
    again = fields.text("feed_forward_proj", default="")
    for name, gated in (
        ("is_gated_act", fields.flag("is_gated_act", default=False)),
        ("feed_forward_proj", "gated" in again),
        ("dense_act_fn", "gated" in fields.text("dense_act_fn", default="relu")),
    ):
        if gated:
            must = "is not covered: gated feed-forward layers are not (nor built by transformers)"
            raise fields.wrong((name,), must)
    found = activation(fields, "dense_act_fn", default="relu")
    if again and activation(fields, "feed_forward_proj", default="relu") != found:
        theirs = fields.text("dense_act_fn", default="relu")
        raise fields.differ("dense_act_fn", theirs, "feed_forward_proj", again)
    return found


def _step(fields: Fields, stack: str, layers: int) -> int:
    """As written, as transformers has it, else by the number of sparse layers."""
    if fields.has(f"{stack}_sparse_step"):
        return fields.whole(f"{stack}_sparse_step", least=0)
    sparse = fields.whole(f"num_sparse_{stack}_layers", least=0, default=3)
    return layers // sparse if sparse > 0 else layers


def _id(fields: Fields, generation: Fields, name: str, default: int, vocab_size: int) -> int:
    for source in (generation, fields):
        found = source.token_id(name, vocab_size)
        if found is not None:
            return found
    return default


def _stop_ids(fields: Fields, generation: Fields, vocab_size: int) -> tuple[int, ...]:
    """Null: none; not there: 1, as transformers has it."""
    for source in (generation, fields):
        found = source.token_ids("eos_token_id", vocab_size)
        if found is not None:
            return found
    return () if "eos_token_id" in fields.raw else (1,)


def write_switch_config(config: SwitchConfig) -> dict[str, Any]:
    """The config.json that says what the config says (but its dtype and options).

    Raises:
      UserError: transformers has no words for it, such as for another gate.
    """
    theirs = {"gelu_tanh": "gelu_pytorch_tanh"}
    raw = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "num_experts": config.gate.num_experts,
        "expert_capacity": config.gate.capacity,
        "router_bias": config.router_bias,
        "router_dtype": "float32",
        "router_jitter_noise": config.gate.jitter,
        "num_sparse_encoder_layers": len(config.encoder_layers),
        "num_sparse_decoder_layers": len(config.decoder_layers),
        "encoder_sparse_step": config.encoder_step,
        "decoder_sparse_step": config.decoder_step,
        "dense_act_fn": theirs.get(config.activation, config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "tie_word_embeddings": config.tie_embeddings,
        **write_ids(config),
    }
    plain = dataclasses.replace(config, dtype="float32", options=ExpertOptions())
    if not _says(raw, plain):
        raise UserError(
            f"transformers' {MODEL_TYPE} has no such model (its gate is top-1 softmax with a "
            f"capacity): {config}"
        )
    return raw


def _says(raw: Mapping[str, Any], config: SwitchConfig) -> bool:
    try:
        return _read(Fields(raw, "config.json"), Fields({}, "config.json")) == config
    except UserError:  # the family has no such value
        return False


def write_ids(config: SwitchConfig) -> dict[str, Any]:
    """The token ids, which belong into generation_config.json too."""
    ids = list(config.stop_ids)
    return {
        "decoder_start_token_id": config.start_id,
        "pad_token_id": config.pad_id,
        "eos_token_id": None if not ids else ids[0] if len(ids) == 1 else ids,
    }
