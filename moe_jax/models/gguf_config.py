"""The shape of a GGUF file's model, as a Hugging Face config.json has it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from moe_jax.errors import UserError
from moe_jax.models.gguf_metadata import Metadata

# The architecture whose files hold the rows of q and k in the order of pairs.
PAIRED = "llama"


class _Mixture(NamedTuple):
    """How llama.cpp runs an architecture's mixtures.

    Attributes:
      model_type: of Hugging Face.
      normalised: the weights of the chosen experts sum to 1. Files seldom say so: llama.cpp has it
        in its code.
      free_width: heads may have another width than hidden_size / num_attention_heads.
    """

    model_type: str
    normalised: bool
    free_width: bool


_MIXTURES = {
    "llama": _Mixture("mixtral", normalised=True, free_width=True),
    "olmoe": _Mixture("olmoe", normalised=False, free_width=False),
    "qwen2moe": _Mixture("qwen2_moe", normalised=False, free_width=False),
    "qwen3moe": _Mixture("qwen3_moe", normalised=True, free_width=True),
}
_SOFTMAX = (0, 1)  # expert_gating_func; 0: not set


def raw_config(metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The metadata as a config.json of a family in causal_families has them.

    Args:
      metadata: of the file.
      shapes: of its tensors by name, axes in NumPy's order.

    Raises:
      UserError: a key is missing or of another type, or the model isn't of a covered kind.
    """
    file, a = metadata.file, metadata.need("general.architecture", str)
    if a not in _MIXTURES:
        raise UserError(
            f"{file}: architecture {a!r} is not covered; covered are {', '.join(_MIXTURES)}"
        )
    if (parts := metadata.get("split.count", int) or 1) > 1:
        raise UserError(
            f"{file} is one of {parts} parts (split.count), which are not covered; join them "
            "(llama-gguf-split --merge)"
        )
    if _no(metadata.get(f"{a}.attention.causal", int)):
        raise UserError(f"{file}: attention to both sides (attention.causal=false) is not covered")
    layers = metadata.count(f"{a}.block_count")
    if layers > len(shapes):
        raise UserError(f"{file} has {len(shapes)} tensors, too few for its {layers} layers")
    dense = a == "llama" and not metadata.get("llama.expert_count", int)
    length = metadata.count(f"{a}.context_length")
    window = metadata.get(f"{a}.attention.sliding_window", int) or length
    if window < length and (dense or a != "llama"):
        raise UserError(f"{file}: {a}.attention.sliding_window={window} is not covered")
    raw = {
        "model_type": "llama",
        "vocab_size": metadata.count(f"{a}.vocab_size", 0)
        or len(metadata.need("tokenizer.ggml.tokens", list)),
        "num_hidden_layers": layers,
        **_heads(metadata, a),
        "intermediate_size": metadata.count(f"{a}.feed_forward_length"),
        "rms_norm_eps": metadata.more_than_0(f"{a}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(metadata, a, set(shapes)),
        "max_position_embeddings": length,
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
    }
    if dense:
        return raw
    return (
        raw
        | {"sliding_window": window if window < length else None}
        | _experts(metadata, a, raw, shapes)
    )


def _no(found: int | None) -> bool:
    return found is not None and not found


def _heads(metadata: Metadata, a: str) -> dict[str, Any]:
    """How many heads there are and how wide they are."""
    heads = metadata.count(f"{a}.attention.head_count")
    wide = metadata.count(f"{a}.embedding_length")
    even = wide // heads
    width = metadata.count(f"{a}.attention.key_length", even)
    if width != even and not _MIXTURES[a].free_width:
        raise UserError(
            f"{metadata.file}: {a}.attention.key_length={width} is not covered, only "
            f"embedding_length / head_count, {even}"
        )
    for key in ("attention.value_length", "rope.dimension_count"):
        found = metadata.get(f"{a}.{key}", int)
        if found not in (None, width):
            raise UserError(
                f"{metadata.file}: {key}={found} is not covered, only the heads' width, {width}"
            )
    return {
        "hidden_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count(f"{a}.attention.head_count_kv", heads),
        "head_dim": width,
    }


def _rope(metadata: Metadata, a: str, tensors: set[str]) -> dict[str, Any]:
    """As llama.cpp reads it: a factor without a type is linear."""
    if "rope_freqs.weight" in tensors:
        raise UserError(
            f"{metadata.file}: rope_freqs.weight (Llama 3.1's scaling) is not covered in GGUF "
            "files; load the model's safetensors"
        )
    theta = metadata.more_than_0(f"{a}.rope.freq_base", 10_000.0)
    kind = metadata.get(f"{a}.rope.scaling.type", str) or "linear"
    factor, older = (
        metadata.get(f"{a}.rope.{key}", float) for key in ("scaling.factor", "scale_linear")
    )
    if None not in (factor, older) and factor != older:
        raise UserError(
            f"{metadata.file}: {a}.rope.scaling.factor={factor} and {a}.rope.scale_linear={older} "
            "must be the same, or one of them left out"
        )
    factor = older if factor is None else factor
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return {"rope_type": "default", "rope_theta": theta}
    if kind != "linear":
        raise UserError(
            f"{metadata.file}: rope.scaling.type={kind!r} is not covered, only none and linear"
        )
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _experts(
    metadata: Metadata, a: str, raw: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What a family with experts has beyond a dense one."""
    mixture, used = _MIXTURES[a], metadata.count(f"{a}.expert_used_count")
    count = _expert_count(metadata, a, shapes)
    _check_gate(metadata, a)
    normalised = metadata.get(f"{a}.expert_weights_norm", int)
    fields = {"model_type": mixture.model_type, "num_experts_per_tok": used}
    if a == "llama":
        if _no(normalised):
            raise UserError(f"{metadata.file}: {a}.expert_weights_norm=false is not covered")
        return fields | {"num_local_experts": count}
    fields |= {
        "num_experts": count,
        "norm_topk_prob": mixture.normalised if normalised is None else bool(normalised),
    }
    if a == "olmoe":
        return fields | {"clip_qkv": metadata.get(f"{a}.attention.clamp_kqv", float) or None}
    wide = raw["intermediate_size"]
    return fields | {
        # llama.cpp's own rule where a key is missing; it has no dense layers here.
        "moe_intermediate_size": metadata.get(f"{a}.expert_feed_forward_length", int)
        or wide // used,
        "shared_expert_intermediate_size": metadata.get(
            f"{a}.expert_shared_feed_forward_length", int
        )
        or wide,
        "qkv_bias": raw["attention_bias"],
    }


def _check_gate(metadata: Metadata, a: str) -> None:
    """Refuses gates that CausalLM hasn't got."""
    scale = metadata.get(f"{a}.expert_weights_scale", float)
    kind = metadata.get(f"{a}.expert_gating_func", int)
    groups = metadata.get(f"{a}.expert_group_count", int)
    for key, found, covered, only in (
        ("expert_weights_scale", scale, scale in (None, 0.0, 1.0), "1"),
        ("expert_gating_func", kind, kind is None or kind in _SOFTMAX, "1 (softmax)"),
        ("expert_group_count", groups, (groups or 1) <= 1, "1"),
    ):
        if not covered:
            raise UserError(f"{metadata.file}: {a}.{key}={found} is not covered, only {only}")


def _expert_count(metadata: Metadata, a: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many experts a layer has: the metadata and every stack of experts must agree."""
    count = metadata.need(f"{a}.expert_count", int)
    stacks = {name: shape for name, shape in shapes.items() if name.endswith("_exps.weight")}
    for name, shape in stacks.items():
        if len(shape) != 3 or shape[0] != count:
            raise UserError(
                f"{metadata.file}: {name} has shape {shape}, {a}.expert_count={count} asks for "
                f"({count}, out, in)"
            )
    if not stacks and count > len(shapes):
        raise UserError(
            f"{metadata.file} has {len(shapes)} tensors, too few for {a}.expert_count={count}"
        )
    return count
