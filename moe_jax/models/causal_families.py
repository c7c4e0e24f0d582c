"""Which Hugging Face causal language models are covered, and how their config.json is read.

Each family is a function from config.json to CausalConfig and one back; a model of ours can be
saved as any family whose config.json says all of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.models.causal_config import CausalConfig, ExpertsConfig, RopeConfig
from moe_jax.models.families import activation, fields_of

Raw = Mapping[str, Any]


class FfnNames(NamedTuple):
    """Names of a family's feed-forward tensors, below model.layers.N."""

    moe: str = "mlp"
    up: str = "up_proj"
    gate: str = "gate_proj"
    down: str = "down_proj"


class CausalFamily(NamedTuple):
    """One `model_type`.

    Attributes:
      architecture: the class that transformers builds.
      read: from config.json.
      write: the fields of config.json that `read` needs, beyond those of every family.
      names: of the feed-forward tensors; dense layers always have those of Llama.
    """

    architecture: str
    read: Callable[[Raw], CausalConfig]
    write: Callable[[CausalConfig], dict[str, Any]]
    names: FfnNames = FfnNames()


def _rope(raw: Raw) -> RopeConfig:
    """`rope_parameters`, or `rope_theta` and `rope_scaling` in files from before transformers 5."""
    given = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = float(given.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, scaling="linear", factor=float(given["factor"]))
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            scaling="llama3",
            factor=float(given["factor"]),
            low_factor=float(given["low_freq_factor"]),
            high_factor=float(given["high_freq_factor"]),
            original_length=given["original_max_position_embeddings"],
        )
    raise UserError(f"rope_type={kind!r} is not covered, only default, linear and llama3")


def _rope_raw(rope: RopeConfig) -> dict[str, Any]:
    raw: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.scaling != "none":
        raw |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        raw |= {
            "low_freq_factor": rope.low_factor,
            "high_freq_factor": rope.high_factor,
            "original_max_position_embeddings": rope.original_length,
        }
    return raw


def _base(raw: Raw, **more: Any) -> CausalConfig:
    """What all families have."""
    heads = raw["num_attention_heads"]
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"partial_rotary_factor={raw['partial_rotary_factor']} is not covered, only 1"
        )
    return CausalConfig(
        vocab_size=raw["vocab_size"],
        d_model=raw["hidden_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        d_ff=raw["intermediate_size"],
        activation=activation(raw.get("hidden_act", "silu")),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=_rope(raw),
        max_length=raw["max_position_embeddings"],
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        **more,
    )


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
        "rope_parameters": _rope_raw(config.rope),
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _llama(raw: Raw) -> CausalConfig:
    if raw.get("mlp_bias"):
        raise UserError("mlp_bias=true is not covered")
    bias = bool(raw.get("attention_bias", False))
    return _base(raw, head_dim=raw.get("head_dim"), qkv_bias=bias, out_bias=bias)


def _llama_raw(config: CausalConfig) -> dict[str, Any]:
    return {"head_dim": config.width_of_head, "attention_bias": config.qkv_bias}


def _mixtral(raw: Raw) -> CausalConfig:
    gate = GateConfig(
        num_experts=raw["num_local_experts"], k=raw["num_experts_per_tok"], renormalise=True
    )
    experts = ExpertsConfig(gate=gate, d_expert=raw["intermediate_size"])
    return _base(
        raw, head_dim=raw.get("head_dim"), window=raw.get("sliding_window"), experts=experts
    )


def _mixtral_raw(config: CausalConfig) -> dict[str, Any]:
    gate = _gate(config)
    return {
        "head_dim": config.width_of_head,
        "intermediate_size": config.experts.d_expert if config.experts else None,
        "sliding_window": config.window,
        "num_local_experts": gate.num_experts,
        "num_experts_per_tok": gate.k,
    }


def _olmoe(raw: Raw) -> CausalConfig:
    bias = bool(raw.get("attention_bias", False))
    experts = ExpertsConfig(gate=_plain_gate(raw), d_expert=raw["intermediate_size"])
    return _base(
        raw,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="all",
        clip_qkv=raw.get("clip_qkv"),
        experts=experts,
    )


def _olmoe_raw(config: CausalConfig) -> dict[str, Any]:
    return _plain_gate_raw(config) | {
        "intermediate_size": config.experts.d_expert if config.experts else None,
        "attention_bias": config.qkv_bias,
        "clip_qkv": config.clip_qkv,
    }


def _qwen2_moe(raw: Raw) -> CausalConfig:
    _no_windows(raw)
    experts = ExpertsConfig(
        gate=_plain_gate(raw),
        d_expert=raw["moe_intermediate_size"],
        d_shared=raw["shared_expert_intermediate_size"],
        shared_gate=True,
        layers=_sparse_layers(raw),
    )
    return _base(raw, qkv_bias=bool(raw.get("qkv_bias", True)), experts=experts)


def _qwen2_moe_raw(config: CausalConfig) -> dict[str, Any]:
    shared = config.experts.d_shared if config.experts else None
    return _qwen_moe_raw(config) | {
        "qkv_bias": config.qkv_bias,
        "shared_expert_intermediate_size": shared,
    }


def _qwen3_moe(raw: Raw) -> CausalConfig:
    _no_windows(raw)
    bias = bool(raw.get("attention_bias", False))
    experts = ExpertsConfig(
        gate=_plain_gate(raw), d_expert=raw["moe_intermediate_size"], layers=_sparse_layers(raw)
    )
    head_dim = raw.get("head_dim")
    return _base(
        raw, head_dim=head_dim, qkv_bias=bias, out_bias=bias, qk_norm="head", experts=experts
    )


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


def _no_windows(raw: Raw) -> None:
    if raw.get("use_sliding_window"):
        raise UserError("use_sliding_window=true is not covered")


def _sparse_layers(raw: Raw) -> tuple[int, ...] | None:
    """Layer i has a mixture unless listed as dense or skipped by the step; None: all have."""
    step, dense = raw.get("decoder_sparse_step", 1), set(raw.get("mlp_only_layers") or ())
    count = raw["num_hidden_layers"]
    layers = tuple(i for i in range(count) if i not in dense and (i + 1) % step == 0)
    return None if len(layers) == count else layers


def _plain_gate(raw: Raw) -> GateConfig:
    """Softmax, then top-k; renormalised where the file says so (released checkpoints differ)."""
    # transformers 5 writes num_local_experts for some families whose files had num_experts.
    experts = raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"]
    return GateConfig(
        num_experts=experts,
        k=raw["num_experts_per_tok"],
        renormalise=bool(raw.get("norm_topk_prob", False)),
    )


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
    family = CAUSAL_FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise UserError(
            f"{where}: model_type={raw.get('model_type')!r} is not covered; covered are "
            f"{', '.join(CAUSAL_FAMILIES)}"
        )
    with fields_of(where):
        config = family.read(raw)
        config.validate()
    return config, family.names


def write_causal_config(config: CausalConfig) -> tuple[dict[str, Any], FfnNames]:
    """The config.json of the first family that says all that the config says, and its names.

    Args:
      config: of the model; its dtype is not part of the file.

    Raises:
      UserError: no family does.
    """
    for name, family in CAUSAL_FAMILIES.items():
        if (name == "llama") != (config.experts is None):
            continue
        raw = {"model_type": name, **_base_raw(config), **family.write(config)}
        if _plain(family.read(raw)) == _plain(config):
            return {"architectures": [family.architecture], **raw}, family.names
    raise UserError(
        "no covered architecture of transformers "
        f"({', '.join(CAUSAL_FAMILIES)}) has these layers: {config}"
    )


def _plain(config: CausalConfig) -> CausalConfig:
    """The config with what follows from others written out and what nothing reads cleared."""
    experts = config.experts
    if experts is not None:
        experts = dataclasses.replace(experts, layers=config.expert_layers)
    all_sparse = len(config.expert_layers) == config.num_layers
    return dataclasses.replace(
        config,
        dtype="float32",
        head_dim=config.width_of_head,
        d_ff=0 if all_sparse else config.d_ff,
        experts=experts,
    )
