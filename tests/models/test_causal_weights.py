"""Layouts of the tensors of causal language models, and what a config and its tensors both say."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from moe_jax.errors import UserError
from moe_jax.models import causal_weights, load_lm, save_lm
from moe_jax.models.causal_families import read_causal_config
from moe_jax.models.tensor_files import FileTensors
from tests.models import small_causal, small_files

MIXTURES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]
LLAMA, MIXTRAL = small_causal.CONFIGS["llama"], small_causal.CONFIGS["mixtral"]
QWEN3 = small_causal.CONFIGS["qwen3_moe"]
TIED = {**LLAMA, "tie_word_embeddings": True}
TABLE, OUT = "model.embed_tokens.weight", "lm_head.weight"
PARTS = {"w1": "gate", "w3": "up", "w2": "down"}
PARTS |= {f"{part}_proj": part for part in PARTS.values()}


def in_stacks(weights, *, block="mlp"):
    """The layout of transformers 5: two tensors for all experts of a layer, mixtures in `block`."""
    out, parts = {}, {}
    for name, value in weights.items():
        if name.startswith("model.layers") and ("experts" in name or "sparse_moe" in name):
            name = name.replace("block_sparse_moe", block)
        if found := re.fullmatch(r"(.+\.experts)\.(\d+)\.(\w+)\.weight", name):
            parts.setdefault((found[1], PARTS[found[3]]), []).append(value)
        else:
            out[name] = value
    for stem in {stem for stem, _ in parts}:
        gate, up = np.stack(parts[stem, "gate"]), np.stack(parts[stem, "up"])
        out[f"{stem}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        out[f"{stem}.down_proj"] = np.stack(parts[stem, "down"])
    return out


def parameters(folder):
    return nnx.to_pure_dict(nnx.state(load_lm(folder).model))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def fails(folder, match):
    with pytest.raises(UserError, match=match) as caught:
        load_lm(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def published(config, weights, sizes=None):
    """What as_published makes of tensors; `sizes` collects those of the parts that are read."""

    def read(name, index=()):
        part = weights[name][index]
        if sizes is not None:
            sizes.append(part.size)
        return part

    shapes = {name: value.shape for name, value in weights.items()}
    files = FileTensors(shapes, dict.fromkeys(weights, "F32"), read)
    return causal_weights.as_published(*read_causal_config(config, "config.json"), files, "here")


def assert_published(config, stored, weights):
    found = published(config, stored)
    assert set(found.names) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found.read(name), value)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_in_one_tensor(name):
    weights = small_causal.tensors(small_causal.CONFIGS[name])
    stacks = in_stacks(weights)
    assert len(stacks) < len(weights)
    assert_published(small_causal.CONFIGS[name], stacks, weights)


def test_names_of_mixtrals_mixtures_and_layouts_may_be_mixed():
    weights = small_causal.tensors(MIXTRAL)
    renamed = {name.replace("block_sparse_moe", "mlp"): v for name, v in weights.items()}
    old = in_stacks(weights, block="block_sparse_moe")
    first = {n: v for n, v in in_stacks(weights).items() if not n.startswith("model.layers.0.")}
    first |= {name: v for name, v in weights.items() if name.startswith("model.layers.0.")}
    for stored in (weights, renamed, old, first):
        assert_published(MIXTRAL, stored, weights)


def test_a_folder_with_experts_in_one_tensor(tmp_path):
    """It is saved as published, whatever it came as."""
    weights = small_causal.tensors(MIXTRAL)
    found = load_lm(small_causal.write(tmp_path / "stacks", MIXTRAL, in_stacks(weights)))
    save_lm(found.model, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(saved) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(saved[name], value)


def test_each_value_of_a_stack_is_read_once():
    """No stack is read whole for the sake of one expert."""
    weights, sizes = small_causal.tensors(QWEN3), []
    found = published(QWEN3, in_stacks(weights), sizes)
    for name in found.names:
        found.read(name)
    assert sorted(sizes) == sorted(value.size for value in weights.values())


@pytest.mark.parametrize(
    ("config", "edit", "match"),
    [
        (
            MIXTRAL,
            lambda t: t.update({"model.layers.1.mlp.experts.gate_up_proj": np.zeros((5, 40, 24))}),
            r"has model.layers.1.block_sparse_moe.experts.0.w1.weight twice, as .*, which differ",
        ),
        (
            MIXTRAL,
            lambda t: t.update({"model.layers.1.mlp.gate.weight": np.zeros((5, 24), np.float32)}),
            r"has model.layers.1.block_sparse_moe.gate.weight twice, as .*, which differ",
        ),
    ],
)
def test_one_tensor_under_two_names(config, edit, match, tmp_path):
    weights = small_causal.tensors(config)
    edit(weights)
    fails(small_causal.write(tmp_path, config, weights), match)


@pytest.mark.parametrize(
    ("name", "value", "asked"),
    [
        ("gate_up_proj", lambda v: v[:5], r"\(5, 24, 24\), its config asks for \(6, 24, 24\)"),
        ("gate_up_proj", lambda v: v[:, :12], r"\(6, 12, 24\), its config asks for \(6, 24, 24\)"),
        ("gate_up_proj", lambda v: v[0], r"\(24, 24\), its config asks for \(6, 24, 24\)"),
        ("gate_up_proj", lambda v: v[:0], r"\(0, 24, 24\), its config asks for \(6, 24, 24\)"),
        (
            "down_proj",
            lambda v: v.swapaxes(1, 2),
            r"\(6, 12, 24\), its config asks for \(6, 24, 12",
        ),
    ],
)
def test_stacks_of_another_shape(name, value, asked, tmp_path):
    weights = in_stacks(small_causal.tensors(QWEN3))
    name = f"model.layers.1.mlp.experts.{name}"
    weights[name] = np.ascontiguousarray(value(weights[name]))
    fails(small_causal.write(tmp_path, QWEN3, weights), f"{name} has shape {asked}")


def test_a_stack_is_missing(tmp_path):
    weights = in_stacks(small_causal.tensors(QWEN3))
    del weights["model.layers.1.mlp.experts.down_proj"]
    fails(small_causal.write(tmp_path, QWEN3, weights), r"calls for: .*experts.0.down_proj.weight")
    weights["model.layers.1.mlp.experts.w2_weight"] = np.ones(3, np.float32)
    both = r"calls for: .*experts.0.down.* and 3 more; and has tensors .*: .*experts.w2_weight"
    fails(small_causal.write(tmp_path, QWEN3, weights), both)


def test_a_tied_model_with_an_output_layer_of_its_own(tmp_path, caplog):
    """As transformers 5 has it: the file's output layer is used where it isn't the table."""
    weights = small_causal.tensors(LLAMA)
    untied = parameters(small_causal.write(tmp_path / "untied", LLAMA, weights))
    folder = small_causal.write(tmp_path / "tied", TIED, weights)
    found = load_lm(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: tie_word_embeddings=true, but {OUT} is not equal to {TABLE}; it is taken as it "
        "is"
    ]
    assert not found.config.tie_embeddings
    assert_same(nnx.to_pure_dict(nnx.state(found.model)), untied)
    save_lm(found.model, tmp_path / "saved", tokenizer=found.tokenizer)
    assert_same(parameters(tmp_path / "saved"), untied)


def test_a_tied_model_with_its_table_under_either_name_or_both(tmp_path, caplog):
    weights = small_causal.tensors(TIED)
    table = weights[TABLE]
    want = parameters(small_causal.write(tmp_path / "table", TIED, weights))
    both = weights | {OUT: table.copy()}
    assert_same(parameters(small_causal.write(tmp_path / "both", TIED, both)), want)
    only = {name: value for name, value in weights.items() if name != TABLE} | {OUT: table}
    assert_same(parameters(small_causal.write(tmp_path / "out", TIED, only)), want)
    # Equal values of another dtype are the same table.
    half = table.astype(ml_dtypes.bfloat16)
    mixed = {TABLE: half.astype(np.float32), OUT: half}
    assert load_lm(
        small_causal.write(tmp_path / "mixed", TIED, weights | mixed)
    ).config.tie_embeddings
    assert not caplog.records
    short = weights | {OUT: table[:39]}
    fails(
        small_causal.write(tmp_path / "short", TIED, short),
        r"lm_head.weight has shape \(39, 24\), its config asks for \(40, 24\)",
    )
    none = {name: value for name, value in weights.items() if name != TABLE}
    fails(small_causal.write(tmp_path / "none", TIED, none), f"calls for: {TABLE}")


def test_an_untied_model_without_an_output_layer(tmp_path):
    weights = small_causal.tensors(LLAMA)
    del weights[OUT]
    fails(small_causal.write(tmp_path, LLAMA, weights), f"calls for: {OUT}")


def test_dtypes_may_be_mixed(tmp_path):
    kinds = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, small_files.E5M2]
    weights = small_causal.tensors(QWEN3)
    mixed = {name: v.astype(kinds[i % 5]) for i, (name, v) in enumerate(weights.items())}
    stand = {name: v.astype(np.float32) for name, v in mixed.items()}
    folder = small_causal.write(tmp_path / "mixed", QWEN3, weights)
    small_files.save_tensors(mixed, folder / "model.safetensors")
    want = parameters(small_causal.write(tmp_path / "stand", QWEN3, stand))
    assert_same(parameters(folder), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_values_that_are_no_numbers(value, tmp_path):
    weights = small_causal.tensors(LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = value
    folder = small_causal.write(tmp_path, LLAMA, weights)
    with pytest.raises(UserError, match=f"{name} has values that are not finite as float16"):
        load_lm(folder, param_dtype="float16")


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        (LLAMA, {"num_hidden_layers": 9_999}, "has 30 tensors, too few for 9999 layers"),
        (MIXTRAL, {"num_local_experts": 99_999}, "tensors, too few for 99999 experts"),
        (LLAMA, {"vocab_size": 2**31 - 1}, r"\(40, 24\), its config asks for \(2147483647"),
    ],
)
def test_sizes_beyond_all_measure(config, change, match, tmp_path):
    fails(small_causal.write(tmp_path, config | change, small_causal.tensors(config)), match)
