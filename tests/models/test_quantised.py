"""Quantised safetensors: float8 with scales in blocks; everything else is one line."""

import json
import re

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.models import load_lm, load_switch, pretrained
from moe_jax.models.quantised import dequantised
from moe_jax.models.tensor_files import open_tensors
from tests.models import small_causal, small_encoders, small_files, small_switch
from tests.models.small_files import E4M3, E5M2, E8M0
from tests.models.test_causal_weights import in_stacks

QWEN3, LLAMA = small_causal.CONFIGS["qwen3_moe"], small_causal.CONFIGS["llama"]
FILE, UP = "model.safetensors", "model.layers.1.mlp.experts.2.up_proj.weight"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 16]}


def cast(weights, kind=E4M3):
    """Matrices of layers in float8, as a file that was only cast."""
    return {n: v.astype(kind) if "_proj.weight" in n else v for n, v in weights.items()}


def in_blocks(weights, rows, columns, kind=E4M3, scale_kind=np.float32):
    """Matrices of layers as float8 and a scale for each block; and what they stand for."""
    files, stand, random = {}, {}, np.random.RandomState(1)
    for name, value in weights.items():
        files[name] = stand[name] = value
        if "_proj" not in name:
            continue
        files[name] = value.astype(kind)
        grid = (*value.shape[:-2], -(-value.shape[-2] // rows), -(-value.shape[-1] // columns))
        scale = files[f"{name}_scale_inv"] = (2 ** random.uniform(-2, 2, grid)).astype(scale_kind)
        stand[name] = np.empty(value.shape, np.float32)
        for place in np.ndindex(value.shape):
            block = (*place[:-2], place[-2] // rows, place[-1] // columns)
            stand[name][place] = np.float32(files[name][place]) * np.float32(scale[block])
    return files, stand


def write(folder, config, tensors, **changes):
    small_causal.write(folder, config | changes, {})
    small_files.save_tensors(tensors, folder / FILE)
    return folder


def assert_stands_for(folder, stand):
    """The folder's weights are these, to the bit."""
    raw = json.loads((folder / "config.json").read_text())
    found = dequantised(open_tensors(folder), raw, str(folder))
    assert set(found.shapes) == set(stand)
    for name, value in stand.items():
        np.testing.assert_array_equal(found.read(name).astype(np.float32), value)


def fails(folder, *patterns, load=load_lm):
    with pytest.raises(UserError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    for pattern in patterns:
        assert re.search(pattern, text), text


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_float8_without_scales_is_what_was_cast(kind, tmp_path):
    weights = cast(small_causal.tensors(QWEN3), kind)
    stand = {name: value.astype(np.float32) for name, value in weights.items()}
    folder = write(tmp_path, QWEN3, weights)
    assert_stands_for(folder, stand)
    got = load_lm(folder).model.layers[1].ffn.w_in_edf[2]
    np.testing.assert_array_equal(got, stand[UP].T)


@pytest.mark.parametrize(
    ("size", "kind", "scale_kind"),
    [((8, 16), E4M3, np.float32), ((5, 7), E5M2, np.float16), ((128, 128), E4M3, E8M0)],
)
@pytest.mark.parametrize("layout", [lambda weights: weights, in_stacks], ids=["each", "stacks"])
def test_float8_times_the_scales_of_its_blocks(size, kind, scale_kind, layout, tmp_path):
    """Against a loop over values; blocks at the edges are cut, in a stack of gate and up too."""
    weights = layout(small_causal.tensors({**QWEN3, "num_hidden_layers": 2}))
    files, stand = in_blocks(weights, *size, kind, scale_kind)
    files["model.layers.0.self_attn.q_proj.activation_scale"] = np.ones(1, np.float32)
    config, how = {**QWEN3, "num_hidden_layers": 2}, FP8 | {"weight_block_size": list(size)}
    folder = write(tmp_path, config, files, quantization_config=how)
    assert_stands_for(folder, stand)
    if layout is in_stacks and scale_kind is np.float32:
        got = load_lm(folder).model.layers[1].ffn.w_in_edf[2]
        np.testing.assert_array_equal(
            got, stand["model.layers.1.mlp.experts.gate_up_proj"][2, 12:].T
        )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_for_a_whole_matrix(shape, tmp_path):
    files, stand = in_blocks(small_causal.tensors(LLAMA), 999, 999)
    files = {n: v.reshape(shape) if n.endswith("_inv") else v for n, v in files.items()}
    how = FP8 | {"weight_block_size": None}
    assert_stands_for(write(tmp_path, LLAMA, files, quantization_config=how), stand)


def without(name):
    return lambda tensors: tensors.pop(name)


def other(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    ("edit", "how", "match"),
    [
        (without(f"{UP}_scale_inv"), {}, f"{UP} is of dtype F8_E4M3 and has no {UP}_scale_inv"),
        (without(UP), {}, f"has {UP}_scale_inv, but no {UP}"),
        (other(UP, lambda v: v.astype(np.float32)), {}, f"{UP} has scales and is of dtype F32"),
        (
            other(f"{UP}_scale_inv", lambda v: v[:1]),
            {},
            r"has shape \(1, 2\), the weight's .*\(2, 2",
        ),
        (other(f"{UP}_scale_inv", lambda v: v[0]), {}, r"_scale_inv has shape \(2,\)"),
        (other(f"{UP}_scale_inv", lambda v: v.astype(np.uint8)), {}, "_scale_inv is of dtype U8"),
        (other(UP, lambda v: v.reshape(-1)), {}, "only matrices have scales"),
        (lambda t: None, {"weight_block_size": [8, 0]}, r"weight_block_size=\[8, 0\] must be two"),
        (lambda t: None, {"weight_block_size": [8]}, r"weight_block_size=\[8\] must be two"),
        (lambda t: None, {"weight_block_size": "8"}, "weight_block_size='8' must be two"),
        (
            lambda t: t.update({UP.replace("weight", "input_scale"): np.ones(1, np.float32)}),
            {},
            "quantised, quant_method='fp8' with .*input_scale, which is not covered",
        ),
    ],
)
def test_scales_that_do_not_fit(edit, how, match, tmp_path):
    files, _ = in_blocks(small_causal.tensors(QWEN3), 8, 16)
    edit(files)
    fails(write(tmp_path, QWEN3, files, quantization_config=FP8 | how), match)


def test_float8_that_only_the_config_knows_of(tmp_path):
    folder = write(tmp_path, LLAMA, small_causal.tensors(LLAMA), quantization_config=FP8)
    fails(folder, "has quantization_config with quant_method='fp8', but no tensor is quantised")


def test_scales_that_no_config_explains(tmp_path):
    files, _ = in_blocks(small_causal.tensors(QWEN3), 8, 16)
    fails(write(tmp_path, QWEN3, files), "quantised", "doesn't say how", "_scale_inv", "dequantise")


# Names and dtypes that the usual quantisers leave in place of, or beside, NAME.weight.
MAKES = {
    "gptq": {"qweight": np.int32, "qzeros": np.int32, "scales": np.float16, "g_idx": np.int32},
    "awq": {"qweight": np.int32, "qzeros": np.int32, "scales": np.float16},
    "bitsandbytes": {
        "weight": np.uint8,
        "weight.absmax": np.uint8,
        "weight.quant_map": np.float32,
        "weight.nested_absmax": np.float32,
        "weight.nested_quant_map": np.float32,
        "weight.quant_state.bitsandbytes__nf4": np.uint8,
    },
    "llm.int8": {"weight": np.int8, "SCB": np.float32, "weight_format": np.uint8},
    "compressed-tensors": {
        "weight_packed": np.int32,
        "weight_scale": np.float16,
        "weight_zero_point": np.int32,
        "weight_shape": np.int64,
        "weight_global_scale": np.float32,
    },
    "modelopt": {
        "weight": E4M3,
        "weight_scale": np.float32,
        "weight_scale_2": np.float32,
        "input_scale": np.float32,
    },
    "mxfp4": {"weight_blocks": np.uint8, "weight_scales": np.uint8},
    "mlx": {"weight": np.int32, "scales": np.float16, "biases": np.float16},
}


@pytest.mark.parametrize("make", MAKES)
def test_every_other_make_is_refused(make, tmp_path):
    stem = UP.removesuffix(".weight")
    tensors = without_up = {n: v for n, v in small_causal.tensors(QWEN3).items() if n != UP}
    for name, kind in MAKES[make].items():
        tensors = tensors | {f"{stem}.{name}": np.ones((2, 2), kind)}
    how = {"quant_method": make}
    folder = write(tmp_path / "a", QWEN3, tensors, quantization_config=how)
    fails(folder, "quantised", f"quant_method='{make}'", re.escape(stem), "unquantised files")
    # Without a word in config.json, all together and each name alone.
    fails(write(tmp_path / "b", QWEN3, tensors), "quantised", re.escape(stem), "unquantised")
    for i, (name, kind) in enumerate(MAKES[make].items()):
        if name != "weight":
            tensors = without_up | {UP: np.ones((12, 24), np.float32)}
            tensors |= {f"{stem}.{name}": np.ones((2, 2), kind)}
            folder = write(tmp_path / str(i), QWEN3, tensors)
            fails(folder, "quantised", re.escape(f"{stem}.{name}"))


@pytest.mark.parametrize("field", ["quantization_config", "compression_config", "quantization"])
def test_what_config_json_says_of_quantisation(field, tmp_path):
    weights = small_causal.tensors(LLAMA)
    folder = write(tmp_path, LLAMA, weights, **{field: {"quant_method": "hqq"}})
    fails(folder, f"has {field} with quant_method='hqq', but no tensor is", f"delete {field}")
    write(tmp_path, LLAMA, weights, **{field: "int8"})
    fails(folder, f"config.json's {field}='int8' must be an object")
    for nothing in (None, {}):
        assert_stands_for(write(tmp_path, LLAMA, weights, **{field: nothing}), weights)


def test_encoders_and_switch_transformers_too(tmp_path):
    how = {"quantization_config": {"quant_method": "bitsandbytes"}}
    name = "encoder.layer.1.output.dense.weight"
    weights = small_encoders.tensors(small_encoders.CONFIGS["bert"])
    config = small_encoders.CONFIGS["bert"]
    bert = small_encoders.write(tmp_path / "bert", config, weights | {name: np.ones((24, 40), int)})
    fails(bert, f"{name} is of dtype I64", load=lambda f: pretrained.load_encoder(str(f)))
    quantised = weights | {f"{name}.absmax": np.ones(3, np.uint8)}
    small_encoders.write(bert, config | how, quantised)
    fails(bert, "quantised, quant_method='bits", load=lambda f: pretrained.load_encoder(str(f)))
    config, name = small_switch.CONFIGS["base"], "decoder.final_layer_norm.weight"
    weights = small_switch.tensors(config)
    folder = small_switch.write(tmp_path / "t5", config, weights | {name: np.ones(20, np.int8)})
    fails(folder, f"{name} is of dtype I8", load=load_switch)
    small_switch.write(folder, config | how, weights)
    fails(folder, "quant_method='bits.*, but no tensor is quantised", load=load_switch)


def test_only_the_scales_of_the_part_that_is_asked_for(tmp_path):
    """A stack's part against the same part of the whole."""
    value = np.random.RandomState(0).randn(3, 10, 7).astype(np.float32)
    files, stand = in_blocks({"experts.gate_up_proj": value}, 4, 3)
    small_files.save_tensors(files, tmp_path / FILE)
    raw = json.loads(json.dumps({"quantization_config": FP8 | {"weight_block_size": [4, 3]}}))
    found = dequantised(open_tensors(tmp_path), raw, "here")
    assert list(found.shapes) == ["experts.gate_up_proj"]
    for index in ((), (1,), (2, slice(0, 5)), (0, slice(5, 10)), (slice(1, 3), slice(3, 9))):
        np.testing.assert_array_equal(
            found.read("experts.gate_up_proj", index), stand["experts.gate_up_proj"][index]
        )
