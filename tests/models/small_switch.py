"""Small Switch Transformers as the folders that Hugging Face's library saves."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

_BASE = {
    "model_type": "switch_transformers",
    "vocab_size": 40,
    "d_model": 20,
    "d_kv": 6,
    "d_ff": 14,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "num_experts": 4,
    "expert_capacity": 64,
    "router_bias": False,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "dense_act_fn": "relu",
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "tie_word_embeddings": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "base": _BASE,
    "full experts, every layer": {
        **_BASE,
        "expert_capacity": 2,
        "encoder_sparse_step": 1,
        "decoder_sparse_step": 1,
        "num_layers": 1,
    },
    "biased, untied": {
        **_BASE,
        "expert_capacity": 3,
        "router_bias": True,
        "tie_word_embeddings": False,
        "dense_act_fn": "gelu_pytorch_tanh",
    },
    "sparse encoder, dense decoder": {
        **_BASE,
        "num_experts": 3,
        "expert_capacity": 1,
        "num_layers": 3,
        "num_decoder_layers": 1,
        "decoder_sparse_step": 0,
        "layer_norm_epsilon": 1e-3,
        "relative_attention_num_buckets": 7,
        "relative_attention_max_distance": 10,
    },
}


def sparse(config: dict[str, Any], stack: str, i: int) -> bool:
    """Whether layer i has a mixture."""
    step = config[f"{stack}_sparse_step"]
    return step > 0 and (step == 1 or i % step == 1)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, as transformers 5 writes them."""
    v, d, f = config["vocab_size"], config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    out: dict[str, tuple[int, ...]] = {"shared.weight": (v, d)}
    if not config["tie_word_embeddings"]:
        for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
            out[f"{name}.weight"] = (v, d)
    for stack, count in (
        ("encoder", config["num_layers"]),
        ("decoder", config["num_decoder_layers"]),
    ):
        kinds = ["SelfAttention"] + ["EncDecAttention"] * (stack == "decoder")
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out[table] = (config["relative_attention_num_buckets"], config["num_heads"])
        for i in range(count):
            block = f"{stack}.block.{i}.layer"
            for j, kind in enumerate(kinds):
                out[f"{block}.{j}.layer_norm.weight"] = (d,)
                for letter in "qkv":
                    out[f"{block}.{j}.{kind}.{letter}.weight"] = (inner, d)
                out[f"{block}.{j}.{kind}.o.weight"] = (d, inner)
            last = f"{block}.{len(kinds)}"
            out[f"{last}.layer_norm.weight"] = (d,)
            experts = [f"{last}.mlp"]
            if sparse(config, stack, i):
                e = config["num_experts"]
                out[f"{last}.mlp.router.classifier.weight"] = (e, d)
                if config["router_bias"]:
                    out[f"{last}.mlp.router.classifier.bias"] = (e,)
                experts = [f"{last}.mlp.experts.expert_{n}" for n in range(e)]
            for name in experts:
                out |= {f"{name}.wi.weight": (f, d), f"{name}.wo.weight": (d, f)}
        out[f"{stack}.final_layer_norm.weight"] = (d,)
    return out


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors: tables normal(1), other matrices normal(0.3), norms around 1."""
    random = np.random.RandomState(seed)
    out = {}
    for name, shape in shapes(config).items():
        value = random.randn(*shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * value
        elif not name.endswith(("shared.weight", "embed_tokens.weight", "bias.weight")):
            value = 0.3 * value
        out[name] = value.astype(np.float32)
    return out


def write(
    folder: pathlib.Path, config: dict[str, Any], weights: dict[str, np.ndarray] | None = None
) -> pathlib.Path:
    """Writes config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        tensors(config) if weights is None else weights,
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder
