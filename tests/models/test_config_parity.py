"""What config.json leaves out or says twice, against transformers' config classes (`make parity`)."""

import copy
import json

import pytest

from moe_jax.errors import UserError
from moe_jax.models.causal_families import read_causal_config, write_causal_config
from moe_jax.models.families import read_config
from moe_jax.models.switch_config import read_switch_config, write_switch_config
from tests.models import small_causal, small_encoders, small_switch

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ALL = {
    **{f"causal {name}": raw for name, raw in small_causal.CONFIGS.items()},
    **{f"encoder {name}": raw for name, raw in small_encoders.CONFIGS.items()},
    **{f"switch {name}": raw for name, raw in small_switch.CONFIGS.items()},
}
# Fields that a file may have beside those of the small configs.
MORE = {
    "causal": [
        {"rope_parameters": None, "rope_theta": 777},
        {"rope_parameters": {}, "rope_theta": 777.0},
        {"rope_parameters": {"rope_theta": 500.0}},
        {"rope_parameters": {"type": "linear", "factor": 2}},
        {"rope_parameters": {"rope_type": "linear", "type": "linear", "factor": 2}},
        {"rope_parameters": {"rope_type": "linear", "type": "llama3", "factor": 2}},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_scaling": {}},
        {"rope_scaling": None, "rope_theta": 777.0},
        {"rope_theta": 777.0},
        {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
        {"rope_parameters": small_causal._LLAMA3, "original_max_position_embeddings": 24},
        {"rope_parameters": {**small_causal._LLAMA3, "original_max_position_embeddings": 24}},
        {"rope_parameters": {k: v for k, v in small_causal._LLAMA3.items() if "original" not in k}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
        {"partial_rotary_factor": 1.0},
        {"head_dim": 12},
        {"head_dim": 6},
        {"head_dim": None},
        {"num_local_experts": 9},
        {"num_experts": 9},
        {"num_experts": 9, "num_local_experts": 9},
        {"sliding_window": 8},
        {"sliding_window": 8, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 3},
        {"layer_types": ["sliding_attention"] * 3},
        {"layer_types": ["full_attention"]},
        {"mlp_only_layers": [0, 7], "decoder_sparse_step": 1},
        {"mlp_only_layers": None, "decoder_sparse_step": 3},
        {"attention_bias": True},
        {"qkv_bias": False},
        {"clip_qkv": 3.0},
        {"norm_topk_prob": True},
        {"tie_word_embeddings": True},
    ],
    "encoder": [
        {"pad_token_id": None},
        {"pad_token_id": 3},
        {"hidden_size": 48},
        {"num_attention_heads": 12},
        {"num_hidden_layers": 5},
        {"layer_norm_eps": 1e-3},
    ],
    "switch": [
        {"num_decoder_layers": None},
        {"hidden_size": 48},
        {"num_attention_heads": 12},
        {"num_hidden_layers": 1},
        {"num_sparse_encoder_layers": 1},
        {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 2},
        {"feed_forward_proj": "gelu"},
        {"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False},
        {"router_jitter_noise": 0},
        {"pad_token_id": 4, "eos_token_id": [1, 2]},
    ],
}
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def variants():
    """(family and config, change): every field left out, and every addition."""
    for name, raw in ALL.items():
        kind = name.split()[0]
        for field in raw:
            if field != "model_type":
                yield pytest.param(kind, raw, {}, field, id=f"{name}, no {field}")
                if kind == "switch" and field.endswith("sparse_step"):
                    more = {f"num_sparse_{field.split('_')[0]}_layers": 2}
                    yield pytest.param(kind, raw, more, field, id=f"{name}, layers, no {field}")
        more_of_kind = MORE[kind]
        if raw["model_type"] in ("llama", "olmoe"):  # the others' classes refuse it
            more_of_kind = [*more_of_kind, {"num_key_value_heads": None}]
        for more in more_of_kind:
            yield pytest.param(kind, raw, more, None, id=f"{name} with {json.dumps(more)}")


def their_config(raw):
    """The config that transformers makes of a file, complete."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))
    if hasattr(config, "rope_parameters"):
        config.standardize_rope_params()  # as its layers do
    return config


def causal(theirs):
    """What their config says, in our words."""
    rope = theirs.rope_parameters
    kind = theirs.model_type
    width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    found = {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.hidden_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "num_kv_heads": theirs.num_key_value_heads,
        "width_of_head": width,
        "activation": ACTIVATIONS.get(theirs.hidden_act, theirs.hidden_act),
        "norm_eps": theirs.rms_norm_eps,
        "max_length": theirs.max_position_embeddings,
        "tie_embeddings": theirs.tie_word_embeddings,
        "window": theirs.sliding_window if kind == "mixtral" else None,
        "clip_qkv": theirs.clip_qkv if kind == "olmoe" else None,
        "qkv_bias": {"qwen2_moe": "qkv_bias", "mixtral": ""}.get(kind, "attention_bias"),
        "out_bias": {"qwen2_moe": "", "mixtral": ""}.get(kind, "attention_bias"),
        "theta": rope["rope_theta"],
        "scaling": {"default": "none"}.get(rope["rope_type"], rope["rope_type"]),
    }
    for name in ("qkv_bias", "out_bias"):
        found[name] = bool(found[name]) and getattr(theirs, found[name])
    if found["scaling"] != "none":
        found["factor"] = rope["factor"]
    if found["scaling"] == "llama3":
        found["low_factor"], found["high_factor"] = (
            rope["low_freq_factor"],
            rope["high_freq_factor"],
        )
        found["original_length"] = rope["original_max_position_embeddings"]
    if kind == "llama":
        return found | {"d_ff": theirs.intermediate_size, "expert_layers": ()}
    small = kind.startswith("qwen")
    layers = range(theirs.num_hidden_layers)
    if small:
        step, dense = theirs.decoder_sparse_step, theirs.mlp_only_layers
        layers = [i for i in layers if i not in dense and (i + 1) % step == 0]
        found["d_ff"] = theirs.intermediate_size
    return found | {
        "expert_layers": tuple(layers),
        "num_experts": theirs.num_local_experts if kind == "mixtral" else theirs.num_experts,
        "k": theirs.num_experts_per_tok,
        "renormalise": kind == "mixtral" or theirs.norm_topk_prob,
        "d_expert": theirs.moe_intermediate_size if small else theirs.intermediate_size,
        "d_shared": theirs.shared_expert_intermediate_size if kind == "qwen2_moe" else None,
    }


def encoder(theirs):
    """What their config says, in our words."""
    short = theirs.model_type == "distilbert"
    counts = theirs.model_type in ("roberta", "xlm-roberta")
    act = theirs.activation if short else theirs.hidden_act
    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.hidden_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": theirs.num_attention_heads,
        "d_ff": theirs.hidden_dim if short else theirs.intermediate_size,
        "num_positions": theirs.max_position_embeddings,
        "position_offset": theirs.pad_token_id + 1 if counts else 0,
        "num_token_types": 0 if short else theirs.type_vocab_size,
        "activation": ACTIVATIONS.get(act, act),
        "norm_eps": 1e-12 if short else theirs.layer_norm_eps,
        # Without one, any id can fill what is masked.
        "pad_id": theirs.pad_token_id or 0,
    }


def switch(theirs):
    """What their config says, in our words."""

    def sparse(count, step):  # their stack's rule
        return tuple(i for i in range(count) if step > 0 and (i % step == 1 or step == 1))

    return {
        "vocab_size": theirs.vocab_size,
        "d_model": theirs.d_model,
        "num_layers": theirs.num_layers,
        "num_decoder_layers": theirs.num_decoder_layers,
        "num_heads": theirs.num_heads,
        "head_dim": theirs.d_kv,
        "d_ff": theirs.d_ff,
        "num_experts": theirs.num_experts,
        "capacity": theirs.expert_capacity,
        "jitter": theirs.router_jitter_noise,
        "router_bias": theirs.router_bias,
        "encoder_layers": sparse(theirs.num_layers, theirs.encoder_sparse_step),
        "decoder_layers": sparse(theirs.num_decoder_layers, theirs.decoder_sparse_step),
        "activation": ACTIVATIONS.get(theirs.dense_act_fn, theirs.dense_act_fn),
        "norm_eps": theirs.layer_norm_epsilon,
        "num_buckets": theirs.relative_attention_num_buckets,
        "max_distance": theirs.relative_attention_max_distance,
        "tie_embeddings": theirs.tie_word_embeddings,
        "pad_id": theirs.pad_token_id or 0,
        "stop_ids": tuple(theirs.eos_token_id)
        if isinstance(theirs.eos_token_id, list)
        else ()
        if theirs.eos_token_id is None
        else (theirs.eos_token_id,),
    }


def our_config(kind, raw):
    """Ours, read from the same file."""
    if kind == "switch":
        return read_switch_config(raw, "config.json")
    return (read_causal_config if kind == "causal" else read_config)(raw, "config.json")[0]


def read_or_message(kind, raw):
    """Ours, or why it is refused."""
    try:
        return our_config(kind, raw)
    except UserError as error:
        return str(error)


def values(config, names):
    """Ours by name, whichever part of the config they are in."""
    parts = [config, getattr(config, "rope", None), getattr(config, "gate", None)]
    experts = getattr(config, "experts", None)
    parts += [] if experts is None else [experts, experts.gate]
    return {n: next(getattr(p, n) for p in parts if hasattr(p, n)) for n in names}


@pytest.mark.parametrize(("kind", "raw", "more", "left_out"), list(variants()))
def test_what_is_left_out_or_said_twice(kind, raw, more, left_out):
    raw = {k: v for k, v in (raw | more).items() if k != left_out}
    ours = read_or_message(kind, raw)
    if isinstance(ours, str):  # a refusal names what it refuses
        assert any(name in ours for name in ([left_out] if left_out else more))
        return
    theirs = {"causal": causal, "encoder": encoder, "switch": switch}[kind](their_config(raw))
    assert values(ours, theirs) == theirs


@pytest.mark.parametrize("name", [name for name in ALL if "encoder" not in name.split()[0]])
def test_what_is_written_is_read_alike(name):
    kind, raw = name.split()[0], ALL[name]
    ours = our_config(kind, raw)
    written = write_switch_config(ours) if kind == "switch" else write_causal_config(ours)[0]
    theirs = {"causal": causal, "switch": switch}[kind](their_config(written))
    found = values(ours, theirs)
    assert found == theirs
