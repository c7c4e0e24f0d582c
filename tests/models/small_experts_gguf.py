"""Small mixtures as GGUF files in llama.cpp's layout."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np

from tests.models import small_causal
from tests.models.test_gguf import KINDS, MERGES, TOKENS, in_pairs

ARCHITECTURES = {
    "mixtral": "llama",
    "olmoe": "olmoe",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
}
PARTS = {"w1": "gate", "w2": "down", "w3": "up"}
PARTS |= {f"{part}_proj": part for part in PARTS.values()}
OTHERS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def their_name(name: str) -> tuple[str, int | None]:
    """llama.cpp's name of a tensor that isn't an expert's, or the stack's and the expert."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}", None
    layer, rest = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem).groups()
    if found := re.fullmatch(r"\w+\.experts\.(\d+)\.(\w+)", rest):
        return f"blk.{layer}.ffn_{PARTS[found[2]]}_exps.{kind}", int(found[1])
    if found := re.fullmatch(r"mlp\.(shared_expert\.)?(\w+_proj)", rest):
        return f"blk.{layer}.ffn_{PARTS[found[2]]}{'_shexp' if found[1] else ''}.{kind}", None
    return f"blk.{layer}.{OTHERS[rest]}.{kind}", None


def file_tensors(config: dict[str, Any], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp's converter writes them: stacks, pairs for "llama", no [1, d]."""
    out: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in weights.items():
        theirs, expert = their_name(name)
        if expert is not None:
            stacks.setdefault(theirs, {})[expert] = value
            continue
        if config["model_type"] == "mixtral":
            for part, heads in (
                ("q_proj", "num_attention_heads"),
                ("k_proj", "num_key_value_heads"),
            ):
                value = in_pairs(value, config[heads]) if part in name else value
        out[theirs] = value.squeeze()
    for name, each in stacks.items():
        out[name] = np.stack([each[e] for e in range(len(each))])
    return out


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    a, rope = ARCHITECTURES[config["model_type"]], config["rope_parameters"]
    values: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "attention.sliding_window": config.get("sliding_window"),
        "attention.clamp_kqv": config.get("clip_qkv"),
        "rope.freq_base": rope["rope_theta"],
        "rope.scaling.type": "linear" if rope["rope_type"] == "linear" else None,
        "rope.scaling.factor": rope.get("factor"),
        "expert_count": config.get("num_experts", config.get("num_local_experts")),
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }
    usual = {"olmoe": False, "qwen2_moe": False, "qwen3_moe": True}.get(config["model_type"])
    if config.get("norm_topk_prob") != usual:
        values["expert_weights_norm"] = config["norm_topk_prob"]
    return {f"{a}.{key}": value for key, value in values.items() if value is not None} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.eos_token_id": 1,
    }


def write(
    file: pathlib.Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray] | None = None,
    *,
    change: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    edit: Callable[[dict[str, Any]], Any] = lambda tensors: None,
) -> pathlib.Path:
    """Writes a GGUF file of a mixture; `edit` may change the tensors, or make them (bytes, kind)."""
    writer = gguf.GGUFWriter(file, ARCHITECTURES[config["model_type"]])
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in (metadata(config) | (change or {})).items():
        if key not in drop:
            adders[type(value)](key, value)
    held: dict[str, Any] = file_tensors(config, weights or small_causal.tensors(config))
    edit(held)
    for name, given in held.items():
        value, kind = given if isinstance(given, tuple) else (given, None)
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
