"""Small causal language models of each architecture, as the folders that Hugging Face's library saves."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

_BASE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "eos_token_id": 3,
}
_LLAMA3 = {
    "rope_theta": 500.0,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_QWEN = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, "model_type": "llama"},
    "llama tied, biased, stretched": {
        **_BASE,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "head_dim": 8,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": _LLAMA3,
    },
    "llama linear": {
        **_BASE,
        "model_type": "llama",
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "linear", "factor": 3.0},
    },
    "mixtral": {
        **_BASE,
        "model_type": "mixtral",
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "mixtral windowed": {
        **_BASE,
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "sliding_window": 4,
        "head_dim": 10,
    },
    "olmoe": {
        **_BASE,
        "model_type": "olmoe",
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
    },
    "olmoe clipped": {
        **_BASE,
        "model_type": "olmoe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "clip_qkv": 0.7,
    },
    "qwen2_moe": {
        **_BASE,
        **_QWEN,
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 16,
        "norm_topk_prob": False,
        "mlp_only_layers": [1],
        "qkv_bias": True,
    },
    "qwen3_moe": {
        **_BASE,
        **_QWEN,
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
        "rms_norm_eps": 1e-6,
    },
}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under the hub's names: matrices normal(0.3), norms around 1."""
    random = np.random.RandomState(seed)
    out = {}
    for name, shape in _shapes(config).items():
        norm = name.endswith("norm.weight")
        value = 1 + 0.1 * random.randn(*shape) if norm else 0.3 * random.randn(*shape)
        out[name] = value.astype(np.float32)
    return out


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, v = config["hidden_size"], config["vocab_size"]
    width = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    kind = config["model_type"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (d,)
        for name, rows, columns in (("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, columns)
            if config.get("attention_bias") or (config.get("qkv_bias") and name != "o"):
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        if kind in ("olmoe", "qwen3_moe"):
            norms = (q, kv) if kind == "olmoe" else (width, width)
            shapes[f"{layer}.self_attn.q_norm.weight"] = norms[:1]
            shapes[f"{layer}.self_attn.k_norm.weight"] = norms[1:]
        shapes |= _ffn_shapes(config, layer, i)
    return {**shapes, "model.norm.weight": (d,)}


def _glu(start: str, names: tuple[str, str, str], d: int, f: int) -> dict[str, tuple[int, ...]]:
    up, gate, down = names
    return {
        f"{start}.{up}.weight": (f, d),
        f"{start}.{gate}.weight": (f, d),
        f"{start}.{down}.weight": (d, f),
    }


def _ffn_shapes(config: dict[str, Any], layer: str, i: int) -> dict[str, tuple[int, ...]]:
    d, f, plain = (
        config["hidden_size"],
        config["intermediate_size"],
        ("up_proj", "gate_proj", "down_proj"),
    )
    kind = config["model_type"]
    skipped = i in config.get("mlp_only_layers", ()) or (i + 1) % config.get(
        "decoder_sparse_step", 1
    )
    if kind == "llama" or skipped:
        return _glu(f"{layer}.mlp", plain, d, f)
    start = f"{layer}.{'block_sparse_moe' if kind == 'mixtral' else 'mlp'}"
    names = ("w3", "w1", "w2") if kind == "mixtral" else plain
    experts = config.get("num_experts", config.get("num_local_experts"))
    shapes: dict[str, tuple[int, ...]] = {f"{start}.gate.weight": (experts, d)}
    for e in range(experts):
        shapes |= _glu(f"{start}.experts.{e}", names, d, config.get("moe_intermediate_size", f))
    if kind == "qwen2_moe":
        shapes |= _glu(
            f"{start}.shared_expert", plain, d, config["shared_expert_intermediate_size"]
        )
        shapes[f"{start}.shared_expert_gate.weight"] = (1, d)
    return shapes


def write(
    folder: pathlib.Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray] | None = None,
    *,
    words: int = 40,
) -> pathlib.Path:
    """Writes config.json, model.safetensors and a tokenizer of `words` words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(config) if weights is None else weights, folder / "model.safetensors")
    vocab = {f"w{i}": i for i in range(words)}
    Tokenizer(models.WordLevel(vocab, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder
