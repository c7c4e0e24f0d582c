"""Which Hugging Face causal language models are covered, and how their config.json is read.

Each family is a function from config.json to CausalConfig and one back; a model of ours can be
saved as any family whose config.json says all of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moe_jax.common.files import shown
from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.layers import ExpertOptions
from moe_jax.models.causal_config import CausalConfig, ExpertsConfig
from moe_jax.models.causal_rope import read_rope, write_rope
from moe_jax.models.config_fields import Fields, fields_of
from moe_jax.models.families import (
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_WIDTH,
    activation,
    check_layers_alike,
    family_name,
)

Raw = Mapping[str, Any]


class FfnNames(NamedTuple):
    """Names of a family's feed-forward tensors, below model.layers.N.

    `moe` is where a mixture stands in published files; transformers 5 calls it "mlp" in all.
    """

    moe: str = "mlp"
    up: str = "up_proj"
    gate: str = "gate_proj"
    down: str = "down_proj"


class Defaults(NamedTuple):
    """What a family's class in transformers has where config.json leaves a field out.

    Sizes that most files have must be there: a wrong guess of them would be found late or never.

    Attributes:
      norm_eps: rms_norm_eps.
      theta: rope_theta.
      kv_heads: num_key_value_heads; None: as many as num_attention_heads, which null says too.
    """

    norm_eps: float
    theta: float = 10_000.0
    kv_heads: int | None = None


class CausalFamily(NamedTuple):
    """One `model_type`.

    Attributes:
      architecture: the class that transformers builds.
      read: from config.json.
      write: the fields of config.json that `read` needs, beyond those of every family.
      names: of the feed-forward tensors; dense layers always have those of Llama.
    """

    architecture: str
    read: Callable[[Fields], CausalConfig]
    write: Callable[[CausalConfig], dict[str, Any]]
    names: FfnNames = FfnNames()


def _base(fields: Fields, own: Defaults, **more: Any) -> CausalConfig:
    """What all families have."""
    heads = fields.whole("num_attention_heads")
    kv_heads = own.kv_heads
    if "num_key_value_heads" in fields.raw:
        kv_heads = fields.whole_or_none("num_key_value_heads")
    max_length = fields.whole("max_position_embeddings")
    config = CausalConfig(
        vocab_size=fields.whole("vocab_size"),
        d_model=fields.whole("hidden_size", most=MOST_WIDTH),
        num_layers=fields.whole("num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=fields.whole_or_none("head_dim", most=MOST_WIDTH),
        d_ff=fields.whole("intermediate_size"),
        activation=activation(fields, "hidden_act", default="silu"),
        norm_eps=fields.number("rms_norm_eps", default=own.norm_eps),
        rope=read_rope(fields, theta=own.theta, max_length=max_length),
        max_length=max_length,
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
        **more,
    )
    _check_heads(fields, config)
    _check_windows(fields, config)
    return config


def _check_heads(fields: Fields, config: CausalConfig) -> None:
    """Refuses heads that do not go with the width or with each other."""
    heads, width = config.num_heads, config.width_of_head
    if config.head_dim is None and config.d_model % heads:
        must = f"must divide hidden_size={config.d_model}"
        raise fields.misfit("num_attention_heads", heads, must)
    if width % 2:
        raise fields.misfit("head_dim", width, "must be even")
    if heads % config.num_kv_heads:
        must = f"must divide num_attention_heads={heads}"
        raise fields.misfit("num_key_value_heads", config.num_kv_heads, must)


def _check_windows(fields: Fields, config: CausalConfig) -> None:
    """Refuses `layer_types` that say anything else than the other fields."""
    kinds = fields.items("layer_types", str)
    wanted = "full_attention" if config.window is None else "sliding_attention"
    if kinds is not None and kinds != [wanted] * config.num_layers:
        must = f"must be {wanted!r} for each of the {config.num_layers} layers"
        raise fields.wrong(("layer_types",), must)


def _base_raw(config: CausalConfig) -> dict[str, Any]:
    theirs = {"gelu_tanh": "gelu_pytorch_tanh"}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": theirs.get(config.activation, config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": write_rope(config.rope),
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _llama(fields: Fields) -> CausalConfig:
    if fields.flag("mlp_bias", default=False):
        raise fields.wrong(("mlp_bias",), "is not covered, only false")
    bias = fields.flag("attention_bias", default=False)
    return _base(fields, Defaults(norm_eps=1e-6), qkv_bias=bias, out_bias=bias)


def _llama_raw(config: CausalConfig) -> dict[str, Any]:
    return {"head_dim": config.width_of_head, "attention_bias": config.qkv_bias}


def _mixtral(fields: Fields) -> CausalConfig:
    count = fields.whole("num_local_experts", "num_experts", most=MOST_EXPERTS)
    gate = GateConfig(num_experts=count, k=_chosen(fields, count), renormalise=True)
    experts = ExpertsConfig(gate=gate, d_expert=fields.whole("intermediate_size"))
    own = Defaults(norm_eps=1e-5, theta=1e6, kv_heads=8)
    return _base(fields, own, window=fields.whole_or_none("sliding_window"), experts=experts)


def _mixtral_raw(config: CausalConfig) -> dict[str, Any]:
    gate = _gate(config)
    return {
        "head_dim": config.width_of_head,
        "intermediate_size": config.experts.d_expert if config.experts else None,
        "sliding_window": config.window,
        "num_local_experts": gate.num_experts,
        "num_experts_per_tok": gate.k,
    }


def _olmoe(fields: Fields) -> CausalConfig:
    bias = fields.flag("attention_bias", default=False)
    experts = ExpertsConfig(gate=_plain_gate(fields), d_expert=fields.whole("intermediate_size"))
    config = _base(
        fields,
        Defaults(norm_eps=1e-5),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="all",
        clip_qkv=fields.number_or_none("clip_qkv"),
        experts=experts,
    )
    # The norm of all queries is as wide as the states.
    if config.head_dim not in (None, even := config.d_model // config.num_heads):
        raise fields.wrong(("head_dim",), f"must be hidden_size / num_attention_heads, {even}")
    return dataclasses.replace(config, head_dim=None)


def _olmoe_raw(config: CausalConfig) -> dict[str, Any]:
    return _plain_gate_raw(config) | {
        "intermediate_size": config.experts.d_expert if config.experts else None,
        "attention_bias": config.qkv_bias,
        "clip_qkv": config.clip_qkv,
    }


def _qwen2_moe(fields: Fields) -> CausalConfig:
    _no_windows(fields)
    experts = ExpertsConfig(
        gate=_plain_gate(fields),
        d_expert=fields.whole("moe_intermediate_size"),
        d_shared=fields.whole("shared_expert_intermediate_size"),
        shared_gate=True,
        layers=_sparse_layers(fields),
    )
    bias = fields.flag("qkv_bias", default=True)
    own = Defaults(norm_eps=1e-6, kv_heads=16)
    return _base(fields, own, qkv_bias=bias, experts=experts)


def _qwen2_moe_raw(config: CausalConfig) -> dict[str, Any]:
    shared = config.experts.d_shared if config.experts else None
    return _qwen_moe_raw(config) | {
        "qkv_bias": config.qkv_bias,
        "shared_expert_intermediate_size": shared,
    }


def _qwen3_moe(fields: Fields) -> CausalConfig:
    _no_windows(fields)
    bias = fields.flag("attention_bias", default=False)
    experts = ExpertsConfig(
        gate=_plain_gate(fields),
        d_expert=fields.whole("moe_intermediate_size"),
        layers=_sparse_layers(fields),
    )
    own = Defaults(norm_eps=1e-6, kv_heads=4)
    return _base(fields, own, qkv_bias=bias, out_bias=bias, qk_norm="head", experts=experts)


def _qwen3_moe_raw(config: CausalConfig) -> dict[str, Any]:
    return _qwen_moe_raw(config) | {
        "head_dim": config.width_of_head,
        "attention_bias": config.qkv_bias,
    }


def _qwen_moe_raw(config: CausalConfig) -> dict[str, Any]:
    dense = sorted(set(range(config.num_layers)) - set(config.expert_layers))
    return _plain_gate_raw(config) | {
        "moe_intermediate_size": config.experts.d_expert if config.experts else None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def _no_windows(fields: Fields) -> None:
    if fields.flag("use_sliding_window", default=False):
        raise fields.wrong(("use_sliding_window",), "is not covered, only false")


def _sparse_layers(fields: Fields) -> tuple[int, ...] | None:
    """Layer i has a mixture unless listed as dense or skipped by the step; None: all have."""
    step = fields.whole("decoder_sparse_step", default=1)
    dense = set(fields.items("mlp_only_layers", int) or ())
    count = fields.whole("num_hidden_layers", most=MOST_LAYERS)
    layers = tuple(i for i in range(count) if i not in dense and (i + 1) % step == 0)
    if not layers:
        raise UserError(
            f"{fields.where}: decoder_sparse_step={step} and mlp_only_layers={shown(sorted(dense))}"
            f" leave none of the {count} layers experts, which is not covered"
        )
    return None if len(layers) == count else layers


def _plain_gate(fields: Fields) -> GateConfig:
    """Softmax, then top-k; renormalised where the file says so (released checkpoints differ)."""
    # transformers 5 writes num_local_experts for some families whose files had num_experts.
    count = fields.whole("num_experts", "num_local_experts", most=MOST_EXPERTS)
    normalised = fields.flag("norm_topk_prob", default=False)
    return GateConfig(num_experts=count, k=_chosen(fields, count), renormalise=normalised)


def _chosen(fields: Fields, count: int) -> int:
    k = fields.whole("num_experts_per_tok")
    if k > count:
        raise fields.wrong(("num_experts_per_tok",), f"must be at most the {count} experts")
    return k


def _plain_gate_raw(config: CausalConfig) -> dict[str, Any]:
    gate = _gate(config)
    return {
        "num_experts": gate.num_experts,
        "num_experts_per_tok": gate.k,
        "norm_topk_prob": gate.renormalise,
    }


def _gate(config: CausalConfig) -> GateConfig:
    return GateConfig() if config.experts is None else config.experts.gate


CAUSAL_FAMILIES: dict[str, CausalFamily] = {
    "llama": CausalFamily("LlamaForCausalLM", _llama, _llama_raw),
    "mixtral": CausalFamily(
        "MixtralForCausalLM",
        _mixtral,
        _mixtral_raw,
        FfnNames("block_sparse_moe", "w3", "w1", "w2"),
    ),
    "olmoe": CausalFamily("OlmoeForCausalLM", _olmoe, _olmoe_raw),
    "qwen2_moe": CausalFamily("Qwen2MoeForCausalLM", _qwen2_moe, _qwen2_moe_raw),
    "qwen3_moe": CausalFamily("Qwen3MoeForCausalLM", _qwen3_moe, _qwen3_moe_raw),
}


def read_causal_config(raw: Raw, where: str) -> tuple[CausalConfig, FfnNames]:
    """Reads the contents of a config.json.

    Args:
      raw: the JSON object.
      where: the file, for messages.

    Returns:
      The validated config (dtype "float32") and the names of the feed-forward tensors.

    Raises:
      UserError: the architecture or one of its options isn't covered, or a field is missing.
    """
    family = CAUSAL_FAMILIES.get(family_name(raw))
    if family is None:
        raise UserError(
            f"{where}: model_type={shown(raw.get('model_type'))} is not covered; covered are "
            f"{', '.join(CAUSAL_FAMILIES)}"
        )
    fields = Fields(raw, where)
    check_layers_alike(fields)
    config = family.read(fields)
    with fields_of(where):
        config.validate()
    return config, family.names


def write_causal_config(config: CausalConfig) -> tuple[dict[str, Any], FfnNames]:
    """The config.json of the first family that says all that the config says, and its names.

    Args:
      config: of the model; its dtype and the options of its experts are not part of the file.

    Raises:
      UserError: no family does.
    """
    for name, family in CAUSAL_FAMILIES.items():
        if (name == "llama") != (config.experts is None):
            continue
        raw = {"model_type": name, **_base_raw(config), **family.write(config)}
        if _says(family, raw, config):
            return {"architectures": [family.architecture], **raw}, family.names
    raise UserError(
        "no covered architecture of transformers "
        f"({', '.join(CAUSAL_FAMILIES)}) has these layers: {config}"
    )


def _says(family: CausalFamily, raw: Raw, config: CausalConfig) -> bool:
    try:
        return _plain(family.read(Fields(raw, "config.json"))) == _plain(config)
    except UserError:  # the family has no such value
        return False


def _plain(config: CausalConfig) -> CausalConfig:
    """The config with what follows from others written out and what nothing reads cleared."""
    experts = config.experts
    if experts is not None:
        experts = dataclasses.replace(experts, layers=config.expert_layers, options=ExpertOptions())
    all_sparse = len(config.expert_layers) == config.num_layers
    return dataclasses.replace(
        config,
        dtype="float32",
        head_dim=config.width_of_head,
        d_ff=0 if all_sparse else config.d_ff,
        experts=experts,
    )
