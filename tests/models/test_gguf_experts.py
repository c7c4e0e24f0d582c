"""GGUF files of mixtures: the same models as from folders, chosen experts, and what is refused."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.models import PretrainedLM, gguf_file, load_lm, save_lm
from tests.models import small_causal
from tests.models.small_experts_gguf import ARCHITECTURES, their_name, write
from tests.models.test_gguf import in_pairs, q8_0

MIXTRAL, OLMOE = small_causal.CONFIGS["mixtral"], small_causal.CONFIGS["olmoe"]
# llama.cpp has no dense layers between Qwen's mixtures; the small configs have.
QWEN2 = {**small_causal.CONFIGS["qwen2_moe"], "mlp_only_layers": []}
QWEN3 = {**small_causal.CONFIGS["qwen3_moe"], "decoder_sparse_step": 1}
VARIANTS = {
    **{name: small_causal.CONFIGS[name] for name in ("mixtral", "mixtral windowed")},
    **{name: small_causal.CONFIGS[name] for name in ("olmoe", "olmoe clipped")},
    "qwen2_moe": QWEN2,
    "qwen2_moe, normalised": {**QWEN2, "norm_topk_prob": True, "rms_norm_eps": 1e-6},
    "qwen3_moe": QWEN3,
    "qwen3_moe, tied, stretched, not normalised": {
        **QWEN3,
        "tie_word_embeddings": True,
        "norm_topk_prob": False,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "linear", "factor": 3.0},
    },
}


def assert_same(ours: PretrainedLM, theirs: PretrainedLM) -> None:
    """Logits to the bit, the same experts with the same weights."""
    ids = jnp.asarray(np.random.RandomState(3).randint(0, 40, (2, 17)))
    mine, others = ours.model(ids), theirs.model(ids)
    np.testing.assert_array_equal(mine.logits, others.logits)
    np.testing.assert_array_equal(mine.routing.expert, others.routing.expert)
    np.testing.assert_array_equal(mine.routing.weight, others.routing.weight)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gives_what_the_same_weights_give_as_a_folder(tmp_path, variant):
    config = VARIANTS[variant]
    ours = load_lm(write(tmp_path / "m.gguf", config))
    theirs = load_lm(small_causal.write(tmp_path / "folder", config))
    assert_same(ours, theirs)
    same = dataclasses.replace(
        ours.config,
        norm_eps=theirs.config.norm_eps,
        head_dim=theirs.config.head_dim,
        clip_qkv=theirs.config.clip_qkv,
    )
    assert same == theirs.config
    assert ours.config.width_of_head == theirs.config.width_of_head
    assert ours.stop_ids == (1,)


@pytest.mark.parametrize("config", [MIXTRAL, QWEN2], ids=["mixtral", "qwen2_moe"])
def test_order_of_the_rows_of_q_and_k_is_the_architectures(tmp_path, config):
    """Read in the other architectures' order the logits would be others: the test above sees it."""
    weights = small_causal.tensors(config)
    ours = load_lm(write(tmp_path / "m.gguf", config, weights))
    for name in [name for name in weights if re.search(r"[qk]_proj", name)]:
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        weights[name] = in_pairs(weights[name], heads)
    wrong = load_lm(small_causal.write(tmp_path / "folder", config, weights))
    ids = jnp.asarray(np.random.RandomState(3).randint(0, 40, (2, 17)))
    assert np.abs(np.asarray(ours.model(ids).logits - wrong.model(ids).logits)).max() > 0.1


def test_quantised_stacks_stand_for_what_the_format_says(tmp_path):
    config = {**QWEN2, "hidden_size": 64, "intermediate_size": 32}
    config |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
    weights, q8 = small_causal.tensors(config), gguf.GGMLQuantizationType.Q8_0
    stand = {
        n: v if v.ndim == 1 or n.endswith("gate.weight") else q8_0(v)[1] for n, v in weights.items()
    }

    def quantise(tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            if value.ndim > 1 and "gate_inp" not in name:
                raw = q8_0(value.reshape(-1, value.shape[-1]))[0]
                tensors[name] = (raw.reshape(*value.shape[:-1], -1), q8)

    ours = load_lm(write(tmp_path / "m.gguf", config, weights, edit=quantise))
    assert_same(ours, load_lm(small_causal.write(tmp_path / "folder", config, stand)))


def test_a_tensor_for_each_expert_as_in_early_files(tmp_path):
    def split(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "_exps." in name]:
            for e, value in enumerate(tensors.pop(name)):
                tensors[name.replace("_exps.", f".{e}.")] = value

    ours = load_lm(write(tmp_path / "m.gguf", MIXTRAL, edit=split))
    assert_same(ours, load_lm(small_causal.write(tmp_path / "folder", MIXTRAL)))
    change = {"llama.expert_count": 2_000_000_000}
    file = write(tmp_path / "b.gguf", MIXTRAL, edit=split, change=change)
    with pytest.raises(UserError, match=r"tensors, too few for llama.expert_count=2000000000"):
        load_lm(file)
    change = {"llama.expert_count": 6}
    file = write(tmp_path / "c.gguf", MIXTRAL, edit=split, change=change)
    with pytest.raises(UserError, match=r"call for: blk.0.ffn_down.5.weight"):
        load_lm(file)


def fuse(tensors: dict[str, Any]) -> None:
    """A layer's gates and ups in one tensor, rows of the gate first."""
    for name in [name for name in tensors if "ffn_gate_exps." in name]:
        parts = [tensors.pop(name.replace("_gate_", f"_{part}_")) for part in ("gate", "up")]
        fused = name.replace("_gate_", "_gate_up_")
        if isinstance(parts[0], tuple):
            tensors[fused] = (np.concatenate([raw for raw, _ in parts], axis=1), parts[0][1])
        else:
            tensors[fused] = np.concatenate(parts, axis=1)


@pytest.mark.parametrize("config", [MIXTRAL, OLMOE, QWEN2, QWEN3], ids=lambda c: c["model_type"])
def test_gate_and_up_in_one_tensor(tmp_path, config):
    fused = gguf_file.read_gguf(write(tmp_path / "m.gguf", config, edit=fuse))
    plain = gguf_file.read_gguf(write(tmp_path / "p.gguf", config))
    assert fused.config == plain.config
    assert set(fused.tensors.names) == set(plain.tensors.names)
    for name in plain.tensors.names:
        np.testing.assert_array_equal(fused.tensors.read(name), plain.tensors.read(name))


def test_quantised_gate_and_up_in_one_tensor(tmp_path):
    config = {**QWEN3, "hidden_size": 64, "moe_intermediate_size": 32}
    q8 = gguf.GGMLQuantizationType.Q8_0

    def quantise(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "_exps." in name]:
            value = tensors[name]
            raw = q8_0(value.reshape(-1, value.shape[-1]))[0]
            tensors[name] = (raw.reshape(*value.shape[:-1], -1), q8)

    def both(tensors: dict[str, Any]) -> None:
        quantise(tensors)
        fuse(tensors)

    plain = gguf_file.read_gguf(write(tmp_path / "p.gguf", config, edit=quantise)).tensors
    fused = gguf_file.read_gguf(write(tmp_path / "m.gguf", config, edit=both)).tensors
    for name in plain.names:
        np.testing.assert_array_equal(fused.read(name), plain.read(name))


@pytest.mark.parametrize("config", [MIXTRAL, OLMOE, QWEN2, QWEN3], ids=lambda c: c["model_type"])
def test_names_are_those_of_llama_cpps_own_table(config):
    """The names that these tests write against the table that its converter uses."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[ARCHITECTURES[config["model_type"]]], 3)
    for name in small_causal.tensors(config):
        stem, _, kind = name.rpartition(".")
        # The names that the converter gives to its stacks.
        stem = re.sub(r"(mlp\.experts)\.\d+\.", r"\1.", stem)
        stem = re.sub(r"model\.(.+)block_sparse_moe\.(experts)\.\d+\.", r"\1feed_forward.\2.", stem)
        assert their_name(name)[0] == f"{table.get_name(stem)}.{kind}"


def test_each_experts_bytes_are_read_once(tmp_path, monkeypatch):
    found = gguf_file.read_gguf(write(tmp_path / "m.gguf", QWEN3))
    sizes, plain = [], gguf.quants.dequantize

    def count(data, kind):
        sizes.append(data.size)
        return plain(data, kind)

    monkeypatch.setattr(gguf.quants, "dequantize", count)
    for name in found.tensors.names:
        found.tensors.read(name)
    assert sum(sizes) == sum(value.size for value in small_causal.tensors(QWEN3).values())


def test_sizes_of_experts_that_the_file_leaves_out(tmp_path):
    """llama.cpp's rule: feed_forward_length over the experts used, and the whole of it."""
    config = {**QWEN2, "intermediate_size": 36, "shared_expert_intermediate_size": 36}
    drop = ("qwen2moe.expert_feed_forward_length", "qwen2moe.expert_shared_feed_forward_length")
    ours = load_lm(write(tmp_path / "m.gguf", config, drop=drop))
    assert_same(ours, load_lm(small_causal.write(tmp_path / "folder", config)))


def test_can_be_saved_as_a_folder_and_read_again(tmp_path):
    first = load_lm(write(tmp_path / "m.gguf", QWEN2))
    save_lm(first.model, tmp_path / "saved", tokenizer=first.tokenizer, stop_ids=first.stop_ids)
    again = load_lm(tmp_path / "saved")
    assert_same(first, again)
    assert again.tokenizer.encode("ab 12!\n").ids == first.tokenizer.encode("ab 12!\n").ids


def lacks(*names: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: [tensors.pop(name) for name in names]


def cut(tensors: dict[str, Any]) -> None:
    tensors["blk.1.ffn_down_exps.weight"] = tensors["blk.1.ffn_down_exps.weight"][:5]


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        (MIXTRAL, {"llama.expert_count": 6}, r"has shape \(5, .*llama.expert_count=6 asks for \(6"),
        (QWEN3, {"qwen3moe.expert_count": 0}, "qwen3moe.expert_count=0 asks for"),
        (OLMOE, {"olmoe.expert_used_count": 9}, "k"),
        (OLMOE, {"olmoe.expert_used_count": "two"}, "expert_used_count='two' must be of type int"),
        (QWEN2, {"qwen2moe.expert_gating_func": 2}, r"gating_func=2 is not covered, only 1 \(soft"),
        (QWEN3, {"qwen3moe.expert_weights_scale": 2.5}, "weights_scale=2.5 is not covered, only 1"),
        (QWEN3, {"qwen3moe.expert_group_count": 4}, "expert_group_count=4 is not covered"),
        (MIXTRAL, {"llama.expert_weights_norm": False}, "expert_weights_norm=false is not covered"),
        (OLMOE, {"olmoe.attention.key_length": 8}, "olmoe.attention.key_length=8 is not covered"),
        (QWEN2, {"qwen2moe.attention.key_length": 8}, "only embedding_length / head_count, 6"),
        (QWEN3, {"qwen3moe.attention.sliding_window": 8}, "sliding_window=8 is not covered"),
        (QWEN3, {"qwen3moe.rope.scaling.type": "yarn"}, "scaling.type='yarn' is not covered"),
        (QWEN2, {"qwen2moe.expert_feed_forward_length": 20}, r"has shape \(12, 24\), its config"),
        (OLMOE, {"split.count": 2}, r"is one of 2 parts \(split.count\), which are not covered"),
        (OLMOE, {"tokenizer.ggml.pre": "bloom"}, "pre='bloom' is not covered, only gpt-2, smollm"),
    ],
)
def test_metadata_that_are_refused(tmp_path, config, change, match):
    file = write(tmp_path / "m.gguf", config, change=change)
    with pytest.raises(UserError, match=match) as caught:
        load_lm(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count", "feed_forward_length"])
def test_a_key_is_missing(tmp_path, key):
    file = write(tmp_path / "m.gguf", QWEN3, drop=(f"qwen3moe.{key}",))
    with pytest.raises(UserError, match=f"lacks the metadata key qwen3moe.{key}"):
        load_lm(file)


def test_types_of_numbers_may_be_mixed(tmp_path):
    def mix(tensors: dict[str, Any]) -> None:
        for i, name in enumerate(tensors):
            kind = (np.float16, np.float64, np.float32)[i % 3]
            tensors[name] = tensors[name].astype(np.float16).astype(kind)

    mixed = gguf_file.read_gguf(write(tmp_path / "m.gguf", QWEN2, edit=mix)).tensors
    for name, value in small_causal.tensors(QWEN2).items():
        np.testing.assert_array_equal(mixed.read(name), value.astype(np.float16))


def test_whole_numbers_are_refused(tmp_path):
    def cast(tensors: dict[str, Any]) -> None:
        tensors["blk.1.ffn_norm.weight"] = np.ones(24, np.int8)

    file = write(tmp_path / "m.gguf", QWEN3, edit=cast)
    with pytest.raises(UserError, match=r"blk.1.ffn_norm.weight is of type I8, which is not cov"):
        load_lm(file)


def fused_but(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    def edit(tensors: dict[str, Any]) -> None:
        fuse(tensors)
        tensors[name] = change(tensors.get(name))

    return edit


@pytest.mark.parametrize(
    ("config", "edit", "match"),
    [
        (
            QWEN3,
            fused_but("blk.1.ffn_gate_up_exps.weight", lambda value: value[:, :23]),
            r"blk.1.ffn_gate_up_exps.weight has shape \(6, 23, 24\), not 2 x 12 rows",
        ),
        (
            QWEN3,
            fused_but("blk.1.ffn_up_exps.weight", lambda _: np.ones((6, 12, 24), np.float32)),
            "do not describe: blk.1.ffn_up_exps.weight",
        ),
        (QWEN2, lacks("blk.2.ffn_up_exps.weight"), "call for: blk.2.ffn_up_exps.weight"),
        (QWEN2, lacks("blk.0.ffn_gate_inp.weight"), "call for: blk.0.ffn_gate_inp.weight"),
        (small_causal.CONFIGS["qwen2_moe"], lacks(), "call for: blk.1.ffn_down_exps.weight"),
        (QWEN2, lacks("blk.0.ffn_gate_inp_shexp.weight"), "blk.0.ffn_gate_inp_shexp.weight"),
        (QWEN3, lacks("blk.1.attn_q_norm.weight"), "call for: blk.1.attn_q_norm.weight"),
        (OLMOE, cut, r"blk.1.ffn_down_exps.weight has shape \(5, 24, 20\)"),
        (
            MIXTRAL,
            lambda t: t.update({"blk.0.ffn_up_exps.bias": np.ones((5, 20))}),
            "do not describe",
        ),
    ],
)
def test_tensors_that_are_refused(tmp_path, config, edit, match):
    file = write(tmp_path / "m.gguf", config, edit=edit)
    with pytest.raises(UserError, match=match) as caught:
        load_lm(file)
    assert str(file) in str(caught.value)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=["qwen2_moe", "qwen3_moe"])
def test_transformers_reads_the_same_from_the_file(tmp_path, config, seed):
    """Transformers' own reader; it takes sizes from the config, as it knows not all the keys."""
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    weights = {
        name: value * (0.5 if value.ndim > 1 else 1)
        for name, value in small_causal.tensors(config, seed).items()
    }
    file = write(tmp_path / "m.gguf", config, weights)
    made = transformers.AutoConfig.for_model(**config)
    theirs = transformers.AutoModelForCausalLM.from_config(
        made, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=theirs)
    theirs.load_state_dict(read["tensors"])  # strict: all of the model's tensors are there
    ids = np.random.RandomState(seed).randint(0, 40, (3, 12))
    with torch.no_grad():
        logits = theirs(input_ids=torch.from_numpy(ids)).logits.numpy()
    ours = np.asarray(load_lm(file).model(jnp.asarray(ids)).logits)
    assert np.abs(logits).max() > 0.5
    np.testing.assert_allclose(ours, logits, atol=1e-4, rtol=0)
